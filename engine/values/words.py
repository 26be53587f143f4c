"""Values, times and spans in words. Pure and total."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from .text import shown, shown_json
from .times import NEVER_MS, utc

Beside = Callable[[int, int], str]
"""The time of day for people, beside another time: both in ms. The place that shows it chooses the time zone."""


def short(value: Any, limit: int = 60) -> str:
    """JSON on one line, cut at `limit` characters, with invisible characters escaped."""
    text = shown_json(orjson.dumps(value).decode())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def span(ms: int) -> str:
    """A duration for people."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.2f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def iso(ms: int | None) -> str | None:
    """A time for programs: ISO 8601, UTC. A time outside the years of ISO 8601 becomes the nearest one inside."""
    if ms is None:
        return None
    return utc(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def end_beside(ms: int, other_ms: int, beside: Beside) -> str:
    """The end of a wait: "until ..." or "for ever"."""
    return "for ever" if ms >= NEVER_MS else f"until {beside(ms, other_ms)}"


def sender(by: str | None, why: str | None) -> str:
    """The sender of a request and why; "" if neither is known."""
    return ": ".join(shown(one) for one in (None if by is None else f"by {by}", why) if one is not None)


def joined(*words: str) -> str:
    """Those that are not empty."""
    return "; ".join(one for one in words if one)
