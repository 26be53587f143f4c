"""The page of one run, now or after one of its events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import RedirectResponse, Response

from ...client.actions import actions
from ...client.past import Moment
from ...client.status import run_state
from ...client.story import ASKING, askers, attempts_in_words, note
from ...client.waiting import waits
from ...core.state import RunState
from ...errors import ErrorInfo
from ...operations.line import Line
from ...operations.publish import published_by
from ...values.text import shown_json
from ...values.words import joined
from ..payload import waits_for
from ..problems import HttpRefusal
from ..routing import HttpCall, Role
from ..runs import checked_id, past_of
from .history import matching, row, window
from .live import stream, wanted
from .render import around, excerpt, payload_path, run_path, show, with_query
from .timeline import bars, scale_of
from .times import beside

STEPS = 200
PUBLISHED = 300
"""How many characters of a published value the page shows."""

_Number = Annotated[int | None, BeforeValidator(lambda value: value or None), Field(ge=0, le=2**63)]


class RunQuery(BaseModel, extra="ignore"):
    """`id`: of a run whose id cannot be in a path. `at`: show the run as it was after this offset; `nth`: after its nth event;
    `with`: compare the run at `at` with the run at this offset.

    `type`, `step`, `text`, `trouble`: filters of events; `begin`: show events at or after this offset; `steps`: the number of the
    first operation to show.
    """

    id: str = ""
    at: Annotated[int | None, Field(ge=0, le=2**63)] = None
    with_: Annotated[int | None, Field(alias="with", ge=0, le=2**63)] = None
    nth: _Number = None
    type: str = ""
    step: str = ""
    text: str = ""
    trouble: str = ""
    begin: _Number = None
    steps: _Number = None

    def chosen(self) -> dict[str, str]:
        """The filters of events that are set."""
        return {name: text for name, text in self.model_dump(include={"type", "step", "text", "trouble"}).items() if text}


class PayloadQuery(BaseModel, extra="ignore"):
    """Which payload: one of the run, or the whole event at `offset`. `save`: download it as a file."""

    id: str = ""
    part: Literal["input", "result", "error", "event"]
    save: bool = False
    offset: Annotated[int | None, Field(ge=0, le=2**63)] = None


def named(call: HttpCall) -> str:
    return checked_id(call.path["id"] or call.query.id)


async def moments(call: HttpCall, run_id: str, at: int | None = None) -> tuple[Moment, Moment]:
    """The run as it is now, and as it was after the offset `at`. Raises RunNotFound and LogUnavailable."""
    past, log = await past_of(call, run_id), call.service.client.log
    now = past.now()
    return now, now if at is None else past.at(at, log)


async def view(call: HttpCall) -> dict[str, Any]:
    """The template's values of a run."""
    query: RunQuery = call.query
    run_id = named(call)
    whole, then = await moments(call, run_id, query.at)
    assert then.run is not None
    run, payload = then.run, call.caller.may(Role.PAYLOAD)
    context = around(call)
    past = query.at is not None
    if past:
        context["now"] = then.events[-1].timestamp or then.events[-1].at
    path = run_path(run_id)
    asked = askers(then.select(types=ASKING))
    return context | {
        "active": "",
        "query": query,
        "run": run,
        "path": path,
        "state": run_state(run, then.owner is not None),
        "owner": then.owner,
        "by": asked["by"],
        "why": asked["why"],
        "cancelled_by": asked["cancelled_by"],
        "at_line": asked["at_line"] if payload else None,
        "past": past,
        "parent": run.parent,
        "parent_path": None if run.parent is None else run_path(run.parent.run_id),
        "partition": then.state.partition,
        "last": then.events.offset(-1),
        "waits": waits_for(call.caller, waits(run, then.owner is not None)),
        "parts": _parts(run, run_id, payload),
        "published": _published(run, payload),
        "error": None if run.error is None or not payload else ErrorInfo.from_json(run.error),
        "live": not past and not run.ended,
        "over": run.ended,
        **_offered(run),
        **_slider(whole, then, path),
        **_steps(then, context["now"], query.steps, payload),
        **_events(then, query, payload),
    }


def _offered(run: RunState) -> dict[str, Any]:
    """The requests that the run accepts now, the signals that it waits for, and the callbacks to answer."""
    return {
        "actions": actions(run),
        "signals": sorted({getattr(op, "signal", "") for op in run.open.values() if not run.ended} - {""}),
        "answers": [step_id for step_id, op in run.open.items() if "complete" in op.actions and not run.ended],
    }


def _parts(run: RunState, run_id: str, payload: bool) -> list[tuple[str, str, int, str]]:
    """The payloads of the run: name, beginning, length, and the path of the whole."""
    if not payload:
        return []
    parts: list[tuple[str, Any]] = [("input", run.input)]
    if run.phase == "completed":
        parts.append(("result", run.result))
    return [(name, *excerpt(value), payload_path(run_id, part=name)) for name, value in parts]


