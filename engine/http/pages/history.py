"""Pages of the events of a run. Pure."""

from __future__ import annotations

from typing import Any

from ...client.past import Events, Moment
from ...core.records import Request
from ...events import TYPES, Event
from ...values.words import joined
from .times import beside

WINDOW = 200
TROUBLE = frozenset(name for name, model in TYPES.items() if model.tone in ("trouble", "failure"))


def row(event: Event, first_ms: int, payload: bool) -> dict[str, Any]:
    """An event for the page. Without the role `payload`, only fields that cannot hold a payload."""
    line = getattr(event, "at_line", None)
    sender = event.sender() if isinstance(event, Request) else ""
    return {
        "offset": event.offset,
        "type": event.type,
        "tone": event.tone,
        "step": getattr(event, "step_id", ""),
        "at": event.timestamp or event.at,
        "since": max((event.timestamp or event.at) - first_ms, 0),
        "detail": joined(event.detail(beside) if payload else "", sender, f"at {line}" if line else ""),
    }


def matching(then: Moment, *, type: str, step: str, text: str, trouble: bool, payload: bool) -> Events:
    """The events of a type, of a step, with a text; `trouble`: only failures."""
    types = {type} if type else set(TROUBLE) if trouble else None
    if type and trouble:
        types = {type} & TROUBLE
    found = then.select(step=step or None, types=types)
    return found.where(lambda event: text.casefold() in _words(event, payload).casefold()) if text else found


def _words(event: Event, payload: bool) -> str:
    if payload:
        return f"{event.type} {event.model_dump_json(exclude_unset=True)}"
    return f"{event.type} {getattr(event, 'step_id', '')}"


def window(events: Events, begin: int | None) -> tuple[Events, int | None, int | None]:
    """Up to `WINDOW` events at or after the offset `begin`, or the last ones; and where the windows before and after begin."""
    first = max(len(events) - WINDOW, 0) if begin is None else events.from_offset(begin)
    older = events.offset(max(first - WINDOW, 0)) if first > 0 else None
    newer = events.offset(first + WINDOW) if first + WINDOW < len(events) else None
    return events[first : first + WINDOW], older, newer
