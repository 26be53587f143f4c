"""Points in time: milliseconds since 1970, UTC, as records hold them, and what is shown of them. Pure and total.

A record may hold any number, whoever wrote it; a `datetime` ends with the year 9999. What lies beyond is shown as the first
or the last day that can be shown, and a sleep or wait that ends there never ends: no timer is set for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

NEVER_MS = 253_402_214_400_000
"""9999-12-31T00:00Z. What is due then, or later, is never due. A day before the end, so that every time zone can show it."""
FIRST_MS = -62_135_510_400_000
"""0001-01-02T00:00Z, likewise."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def within(ms: int) -> int:
    """The time, or the first or last that can be shown."""
    return max(FIRST_MS, min(ms, NEVER_MS))


def ms_of(when: datetime) -> int:
    """The time of an aware datetime. Raises ValueError for a naive one, and for anything else."""
    if not isinstance(when, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
        raise ValueError(f"{when!r} is no point in time; give a datetime with a time zone, such as datetime.now(UTC)")
    if when.utcoffset() is None:
        raise ValueError(f"{when.isoformat()} has no time zone; use an aware datetime, such as datetime.now(UTC)")
    return within(round(when.timestamp() * 1000))


def due(ms: int | None) -> int | None:
    """When a timer is set for a time; None: there is none to set."""
    return None if ms is None or ms >= NEVER_MS else max(ms, FIRST_MS)


def utc(ms: int) -> datetime:
    """The time as a datetime in UTC."""
    return _EPOCH + timedelta(milliseconds=within(ms))


def said(ms: int) -> str:
    """The time for people, to the second; "never" where it never comes."""
    return "never" if ms >= NEVER_MS else f"{utc(ms):%Y-%m-%d %H:%M:%S} UTC"


def until(ms: int) -> str:
    """How long something waits that waits until then, for people."""
    return "for ever" if ms >= NEVER_MS else f"until {said(ms)}"
