"""A `__del__` of users' classes, and a test of a flag, are code: they are taken out where they do not come back, or named."""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import ContextVar
from typing import Any, cast

import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import neighbour_of
from one_run import LIMIT_S
from test_watchdog import said

import stepfold.worker.watchdog
from stepfold import Client, Context, Retry, Run, Step

# Python tells of what is raised in a `__del__` as of an error that nobody can handle.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LINGERS_S = 20.0
"""For ever, but that a failing test ends."""

came_back: list[object] = []
"""What lingered to its end: nobody has taken it out."""

kept: ContextVar[Any] = ContextVar("kept")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    came_back.clear()
    for name, value in {"LOOK_S": 0.02, "WARN_S": 0.1, "STOP_S": 0.4, "INSIST_S": 0.1, "GIVE_UP_S": 0.3}.items():
        monkeypatch.setattr(stepfold.worker.watchdog, name, value)


def linger(one: object) -> bool:
    until = time.monotonic() + LINGERS_S
    while time.monotonic() < until:
        pass
    came_back.append(one)
    return True


class Lingers:
    __del__ = linger


class LingersAsText(str):
    __slots__ = ()
    __del__ = linger


class Undecided:
    __repr__ = cast(Any, linger)


def error_with_lingering() -> Exception:
    error: Any = ValueError("x")
    error.one = Lingers()
    return error


def add(a: int) -> int:
    return a + 1


async def as_argument(ctx: Context, step: Step) -> None:
    await step.run("a", lambda one: None, Lingers())


async def as_argument_of_a_failing_step(ctx: Context, step: Step) -> None:
    def fails(one: object) -> None:
        raise ValueError

    await step.run("a", fails, Lingers(), retry=Retry(1))


async def in_the_error_of_a_step(ctx: Context, step: Step) -> None:
    def fails() -> None:
        raise error_with_lingering()

    await step.run("a", fails, retry=Retry(1))


async def as_result(ctx: Context, step: Step) -> str:
    return LingersAsText("x")


async def in_the_error(ctx: Context, step: Step) -> None:
    raise error_with_lingering()


async def in_a_frame_of_the_error(ctx: Context, step: Step) -> None:
    one = Lingers()
    await step.run("a", add, 1)
    raise ValueError(id(one))


async def in_a_context_variable(ctx: Context, step: Step) -> None:
    kept.set(Lingers())


async def in_a_frame_that_spins(ctx: Context, step: Step) -> None:
    one = Lingers()
    while one:
        pass


async def in_a_frame_that_cannot_go_on(ctx: Context, step: Step) -> None:
    one = Lingers()
    await asyncio.Event().wait()
    del one


async def as_at_most_once(ctx: Context, step: Step) -> None:
    await step.run("a", add, 1, at_most_once=cast(Any, Undecided()))


async def as_record_input(ctx: Context, step: Step) -> None:
    await step.run("a", add, 1, record_input=cast(Any, Undecided()))


@pytest.mark.parametrize(
    "handler",
    [
        as_argument,
        as_argument_of_a_failing_step,
        in_the_error_of_a_step,
        as_result,
        in_the_error,
        in_a_frame_of_the_error,
        in_a_context_variable,
        in_a_frame_that_spins,
        in_a_frame_that_cannot_go_on,
        as_at_most_once,
        as_record_input,
    ],
    ids=lambda handler: handler.__name__,
)
async def test_what_lingers_is_named_and_taken_out_and_the_neighbours_go_on(
    new_log: NewLog, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(driver=new_log())
    workflow = client.workflow(id="hog")(handler)
    neighbour = neighbour_of(client)
    async with client.worker():
        hog = await client.start_workflow(workflow, run_id="hog-1")
        await eventually(lambda: at_rest(hog))
        beside = await client.start_workflow(neighbour, 1)
        assert await beside.result(LIMIT_S) == 2
        await eventually(lambda: asyncio.sleep(0, said(caplog, "kept the worker's loop busy for", "hog-1")))
    assert not came_back
    told = said(caplog, "has kept the worker's loop busy", "hog-1")
    assert told and all("test_freeing.py:" in record.getMessage() for record in told)


async def at_rest(run: Run[Any]) -> bool:
    return (await run.status()).state in ("completed", "failed", "quarantined")


async def test_code_of_no_run_that_holds_the_loop_is_named(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async with client.worker() as worker:
        await eventually(lambda: asyncio.sleep(0, worker.caught_up))
        asyncio.get_running_loop().call_soon(time.sleep, 0)
        await eventually(lambda: blocked(caplog))
    told = next(record for record in caplog.records if "code outside runs and steps" in record.getMessage())
    assert "test_freeing.py:" in told.getMessage() and told.levelno == logging.WARNING


async def blocked(caplog: pytest.LogCaptureFixture) -> bool:
    time.sleep(0.5)  # noqa: ASYNC251  # that is what is tried
    return any("code outside runs and steps" in record.getMessage() for record in caplog.records)
