"""Decides when a failed step is retried. Pure: randomness is a parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from types import UnionType

from ..errors import NonRetryable, PayloadTooLarge, RetryAfter, ValueInvalid
from .duration import Duration, duration_ms
from .options import flag


@dataclass(frozen=True, slots=True)
class Retry:
    """Up to `max_attempts` attempts. The pause between them grows from `backoff` by `factor`, up to `max_backoff`.

    `jitter` shortens each pause by a random part of up to a half. Only exceptions of `retry_on` are retried. The constructor
    raises ValueError for values that cannot work, and TypeError for a `jitter` that is neither True nor False.
    """

    max_attempts: int = 3
    backoff: Duration = "1s"
    factor: float = 2
    max_backoff: Duration = "1h"
    jitter: bool = True
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception

    def __post_init__(self) -> None:
        if not _is_number(self.max_attempts, int) or self.max_attempts < 1:
            raise ValueError(f"Retry(max_attempts={self.max_attempts!r}): it must be a whole number of at least 1")
        if not _is_number(self.factor, int | float) or not 1 <= self.factor < math.inf:
            raise ValueError(f"Retry(factor={self.factor!r}): it must be a number of at least 1")
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise ValueError(f"Retry(retry_on={self.retry_on!r}): it must be an exception class, or a tuple of them")
        flag(self.jitter, "Retry(jitter)")
        duration_ms(self.backoff)
        duration_ms(self.max_backoff)

    def pause_ms(self, error: BaseException, failures: int, random: Random) -> int | None:
        """The pause after the `failures`-th failure, in ms; None: give up. Total, even if methods of the error raise."""
        try:
            return self._pause_ms(error, failures, random)
        except Exception:  # noqa: BLE001  # an error whose methods raise is retried like any other
            return None if failures >= self.max_attempts else duration_ms(self.backoff)

    def _pause_ms(self, error: BaseException, failures: int, random: Random) -> int | None:
        if failures >= self.max_attempts or isinstance(error, (NonRetryable, PayloadTooLarge, ValueInvalid)):
            return None
        if isinstance(error, RetryAfter):
            return duration_ms(error.delay)
        if not isinstance(error, self.retry_on):
            return None
        longest = duration_ms(self.max_backoff)
        try:
            pause = min(duration_ms(self.backoff) * float(self.factor) ** (failures - 1), longest)
        except OverflowError:
            pause = longest
        return round(pause * (1 - random.random() / 2) if self.jitter else pause)


def _is_number(value: object, kind: type[int] | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
