"""A window over the events of a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.records import Request
from ...events import Event
from ...values.times import said
from ...values.words import Beside, joined

WINDOW = 200

beside: Beside = lambda ms, _: said(ms)


def row(event: Event, first_ms: int, payload: bool) -> dict[str, Any]:
    """An event for the page. Without the right to payloads, only what says nothing of them."""
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


def matching(events: Sequence[Event], *, type: str, step: str, text: str, trouble: bool, payload: bool) -> list[Event]:
    """The events of a type, of a step, with a text, or only those of failures."""
    found = list(events)
    if type:
        found = [event for event in found if event.type == type]
    if step:
        found = [event for event in found if getattr(event, "step_id", "") == step]
    if trouble:
        found = [event for event in found if event.tone in ("trouble", "failure")]
    if text:
        wanted = text.casefold()
        found = [event for event in found if wanted in _words(event, payload).casefold()]
    return found


def _words(event: Event, payload: bool) -> str:
    if payload:
        return f"{event.type} {event.model_dump_json(exclude_unset=True)}"
    return f"{event.type} {getattr(event, 'step_id', '')}"


def window(events: Sequence[Event], begin: int | None) -> tuple[Sequence[Event], int | None, int | None]:
    """Up to `WINDOW` events from the offset `begin` on, or the last ones; and where the windows before and behind begin."""
    first = max(len(events) - WINDOW, 0)
    if begin is not None:
        first = next((at for at, event in enumerate(events) if (event.offset or 0) >= begin), len(events))
    older = events[max(first - WINDOW, 0)].offset if first > 0 and events else None
    newer = events[first + WINDOW].offset if first + WINDOW < len(events) else None
    return events[first : first + WINDOW], older, newer
