"""The forms of the pages: what browsers send, when two of them are one request, and how a refused one stays in its page."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import orjson
from pydantic import BaseModel

from ...client.requests import Sender
from ...errors import StepfoldError
from ...values.codec import Written
from ..problems import HttpRefusal, ProblemDetail, refusal
from ..routing import HttpCall

NAMELESS = "dashboard"
"""The name in `by` if the server knows no names."""
STAYS = (409, 413, 422, 503)
"""The statuses of a refused form that the page shows again."""
REFUSALS = (HttpRefusal, StepfoldError, ValueError)


class RefusedForm(NamedTuple):
    """A refused form, which the page shows with its content and the reason."""

    form: BaseModel
    problem: ProblemDetail


def kept(form: BaseModel, error: Exception) -> RefusedForm:
    """The form that one of `REFUSALS` refused. Raises the error if the page cannot help with it."""
    refused = HttpRefusal(422, "invalid", str(error)) if type(error) is ValueError else refusal(error)
    if refused.problem.status not in STAYS:
        raise error
    return RefusedForm(form, refused.problem)


def sender(call: HttpCall, why: str) -> Sender:
    """The sender of what a form asks for, with the words of its field `why`."""
    return Sender(call.caller.name or NAMELESS, why.strip() or None)


def request_of(call: HttpCall, form: BaseModel, place: str, seen: str) -> str:
    """The id of the request that a form makes at a place. Equal forms by the same person, from the same state of the
    page, `seen`, are one request: a double click, and a browser that sends again. "" for `seen`: each is a request of its own."""
    if not seen:
        return call.service.client.ids()
    said = [place, seen, sender(call, "").by, form.model_dump()]
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class StartForm(BaseModel, extra="allow"):
    """A run to start. `data`: JSON; "" is null. `run_id`: "" for one that is made. `form`: `json` if the input is `data`; else it
    is in the controls of its model, which are further fields. `do`: the button that was pressed; `key`: of the page."""

    workflow: str = ""
    data: str = ""
    run_id: str = ""
    why: str = ""
    form: str = ""
    do: str = ""
    key: str = ""

    def typed(self) -> dict[str, str]:
        """The fields of controls."""
        return {name: value for name, value in (self.model_extra or {}).items() if isinstance(value, str)}


class ActForm(BaseModel, extra="ignore"):
    """An action on a run. `id`: of a run whose id cannot be in a path; `at`: the offset of its last event in the page. `name` of
    a signal; `step` of a callback, `message` of its failure."""

    at: str = ""
    do: Literal["signal", "cancel", "complete", "fail"]
    id: str = ""
    name: str = ""
    step: str = ""
    data: str = ""
    message: str = ""
    why: str = ""


def data(text: str) -> Written | None:
    """The JSON of a field. Raises HttpRefusal."""
    if not text.strip():
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise HttpRefusal(422, "not-json", f'the data are not JSON: {error}. A text needs its quotes: "text"') from None
    return Written(text.encode())
