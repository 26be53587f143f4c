"""The forms of the pages: their fields, when two of them are the same request, and how a page shows a refused one again."""

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
"""The `by` of requests if the server does not authenticate callers."""
STAYS = (409, 413, 422, 503)
"""The page shows a refused form again for these statuses."""
REFUSALS = (HttpRefusal, StepfoldError, ValueError)


class RefusedForm(NamedTuple):
    """A refused form, which the page shows again with its content and the reason."""

    form: BaseModel
    problem: ProblemDetail


def kept(form: BaseModel, error: Exception) -> RefusedForm:
    """The form that one of `REFUSALS` refused. Raises `error` if its status is not in `STAYS`."""
    refused = HttpRefusal(422, "invalid", str(error)) if type(error) is ValueError else refusal(error)
    if refused.problem.status not in STAYS:
        raise error
    return RefusedForm(form, refused.problem)


def sender(call: HttpCall, why: str) -> Sender:
    """The sender of a form's request, with the text of its field `why`."""
    return Sender(call.caller.name or NAMELESS, why.strip() or None)


def request_of(call: HttpCall, form: BaseModel, place: str, seen: str) -> str:
    """The id of a form's request. `place`: what the form is about; `seen`: the state that the page showed.

    Equal forms by the same person from the same state are one request, as after a double click. With "" for `seen` each form is a
    request of its own.
    """
    if not seen:
        return call.service.client.ids()
    said = [place, seen, sender(call, "").by, form.model_dump()]
    return hashlib.sha256(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class StartForm(BaseModel, extra="allow"):
    """A run to start. `data`: JSON; "" is null. `run_id`: "" for a random id. `form`: `json` if the input is `data`; else the
    input is in controls, which are further fields. `do`: the button that was pressed; `key`: of the page."""

    workflow: str = ""
    data: str = ""
    run_id: str = ""
    why: str = ""
    form: str = ""
    do: str = ""
    key: str = ""

    def typed(self) -> dict[str, str]:
        """The further fields: what people typed into controls."""
        return {name: value for name, value in (self.model_extra or {}).items() if isinstance(value, str)}


class ActForm(BaseModel, extra="ignore"):
    """An action on a run. `id`: of a run whose id cannot be in a path; `at`: the offset of the last event that the page showed.
    `name`: of a signal; `step`: of a callback; `message`: of the callback's failure."""

    at: str = ""
    do: Literal["signal", "cancel", "complete", "fail"]
    id: str = ""
    name: str = ""
    step: str = ""
    data: str = ""
    message: str = ""
    why: str = ""


def data(text: str) -> Written | None:
    """The JSON of a field; None for an empty one. Raises HttpRefusal for invalid JSON."""
    if not text.strip():
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise HttpRefusal(422, "not-json", f'the data are not JSON: {error}. A text needs its quotes: "text"') from None
    return Written(text.encode())
