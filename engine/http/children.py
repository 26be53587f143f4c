"""The route that shows the runs that a run has started."""

from __future__ import annotations

from pydantic import BaseModel

from ..operations.child import ChildState, children_of
from .models import place_of_view
from .routing import Answer, HttpCall, Role, Row
from .runs import PastOffset, past_of, run_id_of


class ChildNow(BaseModel):
    """A run that another run has started, as far as the history of that run, its parent, says.

    `state`: `open` until the parent hears of the end, then `completed`, `failed` or `cancelled`; `detached` if it never hears of
    it; `timed-out` or `dropped` if it waits no longer; `refused` if no child began, because another start has the id.
    """

    id: str
    workflow: str
    step_id: str
    state: ChildState
    detached: bool


class ChildrenNow(BaseModel):
    """The children of a run after the record at `offset`, in the order in which its code started them."""

    id: str
    partition: int
    offset: int
    children: list[ChildNow]


async def get_children(call: HttpCall) -> Answer:
    """List the children of a run, detached ones too, as its history knows them now, or knew them after the record at an offset.

    The parent of a child is in the fields `parent` and `parent_step` of the child.
    """
    past, at = await past_of(call, run_id_of(call)), call.query.at
    log = call.service.client.log
    run = past.found(log)
    moment = past.now() if at is None else past.at(at, log)
    children = [ChildNow(**child._asdict()) for child in children_of(moment.story())]
    return Answer(ChildrenNow(id=run.id, children=children, **place_of_view(moment)))


ROWS = (
    Row(
        method="GET",
        path="/v1/runs/{id}/children",
        role=Role.VIEW,
        name="get_children",
        handler=get_children,
        query=PastOffset,
        answers={200: ChildrenNow},
    ),
)
