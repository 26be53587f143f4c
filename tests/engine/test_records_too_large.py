"""A record that the log would refuse, or that JSON cannot hold: it ends its run alone, and no run waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import orjson
import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import neighbour_of, quarantined
from one_run import LIMIT_S
from pydantic import BaseModel, Field

from stepfold import Client, Context, Retry, Run, Step, StepFailed, WorkflowCancelled, WorkflowFailed, current_step
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver, SQLiteDriver, _local
from stepfold.errors import ErrorInfo, PayloadTooLarge
from stepfold.log import Ack, Entry, EntryTooLarge, Log, partition_of
from stepfold.worker.owner.appending import Appending

NEIGHBOURS = 6
"""Enough for each partition."""


def made_up(message: str) -> StepFailed:
    return StepFailed("x", 1, ErrorInfo("T", message))


HUGE, SURROGATE = "m" * 3_000_000, "m\ud800"


def fails_plainly(message: str) -> None:
    raise made_up(message)


async def fails(message: str) -> None:
    raise made_up(message)


async def fails_twice(message: str) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(fails(message))


async def in_a_plain_step(step: Step, message: str) -> None:
    await step.run("s", fails_plainly, message, retry=Retry(1))


async def in_an_async_step(step: Step, message: str) -> None:
    await step.run("s", fails, message, retry=Retry(1))


async def in_a_group_of_a_step(step: Step, message: str) -> None:
    await step.run("s", fails_twice, message, retry=Retry(1))


async def in_the_workflow(step: Step, message: str) -> None:
    raise made_up(message)


async def in_a_group_of_the_workflow(step: Step, message: str) -> None:
    await fails_twice(message)


async def at_a_sleep_in_many_scopes(step: Step, message: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5500):
            step = await stack.enter_async_context(step.scope("x" * 200))
        await step.sleep("s", 0)


async def at_a_large_result_in_many_scopes(step: Step, message: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(600):
            step = await stack.enter_async_context(step.scope("x" * 180))
        await step.run("s", lambda: "y" * 899_000)


@contextlib.asynccontextmanager
async def beside_neighbours(client: Client) -> AsyncGenerator[None]:
    """A worker; runs that were started before and after what the block does must complete."""
    neighbour = neighbour_of(client)
    async with client.worker(grace=0.05):
        runs = [await client.start_workflow(neighbour, number) for number in range(NEIGHBOURS)]
        yield
        runs += [await client.start_workflow(neighbour, number) for number in range(NEIGHBOURS)]
        assert [await run.result(LIMIT_S) for run in runs] == [*range(1, NEIGHBOURS + 1)] * 2


async def is_quarantined(run: Run[Any]) -> str:
    """The reason why a run is quarantined, as soon as it is."""
    status = await eventually(lambda: quarantined(run))
    assert status is not None and status.error is not None
    return status.error.message


FAILURES = [in_a_plain_step, in_an_async_step, in_a_group_of_a_step, in_the_workflow, in_a_group_of_the_workflow]


@pytest.mark.parametrize("message", [HUGE, SURROGATE], ids=["huge", "surrogate"])
@pytest.mark.parametrize("body", FAILURES, ids=lambda body: body.__name__)
async def test_an_error_of_the_users_making_fails_its_run_alone(new_log: NewLog, body: Any, message: str) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> None:
        await body(step, message)

    async with beside_neighbours(client):
        run = await client.start_workflow(hostile)
        with pytest.raises(WorkflowFailed, match=r"T: m(mmm|\\ud800)"):
            await run.result(LIMIT_S)


@pytest.mark.parametrize("body", [at_a_sleep_in_many_scopes, at_a_large_result_in_many_scopes], ids=lambda body: body.__name__)
async def test_ids_of_many_scopes_fail_their_run_alone(new_log: NewLog, body: Any) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> None:
        await body(step, "")

    async with beside_neighbours(client):
        run = await client.start_workflow(hostile)
        with pytest.raises(WorkflowFailed, match="a step id has at most 1,000 characters"):
            await run.result(LIMIT_S)


# No value comes near the limit of these logs unless it is lower.

LIMIT = 20_000


@pytest.fixture
def small_log(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log that refuses records above LIMIT."""
    monkeypatch.setattr(_local, "MAX_VALUE_BYTES", LIMIT)
    for driver in (MemoryDriver, SQLiteDriver):
        monkeypatch.setattr(driver, "max_value_bytes", LIMIT)
    return new_log()


