"""The attempts that wait for a place. Runs take turns, so a run with many steps does not keep the others waiting."""

from __future__ import annotations

from collections import deque

from ..core.state import RunState
from .attempt import Attempt


class FairQueue:
    """A queue with one attempt of each run; the further attempts of a run follow one by one, each at the end of the queue."""

    __slots__ = ("_further", "_next", "_runs")

    def __init__(self) -> None:
        self._next: deque[Attempt] = deque()
        self._runs: set[RunState] = set()  # those of `_next`
        self._further: dict[RunState, deque[Attempt]] = {}

    def __len__(self) -> int:
        return len(self._next) + sum(map(len, self._further.values()))

    def __bool__(self) -> bool:
        return bool(self._next)

    def add(self, attempt: Attempt) -> None:
        run = attempt.run
        if run not in self._runs:
            self._runs.add(run)
            self._next.append(attempt)
        elif run in self._further:
            self._further[run].append(attempt)
        else:
            self._further[run] = deque([attempt])

    def peek(self) -> Attempt:
        return self._next[0]

    def take(self) -> Attempt:
        attempt = self._next.popleft()
        self._follow(attempt.run)
        return attempt

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt, if it is there."""
        further = self._further.get(attempt.run)
        if further is not None and attempt in further:
            further.remove(attempt)
            if not further:
                del self._further[attempt.run]
        elif attempt in self._next:
            self._next.remove(attempt)
            self._follow(attempt.run)

    def _follow(self, run: RunState) -> None:
        """The run's attempt has left the queue: its next one waits at the end."""
        further = self._further.get(run)
        if further is None:
            self._runs.discard(run)
            return
        self._next.append(further.popleft())
        if not further:
            del self._further[run]
