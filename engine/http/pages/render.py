"""Renders templates, with the texts and URLs that all of them use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ...log import KeepsDeadLetters
from ...values.text import shown, shown_json
from ...values.times import ms_of
from ...values.words import iso, span
from ..problems import HttpRefusal
from ..routing import Caller, HttpCall, Role, no_route, unrouted
from ..schemas import known_workflows
from .forms import RefusedForm
from .look import look_of
from .static import VERSION
from .times import moment, remarked, time, timed

EXCERPT = 2000
"""A page shows this many characters of a payload at first."""
NAVIGATION = (
    ("/", "Runs", "r"),
    ("/workflows", "Workflows", "f"),
    ("/errors", "Errors", "e"),
    ("/history", "History", "h"),
    ("/audit", "Audit", "a"),
    ("/dead-letters", "Dead letters", "l"),
    ("/workers", "Workers", "w"),
    ("/dashboards", "Dashboards", "d"),
    ("/start", "Start", "s"),
)
"""The pages: path, name, and the key to press after `g`."""
ICONS = {
    "pending": "◌",
    "running": "▶",
    "waiting": "◔",
    "quarantined": "⚠",
    "completed": "✔",
    "failed": "✗",
    "cancelled": "⊘",
}
MARKS = {
    "done": ("✔", "completed"),
    "failed": ("✗", "failed"),
    "open": ("…", "running"),
    "dropped": ("–", "cancelled"),
    "timed out": ("◔", "waiting"),
}

_DOTS = (".", "..")


def run_path(run_id: str) -> str:
    """The path of a run's page. Browsers read the ids `.` and `..` as folders, so these go into the query."""
    return f"/runs/?{urlencode({'id': run_id})}" if run_id in _DOTS else f"/runs/{quote(run_id, safe='')}"


def payload_path(run_id: str, **part: str | int) -> str:
    """The path of one payload of a run."""
    where = "/payload/" if run_id in _DOTS else f"/payload/{quote(run_id, safe='')}"
    return f"{where}?{urlencode(part | ({'id': run_id} if run_id in _DOTS else {}))}"


def board_path(name: str) -> str:
    """The path of a user's dashboard."""
    return f"/dashboards/{quote(name, safe='')}"


def with_query(path: str, **more: str | int | None) -> str:
    """The path with these parameters added to its query; None leaves one out."""
    known = {name: value for name, value in more.items() if value is not None}
    return path if not known else f"{path}{'&' if '?' in path else '?'}{urlencode(known)}"


def ago(ms: int, now_ms: int) -> str:
    """A time relative to now, in its largest unit: `3 h ago`, `in 5 min`."""
    past = now_ms - ms
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if abs(past) >= length:
            amount = f"{abs(past) // length} {unit}"
            return f"{amount} ago" if past > 0 else f"in {amount}"
    return "now"


def excerpt(value: Any) -> tuple[str, int]:
    """The first `EXCERPT` characters of the value's indented JSON, and its whole length in characters."""
    text = shown_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    return text[:EXCERPT], len(text)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "shown": shown,
        "span": span,
        "iso": iso,
        "ago": ago,
        "ms": ms_of,
        "time": time,
        "timed": timed,
        "remarked": remarked,
        "moment": moment,
    }
    made.filters.update(filters)
    words: dict[str, Any] = {
        "run_path": run_path,
        "payload_path": payload_path,
        "board_path": board_path,
        "with_query": with_query,
        "ICONS": ICONS,
        "MARKS": MARKS,
        "VERSION": VERSION,
        "NAVIGATION": NAVIGATION,
    }
    made.globals.update(words)
    return made


_ENVIRONMENT = _environment()


def text(template: str, context: Mapping[str, Any]) -> str:
    return _ENVIRONMENT.get_template(template).render(context)


def around(call: HttpCall) -> dict[str, Any]:
    """The values that every template gets from the request."""
    return {
        "base": call.request.scope.get("root_path", ""),
        "now": call.service.client.log.now(),
        "log": call.service.client.log.name,
        "may": {role.value: call.caller.may(role) for role in Role},
        "who": call.caller.name,
        "inbox": isinstance(call.service.client.log, KeepsDeadLetters),
        "q": "",
        "look": look_of(call.request),
        "known": list(known_workflows(call.service.client)),
        "refused": None,
    }


def show(call: HttpCall, template: str, **context: Any) -> Response:
    """Render the page. `refused`: the form that it shows again."""
    refused: RefusedForm | None = context.get("refused")
    return HTMLResponse(text(template, around(call) | context), 200 if refused is None else refused.problem.status)


async def nowhere(request: Request, error: Exception) -> Response:
    """The answer to a request that no route fits: a page for a browser, a problem for other clients."""
    accepted = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
    if "text/html" not in accepted:
        return await no_route(request, error)
    return refused(unrouted(error), request)


def refused(refusal: HttpRefusal, request: Request) -> Response:
    """The page of an error."""
    caller: Caller = request.scope["stepfold.caller"]
    problem = refusal.problem
    context: dict[str, Any] = {
        "base": request.scope.get("root_path", ""),
        "log": "",
        "may": {role.value: caller.may(role) for role in Role},
        "who": caller.name,
        "inbox": False,
        "q": "",
        "active": "",
        "look": look_of(request),
        "known": [],
        "problem": problem,
    }
    return HTMLResponse(text("problem.html", context), problem.status, refusal.headers)
