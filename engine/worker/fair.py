"""The attempts that wait for a slot. Runs take turns, so a run with many steps does not keep the others waiting."""

from __future__ import annotations

from collections import deque

from ..core.state import RunState
from .attempt import Attempt


class FairQueue:
    """A queue of `size` attempts. `next` holds one attempt of each run that waits; the other attempts of a run join at the end,
    one by one.

    Look at `next` and `size`, and change them by the methods alone.
    """

    __slots__ = ("_further", "_runs", "next", "size")

    def __init__(self) -> None:
        self.size = 0
        self.next: deque[Attempt] = deque()
        self._runs: set[RunState] = set()  # those of `next`
        self._further: dict[RunState, deque[Attempt]] = {}

    def add(self, attempt: Attempt) -> None:
        run = attempt.run
        self.size += 1
        if run not in self._runs:
            self._runs.add(run)
            self.next.append(attempt)
        elif run in self._further:
            self._further[run].append(attempt)
        else:
            self._further[run] = deque([attempt])

    def take(self) -> Attempt:
        attempt = self.next.popleft()
        self.size -= 1
        if attempt.run in self._further:
            self._follow(attempt.run)
        else:
            self._runs.discard(attempt.run)
        return attempt

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt, if it is there."""
        run = attempt.run
        further = self._further.get(run)
        if further is not None and attempt in further:
            further.remove(attempt)
            self.size -= 1
            if not further:
                del self._further[run]
        elif attempt in self.next:
            self.next.remove(attempt)
            self.size -= 1
            if further is None:
                self._runs.discard(run)
            else:
                self._follow(run)

    def _follow(self, run: RunState) -> None:
        """The run's attempt has left the queue, and its next one waits at the end."""
        further = self._further[run]
        self.next.append(further.popleft())
        if not further:
            del self._further[run]
