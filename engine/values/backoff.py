"""Pauses that grow: those of conditions, as users write them, and those between attempts of the engine at something that fails.

Pure: randomness is a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from .duration import Duration, duration_ms
from .options import flag
from .same import shown


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that grow from `first` by `factor`, up to `max`. `jitter` shortens each by a random part of up to a half.

    The constructor raises ValueError for values that cannot work, and TypeError for a `jitter` that is neither True nor False.
    """

    first: Duration = "1s"
    factor: float = 2
    max: Duration = "1m"
    jitter: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int | float) or isinstance(self.factor, bool) or not 1 <= self.factor < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise ValueError(f"Backoff(factor={shown(self.factor)}): it must be a number of at least 1")
        flag(self.jitter, "Backoff(jitter)")
        first_ms = duration_ms(self.first)
        if not first_ms:
            raise ValueError(f"Backoff({shown(self.first)}): the first pause must last 1 ms at least")
        if first_ms > duration_ms(self.max):
            raise ValueError(f"Backoff({shown(self.first)}, max={shown(self.max)}): `max` must not be below the first pause")

    def pause_ms(self, number: int, random: Random) -> int:
        """The pause of this number, counted from 1, in ms; 1 at least."""
        longest = duration_ms(self.max)
        try:
            pause = min(duration_ms(self.first) * float(self.factor) ** (number - 1), longest)
        except OverflowError:
            pause = longest
        return max(round(pause * (1 - random.random() / 2) if self.jitter else pause), 1)


class Pauses:
    """Pauses from `first_s` to `longest_s`, in seconds; each is twice as long as the last. With `random`, each is multiplied by a
    random factor from 0.5 to 1.5, so that callers that failed at the same time do not retry at the same time.
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
