"""Turns for work that may end the process: isolated attempts of steps, and the suspects of a partition.

At most one of them is announced or runs at a time in a worker: otherwise one would be blamed for a death that another caused.
"""

from __future__ import annotations

from collections import deque

from .attempt import Attempt
from .suspects import Suspects


class Turns:
    """Gives the turns: calls `announce` of each waiting attempt or suspect, one after another."""

    def __init__(self) -> None:
        self._waiting: deque[Attempt | Suspects] = deque()
        self._turn: Attempt | Suspects | None = None
        self._held = False

    def __len__(self) -> int:
        return len(self._waiting) + (self._turn is not None)

    def hold(self) -> None:
        """Give no turn until `release`."""
        self._held = True

    def release(self) -> None:
        """Give turns again."""
        self._held = False
        self._next()

    def wait(self, one: Attempt | Suspects) -> None:
        """Let `one` announce when its turn comes.

        Attempts that were lost less often go first: a harmless step then is not the one that dies with its worker each time.
        """
        place = len(self._waiting)
        while place and isinstance(one, Attempt) and _lost(self._waiting[place - 1]) > one.lost:
            place -= 1
        self._waiting.insert(place, one)
        self._next()

    def settled(self, one: Attempt | Suspects) -> None:
        """The isolated attempt, or the suspect, is recorded or irrelevant: the next one announces."""
        if isinstance(one, Attempt):
            one.isolated = False
        if self._turn is one:
            self._turn = None
            self._next()
        else:
            self._waiting.remove(one)

    def _next(self) -> None:
        if self._waiting and self._turn is None and not self._held:
            self._turn = self._waiting.popleft()
            self._turn.announce()


def _lost(one: Attempt | Suspects) -> int:
    """How often an attempt's step was lost in a row; 0 for suspects, whom nothing overtakes."""
    return one.lost if isinstance(one, Attempt) else 0
