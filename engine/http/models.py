"""The models that several routes share."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, cast, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field

from ..client.status import State
from ..client.view import RunView
from ..values.names import no_run_id, valid_name, valid_run_id

StateName = cast("type[StrEnum]", StrEnum("StateName", {state.upper(): state for state in get_args(State)}))
"""The states of runs."""


def _named(name: str) -> str:
    if not valid_name(name):
        raise ValueError("it must have 1 to 200 printable characters")
    return name


def an_id(run_id: str) -> str:
    """Returns the text if it is a valid run id, else raises ValueError."""
    if not valid_run_id(run_id):
        raise ValueError(no_run_id(run_id))
    return run_id


def _written(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    return text


def _timed(time: object) -> object:
    # pydantic would read a number as seconds or milliseconds since 1970
    if not isinstance(time, str | datetime) or (isinstance(time, str) and not re.match(r"\d{4}-", time)):
        raise ValueError("it must be a time with its offset from UTC, such as 2026-11-30T09:00:00Z")
    return time


def _counted(number: object) -> object:
    if isinstance(number, bool | float):
        raise ValueError("it must be a whole number")
    return number


WHOLE = BeforeValidator(_counted)
"""Validates a whole number in a query or in JSON. Write it after the bounds in `Annotated`, else the schema loses them."""
Name = Annotated[
    str,
    AfterValidator(_named),
    Field(min_length=1, max_length=200, json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$"}),
]
RunId = Annotated[str, AfterValidator(an_id)]
Words = Annotated[str, AfterValidator(_written), Field(max_length=10_000)]
Time = Annotated[AwareDatetime, BeforeValidator(_timed)]


class Asking(BaseModel, extra="forbid"):
    """The fields of every request. `by`: the sender's name, only from callers whose name the server does not know."""

    by: Name | None = None
    why: Words | None = None


class WaitNow(BaseModel):
    """One thing that a run waits for. `command` is null for callers who may not operate, `last` for those who may not see
    payloads."""

    on: str
    kind: str
    step_id: str | None
    since: datetime
    until: datetime | None
    who: str
    last: str | None
    last_at: datetime | None
    command: str | None


class RunNow(BaseModel):
    """The state of a run after the record at `offset`. Payloads are null for callers who may not see them. `reason`: why the run
    was cancelled. `parent`, `parent_step`: the run that started this one, and the operation there; null: no run did."""

    id: str
    workflow: str
    version: str | None
    parent: str | None
    parent_step: str | None
    state: State
    partition: int
    offset: int
    started_at: datetime
    ended_at: datetime | None
    waiting_on: list[str]
    waits: list[WaitNow]
    actions: list[str]
    steps_completed: int
    reason: str | None
    input: Any = None
    result: Any = None
    error: Any = None


class Accepted(BaseModel):
    """Where the log holds a request. `counts`: whether the run has accepted it; null if that is not known yet."""

    run_id: str
    partition: int
    offset: int
    counts: bool | None = None


def place_of_view(view: RunView) -> dict[str, int]:
    return {"partition": view.state.partition, "offset": view.state.offset - 1}
