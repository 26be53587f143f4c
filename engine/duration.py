"""Durations, as users write them: a number of seconds, a timedelta, or a string such as "1d2h", "90s" or "250ms"."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache

Duration = float | str | timedelta

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_MAX_MS = 1000 * 366 * 86_400_000


def duration_ms(duration: Duration) -> int:
    """Milliseconds. Raises ValueError for anything that is not a duration, is negative, or above a thousand years."""
    if isinstance(duration, timedelta):
        ms = duration / timedelta(milliseconds=1)
    elif isinstance(duration, str):
        ms = _said_ms(duration)
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
        ms = duration * 1000
    else:
        raise ValueError(f'{duration!r} is not a duration; give seconds, a timedelta, or a string such as "90s"')
    if not 0 <= ms <= _MAX_MS:
        raise ValueError(f"{duration!r} is not a duration between 0 and 1000 years")
    return round(ms)


@lru_cache(maxsize=256)
def _said_ms(duration: str) -> float:
    if not _WHOLE.fullmatch(duration):
        raise ValueError(f'{duration!r} is not a duration; write one such as "250ms", "90s", "1h30m" or "3d"')
    return sum(float(number) * _UNITS_MS[unit] for number, unit in _PART.findall(duration))


def words(ms: int) -> str:
    """A duration for people: "1h 30m", "250ms"."""
    if ms < 1000:
        return f"{ms}ms"
    found: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, ms = divmod(ms, _UNITS_MS[unit])
        if count:
            found.append(f"{count}{unit}")
    return " ".join(found[:2])
