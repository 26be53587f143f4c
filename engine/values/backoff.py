"""Pauses between attempts at something that fails: each is twice as long as the last, up to a limit."""

from __future__ import annotations

from random import Random


class Backoff:
    """Pauses from `first_s` to `longest_s`, in seconds. With `random`, each is multiplied by a random factor from 0.5 to 1.5, so
    that callers that failed at the same time do not retry at the same time.
    """

    def __init__(self, first_s: float, longest_s: float, random: Random | None = None) -> None:
        self._first_s = self._following_s = first_s
        self._longest_s = longest_s
        self._random = random

    def next_s(self) -> float:
        """The next pause, in seconds."""
        pause_s = self._following_s
        self._following_s = min(pause_s * 2, self._longest_s)
        return pause_s if self._random is None else pause_s * (0.5 + self._random.random())

    def reset(self) -> None:
        """Begin with `first_s` again, after a success."""
        self._following_s = self._first_s
