"""Durations, as users write them: a number of seconds, a timedelta, or a string such as "1d2h", "90s" or "250ms"."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from typing import cast

Duration = float | str | timedelta

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
LONGEST_MS = 1000 * 366 * 86_400_000
"""A thousand years."""


def duration_ms(duration: Duration) -> int:
    """Milliseconds, from 0 to `LONGEST_MS`. Raises ValueError for a value that is not a duration, is negative, or is longer.

    Numbers of other libraries count as seconds, too.
    """
    if type(duration) is str:
        ms = _said_ms(duration)
    elif isinstance(duration, timedelta):
        ms = duration / timedelta(milliseconds=1)
    elif isinstance(duration, str):
        ms = _said_ms(str(duration))
    elif type(duration) in (int, float) or (
        isinstance(duration, (Real, Decimal)) and not isinstance(cast(object, duration), bool)
    ):
        try:
            ms = float(duration) * 1000
        except (OverflowError, ValueError):  # an int of 400 digits, a signalling NaN
            ms = math.inf
    else:
        raise ValueError(f'{_short(duration)} is not a duration; give seconds, a timedelta, or a string such as "90s"')
    if not 0 <= ms <= LONGEST_MS:
        raise ValueError(f"{_short(duration)} is not a duration between 0 and 1000 years (366,000 days), which is the longest")
    return round(ms)


def timer_ms(delay_s: float) -> int | None:
    """Milliseconds of an asyncio timer; None, for ever, above `LONGEST_MS`: asyncio has no limit."""
    return round(delay_s * 1000) if delay_s * 1000 <= LONGEST_MS else None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # an int of 5,000 digits; and the user's types may raise anything
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "…"


@lru_cache(maxsize=256)
def _said_ms(duration: str) -> float:
    if not _WHOLE.fullmatch(duration):
        raise ValueError(f'{_short(duration)} is not a duration; write one such as "250ms", "90s", "1h30m" or "3d"')
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
