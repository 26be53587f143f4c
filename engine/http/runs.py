"""The routes of runs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ..client.status import status_json
from .routing import Answer, HttpCall, Role, Row


class RunNow(BaseModel):
    """The state of a run, from the fold."""

    id: str
    workflow: str
    version: str | None
    state: str
    started_at: str
    ended_at: str | None
    waiting_on: list[str]
    steps_completed: int
    reason: str | None
    input: Any = None
    result: Any = None
    error: Any = None


async def get_run(call: HttpCall) -> Answer:
    client = call.service.client
    async with client.patience():
        view = await client.views.read(call.path["id"])
    run = view.found(client.log)
    found = status_json(run, view.owner is not None)
    if not call.caller.may(Role.PAYLOAD):
        found |= {"input": None, "result": None, "error": None}
    return Answer(RunNow.model_validate(found))


ROWS = (Row(method="GET", path="/v1/runs/{id}", role=Role.VIEW, name="get_run", handler=get_run, answers={200: RunNow}),)
