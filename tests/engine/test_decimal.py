"""Each run, and each attempt of a step, has a decimal context of its own: what one changes, no other sees."""

from __future__ import annotations

import asyncio
from decimal import Context as Decimals
from decimal import Decimal, Inexact, getcontext, setcontext
from typing import Annotated, Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S
from pydantic import AfterValidator, BaseModel, PlainSerializer

from stepfold import Client, Context, Retry, Run, Step, StepFailed
from stepfold.replay.contexts import contexts

THIRD = str(Decimal(1) / 3)
getcontext()  # the one of this test run exists, so that all contexts are copied from one that holds it


def third() -> str:
    return str(Decimal(1) / 3)


async def third_on_the_loop() -> str:
    return third()


def spoil(value: Any = None) -> Any:
    getcontext().prec = 2
    getcontext().Emax = 1
    getcontext().traps[Inexact] = True
    return value


async def spoil_on_the_loop() -> None:
    spoil()


def spoil_and_fail() -> str:
    found = third()
    spoil()
    raise ValueError(found)


class Spoils(Exception):
    def __str__(self) -> str:
        return spoil("spoilt")


class Spoiling(BaseModel):
    number: Annotated[int, AfterValidator(spoil), PlainSerializer(spoil)] = 1


def polite_of(client: Client) -> Any:
    @client.workflow(id="polite")
    async def polite(ctx: Context, step: Step) -> list[str]:
        before = third()
        await step.wait_for_signal("go", signal="go")
        return [before, third(), await step.run("plain", third), await step.run("async", third_on_the_loop)]

    return polite


async def ended(client: Client, workflow_id: str) -> str:
    """How a run ends. To be called in a context of its own: the client asks the model, too."""
    run = await client.start_workflow(workflow_id, {"number": 2})
    return await eventually(lambda: ended_as(run))


async def ended_as(run: Run[Any]) -> str:
    status = await run.status()
    return status.state if status.ended_at else ""


async def test_what_a_run_does_to_it_reaches_no_other(client: Client) -> None:
    polite = polite_of(client)

    @client.workflow(id="spoiling")
    async def spoiling(ctx: Context[Spoiling], step: Step) -> Spoiling:
        await step.run("plain", spoil)
        await step.run("async", spoil_on_the_loop)
        spoil()
        with pytest.raises(StepFailed, match=THIRD):
            await step.run("fails", spoil_and_fail, retry=Retry(2, backoff="1ms"))
        return Spoiling()

    @client.workflow(id="failing")
    async def failing(ctx: Context[Spoiling], step: Step) -> None:
        raise Spoils

    async with client.worker():
        running = await client.start_workflow(polite, run_id="running")
        ends = [await asyncio.create_task(ended(client, one.id), context=contexts()()) for one in (spoiling, failing)]
        assert ends == ["completed", "failed"]
        later = await client.start_workflow(polite, run_id="later")
        for run in (running, later):
            await run.signal("go")
            assert await run.result(LIMIT_S) == [THIRD] * 4
    assert third() == THIRD


async def test_the_one_of_the_program_holds_for_all_code_and_on_each_replay(new_log: NewLog) -> None:
    setcontext(Decimals(prec=7))

    def client_of() -> Client:
        client = Client(driver=new_log())

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> list[str]:
            before = third()
            getcontext().prec = 4
            await step.wait_for_signal("go", signal="go")
            return [before, third(), await step.run("plain", third), await step.run("async", third_on_the_loop)]

        return client

    client = client_of()
    async with client.worker():
        run = await client.start_workflow("w", run_id="r")
        await eventually(lambda: waits(run))
        getcontext().prec = 2  # too late for this worker
        await client.start_workflow("w", run_id="r2")
        await eventually(lambda: waits(client.run("r2")))
    setcontext(Decimals(prec=7))
    client = client_of()
    async with client.worker():
        for run_id in ("r", "r2"):
            run = client.run(run_id)
            await run.signal("go")
            assert await run.result(LIMIT_S) == ["0.3333333", "0.3333", "0.3333333", "0.3333333"]


async def waits(run: Run[Any]) -> list[str]:
    return (await run.status()).waiting_on
