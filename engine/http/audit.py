"""The route that lists requests: who asked for what, and why."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from stepfold.projections import ActionRow, list_actions
from stepfold.projections.actions import ActionPlace

from ..values.times import ms_of
from .headers import POSITION, next_page, reach
from .models import Name
from .problems import HttpRefusal
from .routing import Answer, HttpCall, Role, Row


class ActionsWanted(BaseModel, extra="forbid"):
    """Conditions on requests; all must hold. `type`: the types of their events; `cursor`: from the link to the next page."""

    by: Name | None = None
    type: Annotated[str, Field(max_length=50)] | None = None
    run_id: Name | None = None
    workflow: Name | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    cursor: Annotated[str, Field(max_length=60)] | None = None


class ActionsNow(BaseModel):
    """A page of requests, the newest first. `next`: the cursor of the next page; null on the last page."""

    actions: list[ActionRow]
    next: str | None


async def get_actions(call: HttpCall) -> Answer:
    """List the requests of people: starts, signals, cancellations and answers to callbacks, with who and why."""
    asked: ActionsWanted = call.query
    filters = asked.model_dump(include={"by", "type", "run_id", "workflow"}, exclude_none=True)
    await reach(call.service, call.request)
    rows, following = await actions_page(call, asked.limit, asked.cursor, filters)
    shown = ActionsNow(actions=rows, next=following)
    return Answer(shown, headers=next_page(call.request, "/v1/actions", following))


async def actions_page(
    call: HttpCall, limit: int, cursor: str | None, filters: dict[str, Any]
) -> tuple[list[ActionRow], str | None]:
    """A page of requests, and the cursor of the next page. Raises HttpRefusal for an invalid cursor."""
    after = None if not cursor else _place(cursor)
    rows = await call.service.read(list_actions, limit=limit + 1, after=after, **filters)
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], None if last is None else f"{ms_of(last.at)}-{last.partition}-{last.offset}"


def _place(cursor: str) -> ActionPlace:
    parts = cursor.split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) <= 18 for part in parts):
        raise HttpRefusal(422, "cursor-invalid", "the cursor is not one of a link to the next page")
    at, partition, offset = map(int, parts)
    return at, partition, offset


ROWS = (
    Row(
        method="GET",
        path="/v1/actions",
        role=Role.VIEW,
        name="list_actions",
        handler=get_actions,
        query=ActionsWanted,
        headers=(POSITION,),
        answers={200: ActionsNow},
        sends={200: ("Link",)},
    ),
)
