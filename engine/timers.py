"""Timers: what is due when, a million of them in a few megabytes.

A binary heap in three flat columns takes 24 bytes a timer; `heapq` over tuples takes 120. Whether a timer still means
anything is for who takes it out to see: nothing is ever removed from the middle.
"""

from __future__ import annotations

from array import array

from .fold import Open, OpenSleep, OpenWait

SHARED_STEP_IDS = 10_000


class Timers:
    """Due times (ms) with the run and the step, sleep or wait that they are for, the earliest first."""

    def __init__(self) -> None:
        self._due = array("q")
        self._runs: list[str] = []
        self._steps: list[str] = []
        self._shared: dict[str, str] = {}  # most runs wait under the same few step ids

    def __len__(self) -> int:
        return len(self._due)

    @property
    def first(self) -> int:
        """When the next one is due. There is one."""
        return self._due[0]

    def clear(self) -> None:
        """Drop all."""
        for column in (self._due, self._runs, self._steps):
            del column[:]

    def push(self, due: int, run_id: str, step_id: str) -> None:
        """Add one; the strings are kept as they are, so let them be those that are kept anyway."""
        if len(self._shared) >= SHARED_STEP_IDS:
            self._shared.clear()
        step_id = self._shared.setdefault(step_id, step_id)
        dues, runs, steps = self._due, self._runs, self._steps
        at = len(dues)
        dues.append(due)
        runs.append(run_id)
        steps.append(step_id)
        while at > 0:
            parent = (at - 1) >> 1
            if dues[parent] <= due:
                break
            dues[at], runs[at], steps[at] = dues[parent], runs[parent], steps[parent]
            at = parent
        dues[at], runs[at], steps[at] = due, run_id, step_id

    def pop(self) -> tuple[int, str, str]:
        """Take out the earliest. There is one."""
        dues, runs, steps = self._due, self._runs, self._steps
        due, run_id, step_id = dues.pop(), runs.pop(), steps.pop()
        end = len(dues)
        if end == 0:
            return due, run_id, step_id
        first = (dues[0], runs[0], steps[0])
        at, child = 0, 1
        while child < end:
            if child + 1 < end and dues[child + 1] < dues[child]:
                child += 1
            if due <= dues[child]:
                break
            dues[at], runs[at], steps[at] = dues[child], runs[child], steps[child]
            at, child = child, 2 * child + 1
        dues[at], runs[at], steps[at] = due, run_id, step_id
        return first


def due_at(op: Open) -> int | None:
    """When something must happen to what is open, ms."""
    if isinstance(op, OpenSleep):
        return op.wake_at
    return op.timeout_at if isinstance(op, OpenWait) else op.next_at
