"""Points in time: milliseconds since 1970, UTC, as records hold them, and their form for people. Pure and total.

A record may hold any number, but a `datetime` ends with the year 9999. A time beyond counts as the first or the last day
that a `datetime` can show. A sleep or wait that ends on the last day or later never ends: the owner sets no timer for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

NEVER_MS = 253_402_214_400_000
"""9999-12-31T00:00Z, a day before the end, so that every time zone can show it. A timer for then or later is never due."""
FIRST_MS = -62_135_510_400_000
"""0001-01-02T00:00Z, a day after the first, for the same reason."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def within(ms: int) -> int:
    """The time, or the first or last time that a `datetime` can show."""
    return max(FIRST_MS, min(ms, NEVER_MS))


def ms_of(when: datetime) -> int:
    """The time of an aware datetime, in ms. Raises ValueError for a naive datetime, and for any other object."""
    if not isinstance(when, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
        raise ValueError(f"{when!r} is not a point in time; give a datetime with a time zone, such as datetime.now(UTC)")
    if when.utcoffset() is None:
        raise ValueError(f"{when.isoformat()} has no time zone; use an aware datetime, such as datetime.now(UTC)")
    return within(round(when.timestamp() * 1000))


def due(ms: int | None) -> int | None:
    """The time to set a timer for; None: set no timer."""
    return None if ms is None or ms >= NEVER_MS else max(ms, FIRST_MS)


def utc(ms: int) -> datetime:
    """The time as a datetime in UTC."""
    return _EPOCH + timedelta(milliseconds=within(ms))


def said(ms: int) -> str:
    """The time for people, to the second; "never" from `NEVER_MS` on."""
    return "never" if ms >= NEVER_MS else f"{utc(ms):%Y-%m-%d %H:%M:%S} UTC"


def until(ms: int) -> str:
    """The end of a wait, for people: "until ..." or "for ever"."""
    return "for ever" if ms >= NEVER_MS else f"until {said(ms)}"
