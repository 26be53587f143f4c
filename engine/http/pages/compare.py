"""The page that compares a run at two points of its history: the operations that have changed, and the events between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response

from ...client.past import Moment
from ...client.status import run_state
from ...client.story import attempts_in_words, line_json, note
from ...client.waiting import waits
from ...operations.line import Line
from ..payload import waits_for
from ..routing import HttpCall, Role
from . import run as one_run
from .history import WINDOW, row
from .live import wanted
from .render import around, run_path, show, with_query
from .times import beside


async def page(call: HttpCall) -> Response:
    """The page of a run; if the query names two points, the page that compares them."""
    query: one_run.RunQuery = call.query
    if query.with_ is None or query.at is None or wanted(call) or not (call.path["id"] or query.id):
        return await one_run.page(call)
    return show(call, "compare.html", **await view(call, *sorted((query.at, query.with_))))


async def view(call: HttpCall, at: int, until: int) -> dict[str, Any]:
    """The template's values. `at` and `until`: offsets, `at` <= `until`."""
    query: one_run.RunQuery = call.query
    run_id, payload = one_run.named(call), call.caller.may(Role.PAYLOAD)
    whole, early = await one_run.moments(call, run_id, at)
    _, late = await one_run.moments(call, run_id, until)
    assert late.run is not None
    path = run_path(run_id)
    lines = early.story(), late.story()
    changes = _changes((early, late), lines, payload=payload)
    between = late.events[late.events.from_offset(at + 1) :]
    first = (query.steps or 1) - 1
    begin = min(query.begin or 0, len(between))
    here = with_query(path, at=at, **{"with": until})

    def early_to(offset: int | None) -> str:
        return with_query(path, at=offset, **{"with": until})

    def late_to(offset: int | None) -> str:
        return with_query(path, at=at, **{"with": offset})

    return around(call) | {
        "active": "",
        "run": late.run,
        "path": path,
        "sides": [
            _side(call, whole, early, lines[0], early_to),
            _side(call, whole, late, lines[1], late_to),
        ],
        "changes": changes[first : first + one_run.STEPS],
        "changes_total": len(changes),
        "steps_total": late.operations,
        "changes_before": with_query(here, steps=max(first - one_run.STEPS, 0) + 1) if first else None,
        "changes_behind": with_query(here, steps=first + one_run.STEPS + 1) if first + one_run.STEPS < len(changes) else None,
        "events": [row(event, late.run.started_at, payload) for event in between[begin : begin + WINDOW]],
        "events_total": len(between),
        "older": with_query(here, begin=max(begin - WINDOW, 0)) if begin else None,
        "newer": with_query(here, begin=begin + WINDOW) if begin + WINDOW < len(between) else None,
    }


def _side(call: HttpCall, whole: Moment, then: Moment, lines: Sequence[Line], to: Callable[[int | None], str]) -> dict[str, Any]:
    """One of the two points, and links to the points before and after it."""
    assert then.run is not None
    assert whole.run is not None
    events, last = whole.events, then.events[-1]
    nth = len(then.events) if then.has(whole.run) else 1
    return {
        "path": with_query(run_path(then.run.id), at=last.offset),
        "nth": nth,
        "of": len(events),
        "at": last.timestamp or last.at,
        "type": last.type,
        "step": getattr(last, "step_id", ""),
        "state": run_state(then.run, then.owner is not None),
        "waits": [wait.on for wait in waits_for(call.caller, waits(then.run, then.owner is not None))],
        "done": sum(1 for line in lines if line.became == "done"),
        "before": to(events.offset(nth - 2)) if nth > 1 else None,
        "behind": to(events.offset(nth)) if nth < len(events) else None,
    }


def _changes(
    moments: tuple[Moment, Moment], lines: tuple[Sequence[Line], Sequence[Line]], *, payload: bool
) -> list[dict[str, Any]]:
    """The operations that differ at the later point, side by side."""
    known = {line.step_id: line for line in lines[0]}
    found: list[dict[str, Any]] = []
    for line in lines[1]:
        was = known.get(line.step_id)
        if was is None or line_json(was) != line_json(line) or was.result != line.result:
            sides = [_said(was, moments[0], payload=payload), _said(line, moments[1], payload=payload)]
            found.append({"id": line.step_id, "kind": line.kind, "sides": sides})
    return found


def _said(line: Line | None, then: Moment, *, payload: bool) -> dict[str, Any] | None:
    """An operation in words; None if it had not begun."""
    if line is None:
        return None
    last = then.events[-1]
    said = note(line, last.timestamp or last.at, beside) if payload else ""
    return {"became": line.became, "attempts": attempts_in_words(line), "ran": line.ran_ms, "note": said}
