"""Users' classes that the worker asks to read a value cannot cancel the tasks of the worker."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import neighbour_of, quarantined
from one_run import LIMIT_S
from pydantic import BaseModel, Field, field_validator

from stepfold import Client, Context, Step, WorkflowFailed


def cancels(value: int) -> int:
    cast(Any, asyncio.current_task()).cancel()
    return value


class CancelsWhenRead(BaseModel):
    n: int

    _read = field_validator("n")(cancels)


class Completed(CancelsWhenRead):
    made: UUID = Field(default_factory=uuid4)


@pytest.mark.parametrize("kind", ["signal", "callback"])
async def test_a_type_that_cancels_the_task_that_reads_it_stops_its_run_alone(client: Client, kind: str) -> None:
    async def answer(callback_id: str) -> None:
        await client.complete_callback(callback_id, {"n": 1})

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        if kind == "signal":
            await step.wait_for_signal("w", signal="s", schema=CancelsWhenRead)
        else:
            await step.wait_for_callback("c", answer, schema=CancelsWhenRead)

    neighbour = neighbour_of(client)
    async with client.worker():
        run = await client.start_workflow(w)
        await run.signal("s", {"n": 1})
        await eventually(lambda: quarantined(run))
        assert await (await client.start_workflow(neighbour, 1)).result(LIMIT_S) == 2


async def test_a_type_that_cancels_the_task_that_completes_an_input_stops_its_run_alone(new_log: NewLog) -> None:
    client, other = Client(driver=new_log()), Client(driver=new_log())

    @client.workflow(id="w")
    async def w(ctx: Context[Completed], step: Step) -> None: ...

    neighbour = neighbour_of(client)
    async with client.worker(), other:
        assert await (await client.start_workflow(neighbour, 0)).result(LIMIT_S) == 1
        run = await other.start_workflow("w", {"n": 1})
        with pytest.raises(WorkflowFailed):
            await run.result(LIMIT_S)
        assert await (await client.start_workflow(neighbour, 1)).result(LIMIT_S) == 2