class Grown(BaseModel):
    text: str = Field(default_factory=lambda: "x" * LIMIT)


async def gives_too_much(ctx: Context, step: Step) -> str:
    return "x" * LIMIT


async def takes_too_much(ctx: Context[Grown], step: Step) -> None:
    return None


async def plain_step_gives_too_much(ctx: Context, step: Step) -> None:
    await step.run("s", lambda: "x" * LIMIT, retry=Retry(3, backoff=0))


async def async_step_gives_too_much(ctx: Context, step: Step) -> None:
    async def give() -> str:
        return "x" * LIMIT

    await step.run("s", give, retry=Retry(3, backoff=0))


@pytest.mark.parametrize(
    "body", [gives_too_much, takes_too_much, plain_step_gives_too_much, async_step_gives_too_much], ids=lambda body: body.__name__
)
async def test_a_record_too_large_fails_what_it_is_the_result_of(small_log: Log, body: Any) -> None:
    client = Client(driver=small_log)
    hostile = client.workflow(id="hostile")(body)
    async with beside_neighbours(client):
        run = await client.start_workflow(hostile, {} if body is takes_too_much else None)
        with pytest.raises(WorkflowFailed, match=r"PayloadTooLarge: .* record .* 20,\d+ bytes, .* takes 20,000") as caught:
            await run.result(LIMIT_S)
        assert caught.value.error.step_id == ("s" if "step" in body.__name__ else None)
        attempts = [event for event in await run.history() if event.type == "step-failed"]
        assert len(attempts) == ("step" in body.__name__), "nothing mends itself at a second attempt"


async def beats_too_much(ctx: Context, step: Step) -> None:
    async def beat() -> None:
        current_step().heartbeat("x" * LIMIT)
        await asyncio.Event().wait()

    await step.run("s", beat)


async def beats_too_much_in_a_thread(ctx: Context, step: Step) -> None:
    await step.run("s", lambda: current_step().heartbeat("x" * LIMIT))


async def fails_with_too_much(ctx: Context, step: Step) -> None:
    async def beat() -> None:
        current_step().heartbeat("recorded at once")
        current_step().heartbeat("x" * LIMIT)  # recorded with the failure
        raise ValueError

    await step.run("s", beat)


async def fails_with_too_much_in_a_thread(ctx: Context, step: Step) -> None:
    await step.run("s", fails_plainly, "\x01" * LIMIT)


