"""A heap of timers by their due times, which holds a million timers in a few megabytes.

A binary heap in four flat columns takes 32 bytes a timer; `heapq` over tuples takes 130. The caller of `pop` checks whether a
timer still has a meaning. Timers of runs that are gone do not stay until they are due, which may be years: each `push` examines
two other timers. So the heap holds at most about twice as many timers as runs have.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

SHARED_STEP_IDS = 10_000
LOOKED_AT = 2


def _always(run_id: str) -> bool:
    return True


class TimerHeap:
    """Due times (ms, by any clock), each with a run and the operation that it is for; the earliest first.

    `at` is the time that the operation's record names (a sleep's `wake_at`); the due time differs where it is by another clock. A
    timer is stale if its operation now names another time. `is_there` says whether a run exists; timers of other runs are
    dropped.
    """

    def __init__(self, is_there: Callable[[str], bool] = _always) -> None:
        self._is_there = is_there
        self._examined = 0  # index of the timer to examine next
        self._due = array("q")
        self._at = array("q")
        self._runs: list[str] = []
        self._steps: list[str] = []
        self._shared: dict[str, str] = {}  # most runs use the same few step ids

    def __len__(self) -> int:
        return len(self._due)

    @property
    def first(self) -> int:
        """The due time of the next timer. The heap must not be empty."""
        return self._due[0]

    def clear(self) -> None:
        """Drop all timers."""
        for column in (self._due, self._at, self._runs, self._steps):
            del column[:]

    def push(self, due: int, run_id: str, step_id: str, at: int | None = None) -> None:
        """Add a timer. The heap keeps the strings as given, so pass strings that are in memory anyway."""
        if len(self._shared) >= SHARED_STEP_IDS:
            self._shared.clear()
        step_id = self._shared.setdefault(step_id, step_id)
        dues, ats, runs, steps = self._due, self._at, self._runs, self._steps
        index = len(dues)
        at = due if at is None else at
        dues.append(due)
        ats.append(at)
        runs.append(run_id)
        steps.append(step_id)
        self._rise(index, due, at, run_id, step_id)
        for _ in range(LOOKED_AT):
            if self._examined >= len(dues):
                self._examined = 0
            if self._is_there(runs[self._examined]):
                self._examined += 1
            else:
                self._remove(self._examined)
                if not dues:
                    return

    def pop(self) -> tuple[int, str, str]:
        """Remove the earliest timer; returns its `at`, run id and step id. The heap must not be empty."""
        first = (self._at[0], self._runs[0], self._steps[0])
        self._remove(0)
        return first

    def _rise(self, index: int, due: int, at: int, run_id: str, step_id: str) -> None:
        """Move a timer up from the free `index` to its position."""
        dues, ats, runs, steps = self._due, self._at, self._runs, self._steps
        while index > 0:
            parent = (index - 1) >> 1
            if dues[parent] <= due:
                break
            dues[index], ats[index], runs[index], steps[index] = dues[parent], ats[parent], runs[parent], steps[parent]
            index = parent
        dues[index], ats[index], runs[index], steps[index] = due, at, run_id, step_id

    def _remove(self, index: int) -> None:
        dues, ats, runs, steps = self._due, self._at, self._runs, self._steps
        due, at, run_id, step_id = dues.pop(), ats.pop(), runs.pop(), steps.pop()
        end = len(dues)
        if index == end:
            return
        # The last timer takes the free index and moves down or up from there.
        child = 2 * index + 1
        while child < end:
            if child + 1 < end and dues[child + 1] < dues[child]:
                child += 1
            if due <= dues[child]:
                break
            dues[index], ats[index], runs[index], steps[index] = dues[child], ats[child], runs[child], steps[child]
            index, child = child, 2 * child + 1
        self._rise(index, due, at, run_id, step_id)