def _published(run: RunState, payload: bool) -> list[dict[str, Any]]:
    """The last values that the run has published: key, number, time, and the beginning of the value."""
    shown = [(key, last, *excerpt(last.value)) for key, last in published_by(run).items()] if payload else []
    return [
        {"key": key, "seq": last.seq, "at": last.at, "value": text[:PUBLISHED], "cut": length > PUBLISHED}
        for key, last, text, length in shown
    ]


def _slider(whole: Moment, then: Moment, path: str) -> dict[str, Any]:
    """The number of the event after which `then` is, and links to the points before and after it."""
    assert whole.run is not None
    events = whole.events
    nth = len(then.events) if then.has(whole.run) else 1
    before = events.offset(nth - 2) if nth > 1 else None
    behind = events.offset(nth) if nth < len(events) else None
    return {
        "nth": nth,
        "newest": events.offset(-1),
        "events_now": len(events),
        "before": None if before is None else with_query(path, at=before),
        "behind": None if behind is None else with_query(path, at=behind),
        "shown_event": then.events[-1],
    }


def _steps(then: Moment, now_ms: int, first: int | None, payload: bool) -> dict[str, Any]:
    """A page of the operations, with their bars."""
    run, total = then.run, then.operations
    assert run is not None
    begin = max(total - STEPS, 0) if first is None else min(first - 1, max(total - 1, 0))
    chosen = then.story(begin, STEPS)
    end = run.ended_at if run.ended_at is not None else now_ms
    known = [at for line in chosen for at, _ in line.points]
    start = min([run.started_at, *known]) if len(chosen) == total else min(known, default=run.started_at)
    if len(chosen) < total and begin + STEPS < total:
        end = max(known, default=end)
    scale = scale_of(chosen, start, end)
    return {
        "lines": [_line(line, now_ms, payload) | {"bars": bars(line, scale)} for line in chosen],
        "steps_total": total,
        "steps_first": begin + 1,
        "steps_before": max(begin - STEPS, 0) + 1 if begin else None,
        "steps_behind": begin + STEPS + 1 if begin + STEPS < total else None,
        "folds": scale.folds,
        "took": scale.end - scale.begin,
    }


def _line(line: Line, now_ms: int, payload: bool) -> dict[str, Any]:
    scope, slash, name = line.step_id.rpartition("/")
    words = note(line, now_ms, beside) if payload else ""
    return {
        "id": line.step_id,
        "scope": scope + slash,
        "name": name,
        "kind": line.kind,
        "became": line.became,
        "attempts": attempts_in_words(line),
        "queued": line.queued_ms,
        "ran": line.ran_ms,
        "note": words,
        "child": None if line.child is None else _linked(words, line.child),
        "where": line.at_line or "",
    }


def _linked(words: str, child: str) -> dict[str, str]:
    """A note with a link to the run `child`: the words before and behind it."""
    before, found, after = words.partition(f"run {child}")
    return {"id": child, "path": run_path(child), "before": f"{before}run " if found else joined(words, "run "), "after": after}


def _events(then: Moment, query: RunQuery, payload: bool) -> dict[str, Any]:
    run = then.run
    assert run is not None
    chosen = query.chosen()
    found = matching(then, type=query.type, step=query.step, text=query.text, trouble=bool(query.trouble), payload=payload)
    rows, older, newer = window(found, query.begin)
    path = with_query(run_path(run.id), at=query.at, **chosen)
    return {
        "chosen": chosen,
        "events": [row(event, run.started_at, payload) for event in rows],
        "events_found": len(found),
        "events_total": len(then.events),
        "types": then.types(),
        "older": None if older is None else f"{with_query(path, begin=older)}#history",
        "newer": None if newer is None else f"{with_query(path, begin=newer)}#history",
    }


async def _mark(call: HttpCall) -> object:
    """The offset after the last record of the run or the last claim."""
    return (await past_of(call, named(call))).offset


async def page(call: HttpCall) -> Response:
    base = call.request.scope.get("root_path", "")
    if not (call.path["id"] or call.query.id):
        return RedirectResponse(f"{base}/", 303)
    if call.query.nth is not None:
        run_id = named(call)
        then = (await past_of(call, run_id)).after(call.query.nth, call.service.client.log)
        return RedirectResponse(base + with_query(run_path(run_id), at=then.events.offset(-1)), 303)
    if wanted(call):
        return await stream(call, "run_fragment.html", view, _mark)
    return show(call, "run.html", **await view(call))


async def payload(call: HttpCall) -> Response:
    """One whole payload, as plain text."""
    query: PayloadQuery = call.query
    whole, _ = await moments(call, named(call))
    run = whole.run
    assert run is not None
    if query.part == "event":
        value = _record(whole, query.offset)
    else:
        value = {"input": run.input, "result": run.result, "error": run.error}[query.part]
    text = shown_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    headers = {"Content-Disposition": f'attachment; filename="{query.part}.json"'} if query.save else None
    return Response(text, headers=headers, media_type="text/plain; charset=utf-8")


def _record(whole: Moment, offset: int | None) -> dict[str, Any]:
    if offset is None or not whole.events.has(offset):
        raise HttpRefusal(404, "not-found", "the run has no event at this offset")
    event = whole.events[whole.events.from_offset(offset)]
    return event.model_dump(mode="json", exclude_unset=True, by_alias=True)