@pytest.mark.parametrize(
    "body",
    [beats_too_much, beats_too_much_in_a_thread, fails_with_too_much, fails_with_too_much_in_a_thread],
    ids=lambda body: body.__name__,
)
async def test_a_record_too_large_that_nobody_can_be_told_of_quarantines_its_run(
    small_log: Log, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(driver=small_log)
    hostile = client.workflow(id="hostile")(body)
    async with beside_neighbours(client):
        run = await client.start_workflow(hostile)
        assert "takes 20,000" in await is_quarantined(run)
    assert not [record for record in caplog.records if record.name == "asyncio"]


# A log whose limit somebody lowers under its workers: `emit` does not know it.

Lowered = Callable[[Callable[[Entry], bool]], Log]


@pytest.fixture
def lowered(new_log: NewLog, monkeypatch: pytest.MonkeyPatch) -> Lowered:
    """Makes a log that refuses the entries that a function names, and no other of the same append."""

    def make(is_refused: Callable[[Entry], bool]) -> Log:
        log = new_log()
        append = log.append

        async def appends(partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
            for number, entry in enumerate(entries):
                if is_refused(entry):
                    raise EntryTooLarge("too large today", await append(partition, entries[:number]) if number else ())
            return await append(partition, entries)

        monkeypatch.setattr(log, "append", appends)
        return log

    return make


async def gives_too_much_for_today(ctx: Context, step: Step) -> str:
    return "x" * 5000


async def step_gives_too_much_for_today(ctx: Context, step: Step) -> None:
    await step.run("s", lambda: "x" * 5000, retry=Retry(3, backoff=0))


async def steps_give_too_much_for_today(ctx: Context, step: Step) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(step.run(f"s-{number}", lambda number=number: "x" * (5000 if number == 3 else 1)))


@pytest.mark.parametrize(
    "body",
    [gives_too_much_for_today, step_gives_too_much_for_today, steps_give_too_much_for_today],
    ids=lambda body: body.__name__,
)
async def test_a_record_that_the_log_does_not_take_today_fails_what_it_is_the_result_of(
    lowered: Lowered, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(driver=lowered(lambda entry: len(entry.value) > 4000))
    hostile = client.workflow(id="hostile")(body)
    async with beside_neighbours(client):
        run = await client.start_workflow(hostile)
        with pytest.raises(WorkflowFailed, match=r"PayloadTooLarge: the record .* does not fit into the log: too large today"):
            await run.result(LIMIT_S)
        history = await run.history()
    assert len([event for event in history if event.type == "step-failed"]) == (body is not gives_too_much_for_today)
    [said] = [record.message for record in caplog.records if record.levelno == logging.ERROR and "partition" in record.message]
    assert "does not fit into the log: too large today" in said


async def test_a_failure_that_the_log_does_not_take_today_quarantines_its_run(lowered: Lowered) -> None:
    client = Client(driver=lowered(lambda entry: len(entry.value) > 800))

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> None:
        await step.run("s", fails_plainly, "m" * 3000, retry=Retry(1))

    async with beside_neighbours(client):
        run = await client.start_workflow(hostile)
        assert "the record step-failed of run" in await is_quarantined(run)


async def test_a_run_of_which_nothing_fits_stands_still_and_goes_on_when_it_does(
    new_log: NewLog, lowered: Lowered, caplog: pytest.LogCaptureFixture
) -> None:
    small = True
    client = Client(driver=lowered(lambda entry: small and entry.key == "hostile" and b"started" not in entry.value[:40]))

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> str:
        return await step.run("s", lambda: "done")

    async with beside_neighbours(client):
        run = await client.start_workflow(hostile, run_id="hostile")
        await eventually(lambda: _said(caplog, "the record quarantined of run 'hostile'"))
    small = False
    async with client.worker():
        assert await run.result(LIMIT_S) == "done"


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return sum(words in record.message for record in caplog.records) == 2


async def test_the_reason_of_a_cancellation_always_fits(new_log: NewLog) -> None:
    log = new_log()
    client = Client(driver=log)

    @client.workflow(id="sleeps")
    async def sleeps(ctx: Context, step: Step) -> None:
        await step.sleep("s", "1d")

    async with beside_neighbours(client):
        run = await client.start_workflow(sleeps)
        request = {"type": "cancel-requested", "v": 1, "run_id": run.id, "at": 0, "request": "r", "reason": ""}
        request["reason"] = "x" * (log.max_value_bytes - len(orjson.dumps(request)))
        await log.append(partition_of(run.id, log.partitions), [Entry(run.id, orjson.dumps(request))])
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)


async def test_a_record_too_large_when_a_timer_is_due_stops_no_other_timer(
    new_log: NewLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = Appending.emit

    def emits(queue: Appending, run: RunState, kind: str, at: int | None = None, **fields: Any) -> None:
        if kind == "sleep-completed" and run.workflow == "hostile":
            raise PayloadTooLarge("the record sleep-completed")
        emit(queue, run, kind, at, **fields)

    monkeypatch.setattr(Appending, "emit", emits)
    client = Client(driver=new_log())

    async def sleeps(ctx: Context, step: Step) -> None:
        await step.sleep("s", 0.1)

    workflows = [client.workflow(id=name)(sleeps) for name in ("hostile", "polite")]
    async with client.worker():
        pairs = [[await client.start_workflow(workflow) for workflow in workflows] for _ in range(NEIGHBOURS)]
        for hostile, polite in pairs:
            assert await polite.result(LIMIT_S) is None
            assert "the record sleep-completed" in await is_quarantined(hostile)


def test_the_largest_record_of_an_error_fits() -> None:
    """A quarantine or failure is what is left where another record is too large."""
    info = ErrorInfo.of(StepFailed("x", 1, ErrorInfo(*["\x01" * 10_000] * 4)))
    assert len(orjson.dumps([info.to_json(), str(info), str(info)])) < MemoryDriver.max_value_bytes
