"""Code that does not give the worker's loop back is named and taken out, its neighbours go on, and the engine goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import neighbour_of, quarantined, swallows_all
from one_run import LIMIT_S
from pydantic import BaseModel, field_serializer, field_validator

import stepfold.worker.watchdog
from stepfold import Client, Context, Run, Step, StepFailed
from stepfold.projections.audit import export_run, replay

# What is raised into code may arrive while somebody's callback of the garbage collector runs in it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOOK_S": 0.02, "WARN_S": 0.1, "STOP_S": 0.4, "INSIST_S": 0.1, "GIVE_UP_S": 0.3}.items():
        monkeypatch.setattr(stepfold.worker.watchdog, name, value)


async def spins(ctx: Context, step: Step) -> None:
    while True:
        pass


async def swallows_in_handlers(ctx: Context, step: Step) -> None:
    def again(depth: int) -> None:
        while True:
            try:
                again(depth - 1) if depth else time.sleep(0)
            except BaseException:  # noqa: BLE001  # that is what is tried
                with contextlib.suppress(BaseException):
                    sum(range(100))

    again(5)


async def spins_over_bad_calls(ctx: Context, step: Step) -> None:
    while True:
        with contextlib.suppress(BaseException):
            await step.sleep("not#an#id", 1)


async def spins_after_a_step(ctx: Context, step: Step) -> None:
    await step.run("a", str)
    try:
        await step.sleep("nap", 0.01)
    finally:
        while True:
            with contextlib.suppress(Exception):
                len("")


async def spins_and_leaves_callbacks_behind(ctx: Context, step: Step) -> None:
    for _ in range(20):
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
    while True:
        pass


class Slow:
    def __str__(self) -> str:
        number = 1
        while number:
            number += 1
        return ""


async def cannot_be_said(ctx: Context, step: Step) -> None:
    raise ValueError(Slow())


async def blocks(ctx: Context, step: Step) -> None:
    time.sleep(0.6)  # noqa: ASYNC251  # that is what is tried


@pytest.mark.parametrize(
    "handler",
    [
        spins,
        swallows_all,
        swallows_in_handlers,
        spins_over_bad_calls,
        spins_after_a_step,
        spins_and_leaves_callbacks_behind,
        cannot_be_said,
        blocks,
    ],
    ids=lambda handler: handler.__name__,
)
async def test_code_that_holds_the_loop_is_put_aside_and_its_neighbours_go_on(
    new_log: NewLog, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(driver=new_log())
    workflow = client.workflow(id="hog")(handler)
    neighbour = neighbour_of(client)
    source = f"{Path(handler.__code__.co_filename).name}:"
    async with client.worker():
        before = await client.start_workflow(neighbour, 1)
        hog = await client.start_workflow(workflow, run_id="hog-1")
        after = await client.start_workflow(neighbour, 2)
        assert await before.result(LIMIT_S) == 2 and await after.result(LIMIT_S) == 3
        status = await eventually(lambda: quarantined(hog))
        assert status is not None and status.error is not None
        assert "did not return" in status.error.message and source in status.error.message
        assert "step.run" in status.error.message
        later = await client.start_workflow(neighbour, 3)
        assert await later.result(LIMIT_S) == 4
        await hog.cancel("enough")
        await eventually(lambda: cancelled(hog))
    told = said(caplog, "has kept the worker's loop busy", "hog-1")
    assert told and all(source in record.getMessage() for record in told)


def said(caplog: pytest.LogCaptureFixture, words: str, run_id: str) -> list[logging.LogRecord]:
    """What was said of a run. With so little patience others may be named too, on a busy machine."""
    return [record for record in caplog.records if words in record.getMessage() and record.__dict__.get("run_id") == run_id]


async def cancelled(run: Run[Any]) -> bool:
    return (await run.status()).state == "cancelled"


async def test_a_step_that_blocks_the_loop_is_named_and_nothing_else(new_log: NewLog, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(driver=new_log())

    async def sleeps() -> str:
        time.sleep(0.6)  # noqa: ASYNC251  # that is what is tried
        return "slept"

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> str:
        return await step.run("naps", sleeps)

    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        assert await run.result(LIMIT_S) == "slept"

        await eventually(lambda: asyncio.sleep(0, said(caplog, "kept the worker's loop busy for", "r")))
    warned = said(caplog, "has kept the worker's loop busy", "r")[0]
    assert "step naps of run r" in warned.getMessage() and "test_watchdog.py:" in warned.getMessage()
    assert warned.levelno == logging.WARNING and warned.__dict__["step_id"] == "naps"


class Silent(Exception):
    def __str__(self) -> str:
        number = 1
        while number:
            number += 1
        return ""


class Endless(BaseModel):
    number: int = 1

    @field_serializer("number")
    def endless(self, number: int) -> int:
        while True:
            pass


class Unread(BaseModel):
    number: int = 1

    @field_validator("number")
    @classmethod
    def endless(cls, number: int) -> int:
        while True:
            pass


def holds_the_interpreter(power: int) -> int:
    return sum((7**power).bit_count() for _ in range(2))


async def test_a_plain_step_that_holds_the_interpreter_is_named_afterwards(
    new_log: NewLog, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="w")
    async def w(ctx: Context[int], step: Step) -> int:
        return await step.run("holds", holds_the_interpreter, ctx.input.data)

    def told() -> bool:
        return any("a call held the interpreter for" in one and "test_watchdog.py:" in one for one in caplog.messages)

    async with client.worker():
        for power in (1_000_000, 2_000_000, *[4_000_000] * 20):  # more, until this machine takes long enough and is not too busy
            await (await client.start_workflow(w, power)).result(LIMIT_S)
            if told():
                return
    assert told()


async def fails_in_silence() -> None:
    raise Silent


async def gives_what_cannot_be_written() -> Endless:
    return Endless()


@pytest.mark.parametrize(
    ("step_fn", "error"),
    [
        (fails_in_silence, "Silent: its message cannot be shown"),
        (gives_what_cannot_be_written, "ValueInvalid: the result of step 'a'"),
    ],
)
async def test_what_users_classes_are_asked_about_a_step_comes_back_or_is_left_out(
    new_log: NewLog, step_fn: Any, error: str
) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> str:
        try:
            await step.run("a", step_fn)
        except StepFailed as failed:
            return f"{failed.attempts}: {failed.error}"
        return ""

    neighbour = neighbour_of(client)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        beside = await client.start_workflow(neighbour, 1)
        assert await beside.result(LIMIT_S) == 2
        told = await run.result(LIMIT_S)
    assert told.startswith("1: ") and error in told


async def test_an_input_that_is_never_checked_stops_its_run_alone(new_log: NewLog) -> None:
    client = Client(driver=new_log())

    async def workflow(ctx: Context[Unread], step: Step) -> None: ...

    neighbour = neighbour_of(client)
    async with client.worker():
        run = await client.start_workflow("w", {"number": 1}, run_id="r")  # by somebody who does not know its input
        client.workflow(id="w")(workflow)
        beside = await client.start_workflow(neighbour, 1)
        assert await beside.result(LIMIT_S) == 2
        status = await eventually(lambda: quarantined(run))
        assert status is not None and status.error is not None
        assert "did not return" in status.error.message and "test_watchdog.py:" in status.error.message


async def gives_back_what_cannot_be_written(ctx: Context, step: Step) -> Endless:
    return Endless()


@pytest.mark.parametrize("handler", [gives_back_what_cannot_be_written, cannot_be_said])
async def test_the_next_owner_finds_that_an_end_still_cannot_be_written(new_log: NewLog, handler: Any) -> None:
    log = new_log()
    client = Client(driver=log)
    workflow = client.workflow(id="hog")(handler)
    client.workflow(id="other")(spins)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="hog-1")
        await eventually(lambda: quarantined(run))
    async with client.worker():
        later = await client.start_workflow("other", run_id="later")
        await eventually(lambda: quarantined(later))
        kinds = [event.type for event in await client.run("hog-1").history()]
    assert kinds.count("quarantined") == 1 and "resumed" not in kinds


async def test_a_replay_of_code_that_does_not_come_back_says_so(new_log: NewLog) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> int:
        return await step.run("a", int)

    async with client.worker():
        run = await client.start_workflow(workflow)
        assert await run.result(LIMIT_S) == 0
        file = io.BytesIO()
        await export_run(client.log, run.id, file)
    other = Client("memory://")
    other.workflow(id="w")(swallows_all)
    found = replay(io.BytesIO(file.getvalue()), other)
    assert found.outcome == "diverges" and "did not return" in found.message and "neighbours.py:" in found.source[0]
