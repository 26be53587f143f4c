"""When a failed step is tried again. Pure: randomness is a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .duration import Duration, duration_ms
from .errors import NonRetryable, PayloadTooLarge, RetryAfter


@dataclass(frozen=True, slots=True)
class Retry:
    """Up to `max_attempts` attempts, the pause growing from `backoff` by `factor` up to `max_backoff`.

    `jitter` takes a random half off each pause. Only exceptions of `retry_on` are tried again. Raises ValueError when made
    of values that cannot work.
    """

    max_attempts: int = 3
    backoff: Duration = "1s"
    factor: float = 2
    max_backoff: Duration = "1h"
    jitter: bool = True
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"Retry(max_attempts={self.max_attempts}): at least 1")
        if self.factor < 1:
            raise ValueError(f"Retry(factor={self.factor}): at least 1")
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise ValueError(f"Retry(retry_on={self.retry_on!r}): an exception class, or a tuple of them")
        duration_ms(self.backoff)
        duration_ms(self.max_backoff)

    def pause_ms(self, error: BaseException, failures: int, random: Random) -> int | None:
        """How long to wait after the `failures`-th failure, or None to give up."""
        if failures >= self.max_attempts or isinstance(error, (NonRetryable, PayloadTooLarge)):
            return None
        if isinstance(error, RetryAfter):
            return duration_ms(error.delay)
        if not isinstance(error, self.retry_on):
            return None
        longest = duration_ms(self.max_backoff)
        try:
            pause = min(duration_ms(self.backoff) * self.factor ** (failures - 1), longest)
        except OverflowError:
            pause = longest
        return round(pause * (1 - random.random() / 2) if self.jitter else pause)
