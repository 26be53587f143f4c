"""The route that shows the values that a run has published."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from ..operations.publish import published_by
from ..values.times import utc
from .models import place_of_view
from .routing import Answer, HttpCall, Role, Row
from .runs import PastOffset, past_of, run_id_of, view_of


class PublishedValue(BaseModel):
    """The last value of a key. `seq`: how many were published under the key; `at`: the log's time of the last one."""

    value: Any
    seq: int
    at: datetime


class PublishedNow(BaseModel):
    """The last values that a run has published, by key, after the record at `offset`."""

    id: str
    partition: int
    offset: int
    values: dict[str, PublishedValue]


async def get_published(call: HttpCall) -> Answer:
    """Show the last value of each key that a run has published, as it is now, or as it was after the record at an offset.

    The history of the run, as a stream, has all values as they come: its events of the type `published`.
    """
    log = call.service.client.log
    at = call.query.at
    view = await view_of(call) if at is None else (await past_of(call, run_id_of(call))).at(at, log)
    run = view.found(log)
    values = {key: PublishedValue(value=last.value, seq=last.seq, at=utc(last.at)) for key, last in published_by(run).items()}
    return Answer(PublishedNow(id=run.id, values=values, **place_of_view(view)))


ROWS = (
    Row(
        method="GET",
        path="/v1/runs/{id}/published",
        role=Role.PAYLOAD,
        name="get_published",
        handler=get_published,
        query=PastOffset,
        answers={200: PublishedNow},
    ),
)
