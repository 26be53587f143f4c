"""The page that starts a run, with controls for its workflow's input."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ...values.codec import Written
from ...values.names import quoted, valid_name
from ..problems import HttpRefusal
from ..requests import check_startable
from ..routing import HttpCall
from ..runs import checked_id
from ..schemas import known_workflows, schema_of
from .forms import REFUSALS, StartForm, data, kept, request_of, sender
from .inputs import Control, changed, form_of, json_of, put_errors
from .look import look_of, zone_of
from .render import around, run_path, text


class StartQuery(BaseModel, extra="ignore"):
    """`workflow`: the workflow to start; `form`: `json` for one field of JSON instead of controls."""

    workflow: str = ""
    form: str = ""


@dataclass(slots=True)
class Filled:
    """The content of the form. `key`: of the page; `focus`: the name of the control to focus."""

    workflow: str
    as_json: bool
    data: str = ""
    run_id: str = ""
    why: str = ""
    key: str = ""
    errors: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    general: list[str] = field(default_factory=list[str])
    focus: str = ""


def _control(call: HttpCall, workflow: str, *, as_json: bool, typed: Mapping[str, str] | None = None) -> Control | None:
    """The controls of a workflow's input; None if the input must be typed as JSON."""
    known = known_workflows(call.service.client).get(workflow)
    schema = None if known is None or as_json else schema_of(known.input, taken=True)
    return form_of(schema, typed, _zone(call, typed)) if schema else None


def _zone(call: HttpCall, typed: Mapping[str, str] | None) -> Any:
    """The zone of the times in the form: the one that the browser sends, else the one in its settings."""
    return zone_of((typed or {}).get("zone", "")) or look_of(call.request).tz


def _page(call: HttpCall, filled: Filled, control: Control | None, status: int = 200) -> Response:
    known = known_workflows(call.service.client)
    chosen = known.get(filled.workflow)
    about = inspect.getdoc(chosen.handler) if chosen is not None else None
    context = around(call) | {
        "active": "/start",
        "workflows": list(known.values()),
        "chosen": chosen,
        "about": (about or "").partition("\n\n")[0],
        "filled": filled,
        "control": control,
        "controls_exist": chosen is not None and bool(schema_of(chosen.input, taken=True)),
        "wrong": sum(1 for one in control.all() if one.errors) if control is not None else 0,
    }
    return HTMLResponse(text("start.html", context), status)


async def start_page(call: HttpCall) -> Response:
    """The form that starts a run."""
    query: StartQuery = call.query
    known = known_workflows(call.service.client)
    workflow = query.workflow or (next(iter(known)) if len(known) == 1 else "")
    as_json = query.form == "json"
    return _page(call, Filled(workflow, as_json, key=call.service.client.ids()), _control(call, workflow, as_json=as_json))


async def start(call: HttpCall) -> Response:
    """Start a run. The answer redirects to its page, or shows the refused form."""
    form: StartForm = call.body
    typed = form.typed()
    filled = Filled(form.workflow.strip(), form.form == "json", form.data, form.run_id, form.why, form.key)
    if form.do.startswith(("add:", "drop:")):
        typed, filled.focus = changed(typed, form.do)
        return _page(call, filled, _control(call, filled.workflow, as_json=filled.as_json, typed=typed))
    control = _control(call, filled.workflow, as_json=filled.as_json, typed=typed)
    try:
        return await _started(call, filled, control, _zone(call, typed))
    except REFUSALS as error:
        problem = kept(form, error).problem
    if problem.code == "input-invalid" and control is not None and problem.errors:
        filled.general += put_errors(control, problem.errors)
    elif problem.code == "not-json":
        filled.errors["data"] = [problem.detail]
    elif problem.code in ("run-already-exists", "run-id-invalid"):
        filled.errors["run_id"] = [problem.detail]
    elif problem.code != "control":
        filled.general.append(problem.detail)
    return _page(call, filled, control, problem.status)


async def _started(call: HttpCall, filled: Filled, control: Control | None, zone: Any) -> Response:
    if not valid_name(filled.workflow):
        raise HttpRefusal(422, "invalid", f"{quoted(filled.workflow)} is not a workflow id: 1 to 200 printable characters")
    check_startable(filled.workflow)
    if control is None:
        entry = data(filled.data)
    else:
        written = json_of(control, zone)
        if any(one.errors for one in control.all()):
            raise HttpRefusal(422, "control", "")
        entry = None if written is None else Written(written.encode())
    run_id = filled.run_id.strip()
    run_id = checked_id(run_id) if run_id else request_of(call, call.body, "start", filled.key)
    asked = sender(call, filled.why)
    run = await call.service.client.start_workflow(filled.workflow, entry, run_id=run_id, by=asked.by, why=asked.why)
    return RedirectResponse(call.request.scope.get("root_path", "") + run_path(run.id), 303)
