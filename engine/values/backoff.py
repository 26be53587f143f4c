"""Pauses between attempts at something that fails: each twice as long as the one before, up to a longest."""

from __future__ import annotations

from random import Random


class Backoff:
    """Pauses from `first_s` to `longest_s`. With `random` each is between half and one and a half of that, so that those who
    failed together do not come back together.
    """

    def __init__(self, first_s: float, longest_s: float, random: Random | None = None) -> None:
        self._first_s = self._following_s = first_s
        self._longest_s = longest_s
        self._random = random

    def next_s(self) -> float:
        """How long to wait now, in seconds."""
        pause_s = self._following_s
        self._following_s = min(pause_s * 2, self._longest_s)
        return pause_s if self._random is None else pause_s * (0.5 + self._random.random())

    def reset(self) -> None:
        """It went well: the next pause is a first one."""
        self._following_s = self._first_s
