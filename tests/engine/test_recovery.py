"""What a worker leaves behind, in good order or not, and what the next one makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import orjson
import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S

from stepfold import (
    Client,
    ConfigError,
    Context,
    Retry,
    Run,
    Step,
    StepFailed,
    Worker,
    WorkflowCancelled,
    WorkflowFailed,
    current_step,
)
from stepfold.client.requests import signal_received
from stepfold.drivers import MemoryDriver
from stepfold.errors import LogUnavailable
from stepfold.log import Ack, Entry, Log, Reader, Record, partition_of
from stepfold.testing.suite import checkpoints_of


@asynccontextmanager
async def crashing(client: Client) -> AsyncGenerator[Worker]:
    """A worker that ends as in a crash: nothing is said, nothing is released, what runs is dropped."""
    async with client.worker(grace=0) as worker:
        yield worker
        await client.log.close()


async def state(run: Run[Any]) -> str:
    return (await run.status()).state


async def is_in(run: Run[Any], *states: str) -> bool:
    return await state(run) in states


async def types(run: Run[Any]) -> list[str]:
    return [event.type for event in await run.history()]


# Lost attempts.


async def test_a_step_that_ran_when_its_worker_died_is_lost_and_run_again(new_log: NewLog) -> None:
    running = asyncio.Event()
    attempts: list[int] = []

    async def hang() -> str:
        attempts.append(current_step().attempt)
        if len(attempts) == 1:
            running.set()
            await asyncio.Event().wait()
        return "done"

    async def body(ctx: Context, step: Step) -> str:
        return await step.run("hang", hang, retry=Retry(1))

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)

    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        run = second.run("r")
        assert await run.result(LIMIT_S) == "done", "a lost attempt does not count against max_attempts"
        assert await types(run) == ["started", "attempt-lost", "step-completed", "completed"]
    assert attempts == [1, 2], "but it has a number"


async def test_a_run_whose_step_is_lost_again_and_again_is_quarantined(new_log: NewLog) -> None:
    running = asyncio.Event()

    async def killer() -> None:
        running.set()
        await asyncio.Event().wait()

    async def body(ctx: Context, step: Step) -> None:
        await step.run("killer", killer)

    async def fine(ctx: Context, step: Step) -> str:
        return "fine"

    deaths = 0
    while True:
        client = Client(driver=new_log())
        workflow = client.workflow(id="w")(body)
        other = client.workflow(id="other")(fine)
        running.clear()
        async with crashing(client):
            run = await client.start_workflow(workflow, run_id="r")
            await eventually(lambda run=run: happened(run, running))
            if await state(run) == "quarantined":
                status = await run.status()
                assert status.error is not None and status.error.type == "StepInterrupted"
                assert "'killer' was lost with its worker 8 times in a row" in status.error.message
                assert await (await client.start_workflow(other)).result(LIMIT_S) == "fine", "the partition goes on"
                await run.cancel("enough")
                with pytest.raises(WorkflowCancelled, match="enough"):
                    await run.result(LIMIT_S)
                break
        deaths += 1
        assert deaths < 10
    assert deaths == 8


async def test_the_step_that_was_lost_less_often_is_tried_first(new_log: NewLog) -> None:
    begun: list[tuple[str, int]] = []

    async def hang() -> None:
        step = current_step()
        begun.append((step.step_id, step.attempt))
        await asyncio.Event().wait()

    async def body(ctx: Context, step: Step) -> None:
        async def later() -> None:
            await step.wait_for_signal("wait", signal="go")
            await step.run("later", hang)

        await asyncio.gather(step.run("first", hang), later())

    async def live(*awaited: tuple[str, int], sends: bool = False) -> None:
        client = Client(driver=new_log())
        workflow = client.workflow(id="w")(body)
        async with crashing(client):
            run = await client.start_workflow(workflow, run_id="r")

            async def has_begun(attempt: tuple[str, int]) -> bool:
                return attempt in begun

            for attempt in awaited:
                await eventually(lambda attempt=attempt: has_begun(attempt))
            if sends:
                await run.signal("go")
                await eventually(lambda: has_begun(("later", 1)))

    await live(("first", 1))
    await live(("first", 2), sends=True)
    await live(("first", 3), ("later", 2))
    await live(("later", 3))
    assert ("first", 4) not in begun, "it waits for its turn"


async def happened(run: Run[Any], running: asyncio.Event) -> bool:
    return running.is_set() or await state(run) == "quarantined"


async def test_at_most_once_is_announced_and_a_lost_one_has_failed(new_log: NewLog) -> None:
    running = asyncio.Event()
    calls: list[int] = []

    async def charge() -> None:
        calls.append(current_step().attempt)
        running.set()
        await asyncio.Event().wait()

    async def body(ctx: Context, step: Step) -> Any:
        try:
            await step.run("charge", charge, at_most_once=True)
        except StepFailed as failed:
            return [failed.error.type, failed.attempts]

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)

    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        run = second.run("r")
        assert await run.result(LIMIT_S) == ["StepInterrupted", 1]
        assert await types(run) == ["started", "attempt-started", "step-failed", "completed"]
    assert calls == [1]


async def test_at_most_once_with_more_attempts_counts_the_lost_one(new_log: NewLog) -> None:
    running = asyncio.Event()
    calls: list[int] = []

    async def charge() -> str:
        calls.append(current_step().attempt)
        if len(calls) == 1:
            running.set()
            await asyncio.Event().wait()
        raise ValueError("no")

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed) as failed:
            await step.run("charge", charge, at_most_once=True, retry=Retry(2, backoff="1ms"))
        return [failed.value.error.type, failed.value.attempts]

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)
    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == ["ValueError", 2]
    assert calls == [1, 2]


@pytest.mark.parametrize("at_most_once", [False, True])
async def test_attempts_are_lost_with_the_owner_before_a_claim_of_which_nothing_was_heard(
    at_most_once: bool, request: pytest.FixtureRequest
) -> None:
    """The claim is in the log, and its worker was told of an error: the next one of the same worker is the first that counts."""
    name = request.node.name
    running = asyncio.Event()

    class Deaf(MemoryDriver):
        deaf = 2

        async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
            acks = await super().append(partition, entries)
            if self.deaf and b'"claim"' in entries[0].value:
                self.deaf -= 1
                raise LogUnavailable("the answer was lost")
            return acks

    async def hang() -> str:
        running.set()
        if current_step().attempt == 1:
            await asyncio.Event().wait()
        return "done"

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("hang", hang, at_most_once=at_most_once, retry=Retry(2, backoff="1ms"))

    first = Client(driver=MemoryDriver(name))
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        await first.start_workflow(workflow, run_id="r")
        await running.wait()

    second = Client(driver=Deaf(name))
    second.workflow(id="w")(body)
    async with second.worker():
        run = second.run("r")
        assert await run.result(LIMIT_S) == "done"
        counted = "step-failed" if at_most_once else "attempt-lost"
        assert [event.type for event in await run.history() if event.type in ("step-failed", "attempt-lost")] == [counted]


async def test_a_run_that_is_told_something_before_its_turn_has_lost_its_attempt_too(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Recovery takes many runs some at a time; a signal does not wait for that."""
    monkeypatch.setattr("stepfold.worker.owner.recovery.RESUME_RUNS", 1)
    name = request.node.name
    runs = 20
    running: set[str] = set()

    class Telling(MemoryDriver):
        """As soon as the first run is recovered, the last one is sent a signal."""

        told = False

        async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
            acks = await super().append(partition, entries)
            if not self.told and any(b"attempt-lost" in value for _, value in entries):
                self.told = True
                last = f"run-{runs - 1}"
                await super().append(partition, [signal_received(last, "go", b"1", request="go", at=self.now())])
            return acks

    async def hang() -> str:
        if current_step().attempt == 1:
            running.add(current_step().run_id)
            await asyncio.Event().wait()
        return "done"

    async def body(ctx: Context, step: Step) -> Any:
        await asyncio.gather(step.run("hang", hang), step.wait_for_signal("go", signal="go"))
        await step.run("after", str)

    first = Client(driver=MemoryDriver(name))
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        for number in range(runs):
            await first.start_workflow(workflow, run_id=f"run-{number}")
        await eventually(lambda: reaches(running, runs))

    second = Client(driver=Telling(name))
    second.workflow(id="w")(body)
    async with second.worker():
        last = second.run(f"run-{runs - 1}")
        await last.result(LIMIT_S)
        events = [(event.type, getattr(event, "step_id", None)) for event in await last.history()]
        assert events[2:5] == [("signal-received", None), ("attempt-lost", "hang"), ("step-completed", "hang")]
        assert ("attempt-lost", "after") not in events, "it had not begun"


async def test_so_has_one_that_is_told_something_before_its_code_may_run(request: pytest.FixtureRequest) -> None:
    """After deaths in a row the code of a run is announced before it runs; a signal may come in between."""
    name = request.node.name
    running = asyncio.Event()

    class Telling(MemoryDriver):
        """A signal comes just before the run is announced."""

        told = False

        async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
            if not self.told and any(b"code-suspected" in value for _, value in entries):
                self.told = True
                await super().append(partition, [signal_received("r", "go", b"1", request="go", at=self.now())])
            return await super().append(partition, entries)

    async def hang() -> str:
        if current_step().attempt < 3:
            running.set()
            await asyncio.Event().wait()
        return "done"

    async def body(ctx: Context, step: Step) -> Any:
        await asyncio.gather(step.run("hang", hang), step.wait_for_signal("go", signal="go"))

    for _ in range(2):
        running.clear()
        client = Client(driver=MemoryDriver(name))
        workflow = client.workflow(id="w")(body)
        async with crashing(client):
            await client.start_workflow(workflow, run_id="r")
            await asyncio.wait_for(running.wait(), LIMIT_S)

    last = Client(driver=Telling(name))
    last.workflow(id="w")(body)
    async with last.worker():
        run = last.run("r")
        await run.result(LIMIT_S)
        told = ["signal-received", "code-suspected", "attempt-lost", "attempt-started", "step-completed", "completed"]
        assert await types(run) == ["started", "wait-started", "attempt-lost", *told]


async def reaches(found: set[str], size: int) -> bool:
    return len(found) == size


@pytest.mark.parametrize("away", [False, True])
async def test_what_was_lost_is_counted_when_the_workflow_is_registered(new_log: NewLog, away: bool) -> None:
    """`away`: and the log was away meanwhile."""
    running = asyncio.Event()

    async def hang() -> str:
        if current_step().attempt == 1:
            running.set()
            await asyncio.Event().wait()
        return "done"

    async def body(ctx: Context, step: Step) -> str:
        return await step.run("hang", hang)

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)

    log: Any = Flaky(new_log())
    second = Client(driver=log)
    async with second.worker():
        run = second.run("r")
        await eventually(lambda: has(run, "workflow-unknown"))
        if away:
            log.failures = 1
            other = await second.start_workflow("unknown", run_id=log.neighbour("r"))
            await eventually(lambda: has(other, "workflow-unknown"))
            assert log.failures == 0
        second.workflow(id="w")(body)
        assert await run.result(LIMIT_S) == "done"
        assert await types(run) == ["started", "workflow-unknown", "attempt-lost", "step-completed", "completed"]


async def test_at_most_once_attempts_that_were_announced_and_never_ran_have_not_failed(new_log: NewLog) -> None:
    running, begun = asyncio.Event(), list[str]()

    async def hang() -> None:
        running.set()
        if len(begun) == 0:
            await asyncio.Event().wait()

    async def charge() -> str:
        begun.append("charge")
        return "charged"

    async def hanging(ctx: Context, step: Step) -> None:
        await step.run("hang", hang)

    async def paying(ctx: Context, step: Step) -> str:
        return await step.run("charge", charge, at_most_once=True)

    first = Client(driver=new_log())
    hangs, pays = first.workflow(id="hangs")(hanging), first.workflow(id="pays")(paying)
    async with first.worker(concurrency=1, grace=0):
        await first.start_workflow(hangs)
        await asyncio.wait_for(running.wait(), LIMIT_S)
        run = await first.start_workflow(pays, run_id="r")
        await eventually(lambda: has(run, "attempt-started"))
    assert begun == []

    second = Client(driver=new_log())
    second.workflow(id="pays")(paying)
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == "charged"
    assert begun == ["charge"]


async def test_nor_have_they_when_the_log_was_away(new_log: NewLog) -> None:
    log: Any = Flaky(new_log())
    client = Client(driver=log)
    running, begun = asyncio.Event(), list[str]()

    async def hang() -> None:
        if not running.is_set():
            running.set()
            await asyncio.Event().wait()

    async def charge() -> str:
        begun.append("charge")
        return "charged"

    @client.workflow(id="hangs")
    async def hangs(ctx: Context, step: Step) -> None:
        await step.run("hang", hang)
        await step.wait_for_signal("go", signal="go")

    @client.workflow(id="pays")
    async def pays(ctx: Context, step: Step) -> str:
        return await step.run("charge", charge, at_most_once=True)

    async with client.worker(concurrency=1):
        first = await client.start_workflow(hangs, run_id="hangs")
        await asyncio.wait_for(running.wait(), LIMIT_S)
        run = await client.start_workflow(pays, run_id=log.neighbour("hangs"))
        await eventually(lambda: has(run, "attempt-started"))
        log.failures = 1
        await client.start_workflow("unknown", run_id=log.neighbour(run.id))
        assert await run.result(LIMIT_S) == "charged"
        assert log.failures == 0
        await first.cancel()
    assert begun == ["charge"]


async def test_but_one_that_ran_and_whose_result_was_lost_with_the_log_has(new_log: NewLog) -> None:
    log: Any = Flaky(new_log())
    client = Client(driver=log)
    begun: list[str] = []

    async def charge() -> str:
        begun.append("charge")
        log.failures = 1
        return "charged"

    @client.workflow(id="pays")
    async def pays(ctx: Context, step: Step) -> str:
        return await step.run("charge", charge, at_most_once=True)

    async with client.worker():
        with pytest.raises(WorkflowFailed, match="StepInterrupted"):
            await (await client.start_workflow(pays)).result(LIMIT_S)
    assert begun == ["charge"]


# What goes on.


async def test_everything_that_was_open_goes_on(new_log: NewLog) -> None:
    ran: list[str] = []

    def fail_once() -> str:
        if current_step().attempt == 1:
            raise ValueError
        return "at last"

    async def body(ctx: Context, step: Step) -> Any:
        ran.append(await step.run("before", lambda: "before"))
        nap, flaky, signal, timeout, slept = await asyncio.gather(
            step.sleep("nap", "30ms"),
            step.run("flaky", fail_once, retry=Retry(2, backoff="30ms", jitter=False)),
            step.wait_for_signal("w", signal="go"),
            step.wait_for_signal("t", signal="never", timeout="30ms"),
            asyncio.sleep(0.03, "slept"),
        )
        return [nap, flaky, signal.data, timeout, slept]

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with crashing(first):
        run = await first.start_workflow(workflow, run_id="r")
        await run.signal("go", 7)
        await eventually(lambda: has(run, "sleep-scheduled", "step-failed", "wait-started"))

    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == [None, "at last", 7, None, "slept"]
        steps = [event.step_id for event in await second.run("r").history() if event.type == "step-completed"]
    assert sorted(steps) == ["before", "flaky"], "what has a result is not run again"


async def has(run: Run[Any], *kinds: str) -> bool:
    return set(kinds) <= set(await types(run))


async def test_who_waits_for_a_result_does_not_mind_who_brings_it(new_log: NewLog) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        return (await step.wait_for_signal("go", signal="go")).data

    caller, first, second = (Client(driver=new_log()) for _ in range(3))
    workflow = first.workflow(id="w")(body)
    second.workflow(id="w")(body)
    async with caller:
        async with crashing(first):
            await first.start_workflow(workflow, run_id="r")
            await eventually(lambda: is_in(caller.run("r"), "waiting"))
            waiting = asyncio.create_task(caller.run("r").result(LIMIT_S))
        async with second.worker():
            await caller.run("r").signal("go", "from the second")
            assert await waiting == "from the second"


# Leaving in good order.


async def test_who_leaves_in_good_order_leaves_nothing_lost(new_log: NewLog) -> None:
    """It waits for what runs, gives the partition back, and what it had to abandon is not taken for a crash."""
    running = asyncio.Event()

    async def hang() -> str:
        if running.is_set():
            return "second worker"
        running.set()
        await asyncio.Event().wait()
        return "?"

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("hang", hang)

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with first.worker(grace="10ms"):
        await first.start_workflow(workflow, run_id="r")
        await asyncio.wait_for(running.wait(), LIMIT_S)
    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == "second worker"
        assert await types(second.run("r")) == ["started", "step-completed", "completed"]


async def test_leaving_waits_for_running_steps(new_log: NewLog) -> None:
    running, release = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        running.set()
        await release.wait()
        return "finished"

    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("work", work)

    client = Client(driver=new_log())
    workflow = client.workflow(id="w")(body)
    async with client:
        async with client.worker(grace=LIMIT_S):
            run = await client.start_workflow(workflow, run_id="r")
            await asyncio.wait_for(running.wait(), LIMIT_S)
            asyncio.get_running_loop().call_later(0.02, release.set)
        assert "step-completed" in await types(run)


# Checkpoints.


class Counting(MemoryDriver):
    """A memory log that counts the records its readers were given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.given = 0

    def reader(self, partition: int, offset: int) -> Any:
        return CountingReader(self, super().reader(partition, offset))


class CountingReader:
    def __init__(self, log: Counting, reader: Reader) -> None:
        self._log = log
        self._reader = reader

    @property
    def position(self) -> int:
        return self._reader.position

    async def read(self, limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
        records = await self._reader.read(limit, wait)
        self._log.given += len(records)
        return records

    def seek(self, offset: int) -> None:
        self._reader.seek(offset)

    async def close(self) -> None:
        await self._reader.close()


async def test_a_restart_costs_what_is_open_and_the_tail(request: pytest.FixtureRequest) -> None:
    name = request.node.name

    async def quick(ctx: Context, step: Step) -> None:
        await step.run("a", str)

    async def slow(ctx: Context, step: Step) -> Any:
        return (await step.wait_for_signal("go", signal="go")).data

    first = Client(driver=Counting(name))
    ended, open_one = first.workflow(id="quick")(quick), first.workflow(id="slow")(slow)
    async with first.worker():
        runs = [await first.start_workflow(ended) for _ in range(200)]
        await first.start_workflow(open_one, run_id="r")
        await asyncio.gather(*(run.result(LIMIT_S) for run in runs))
        await eventually(lambda: is_in(first.run("r"), "waiting"))

    log = Counting(name)
    second = Client(driver=log)
    second.workflow(id="quick")(quick)
    second.workflow(id="slow")(slow)
    async with second.worker():
        await second.run("r").signal("go", 1)
        assert await second.run("r").result(LIMIT_S) == 1
        assert log.given < 20, "of more than 600 records"
        again = await second.start_workflow("quick", run_id=runs[0].id)
        assert await types(again) == ["started", "step-completed", "completed"], "the ended ones are remembered"


async def test_many_checkpoints_and_restarts_lose_nothing(new_log: NewLog) -> None:
    async def count(ctx: Context, step: Step) -> int:
        total = 0
        while (got := await step.wait_for_signal("next", signal="add")).data:
            total += await step.run("add", int, got.data)
        return total

    for turn in range(4):
        client = Client(driver=new_log())
        workflow = client.workflow(id="count")(count)
        async with client.worker(checkpoint_records=1 + turn * 3):
            runs = [await client.start_workflow(workflow, run_id=f"run/{number}/m") for number in range(5)]
            for run in runs:
                await run.signal("add", 1 + turn)
            await eventually(lambda runs=runs, turn=turn: all_counted(runs, turn + 1))
    last = Client(driver=new_log())
    last.workflow(id="count")(count)
    async with last.worker():
        for number in range(5):
            run = last.run(f"run/{number}/m")
            await run.signal("add", 0)
            assert await run.result(LIMIT_S) == 1 + 2 + 3 + 4


async def all_counted(runs: list[Run[Any]], count: int) -> bool:
    statuses = [await run.status() for run in runs]
    return all(status.steps_completed == count and status.state == "waiting" for status in statuses)


async def test_a_damaged_checkpoint_costs_time_only(new_log: NewLog) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.run("a", str)
        return (await step.wait_for_signal("go", signal="go")).data

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(body)
    async with first, first.worker():
        await first.start_workflow(workflow, run_id="r")
        await eventually(lambda: is_in(first.run("r"), "waiting"))
    log = new_log()
    await log.open()
    for partition in range(log.partitions):
        stored = await checkpoints_of(log, partition)
        await log.checkpoint_put(partition, dict.fromkeys(stored, b"\x00damaged"))
    await log.close()
    second = Client(driver=new_log())
    second.workflow(id="w")(body)
    async with second.worker():
        await second.run("r").signal("go", 5)
        assert await second.run("r").result(LIMIT_S) == 5


async def test_a_log_that_was_made_again_under_old_checkpoints_is_served_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    old, new = MemoryDriver(), MemoryDriver()
    first = Client(driver=old)
    async with first, first.worker():
        await first.start_workflow("w")
        await eventually(lambda: has_claim(old))
    await old.open()
    await new.open()
    await new.checkpoint_put(0, await checkpoints_of(old, 0))
    second = Client(driver=new)
    second.workflow(id="w2")(nothing)
    async with second.worker():
        run = await second.start_workflow("w2")
        await run.result(LIMIT_S)
    assert "deleted and recreated" in caplog.text
    await old.close()


async def nothing(ctx: Context[None], step: Step) -> None:
    pass


async def has_claim(log: MemoryDriver) -> bool:
    return bool(await log.find(0, ["@claim"]))


class Flaky:
    """A log on which the next `failures` decisions of an owner cannot be appended."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        if self.failures and any(b'"claim":' in value for _, value in entries):
            self.failures -= 1
            raise LogUnavailable("away for a moment")
        return await self.log.append(partition, entries)

    def neighbour(self, run_id: str) -> str:
        """The id of another run in the same partition."""
        ids = (f"{run_id}-{number}" for number in count())
        return next(one for one in ids if partition_of(one, self.log.partitions) == partition_of(run_id, self.log.partitions))


async def test_a_log_that_comes_back_is_owned_again(new_log: NewLog) -> None:
    log: Any = Flaky(new_log())
    client = Client(driver=log)
    calls = 0

    def break_once() -> None:
        nonlocal calls
        calls += 1
        log.failures = int(calls == 1)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        return await step.run("break", break_once)

    async with client.worker():
        assert await (await client.start_workflow(w)).result(LIMIT_S) is None
        assert (log.failures, calls) == (0, 2), "its result was lost with the log, so it ran again"


async def test_an_owner_does_not_go_on_from_before_the_records_that_are_left() -> None:
    class Trimmed(Flaky):
        start = 0

        async def bounds(self, partition: int) -> tuple[int, int]:
            return self.start, (await self.log.bounds(partition))[1]

    log: Any = Trimmed(MemoryDriver())
    client = Client(driver=log)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return await step.run("a", lambda: "done")

    async def serve() -> None:
        async with client.worker() as worker:
            assert await (await client.start_workflow(w)).result(LIMIT_S) == "done"
            log.start, log.failures = 100, 1
            await client.start_workflow(w)
            await asyncio.wait_for(worker.wait(), LIMIT_S)

    with pytest.raises(ConfigError, match="its records below offset 100 are gone and no checkpoint covers them"):
        await serve()


async def test_nothing_is_stored_any_more_under_a_claim_whose_checkpoint_was_given_up() -> None:
    class Doubtful(Flaky):
        puts = 0

        async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
            self.puts += 1
            if self.puts == 1:
                raise LogUnavailable("whether that was written nobody knows")
            await self.log.checkpoint_put(partition, items)

    log: Any = Doubtful(MemoryDriver())
    client = Client(driver=log)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return await step.run("a", lambda: "done")

    async with client.worker() as worker:
        assert await (await client.start_workflow(w)).result(LIMIT_S) == "done"
        with pytest.raises(LogUnavailable):
            await worker.owners[0].leave(0)
        await worker.owners[0].leave(0)
        assert log.puts == 1, "what was given up may land late, and must not land on anything newer"
        assert orjson.loads((await log.find(0, ["@claim"]))[-1].value)["owner"] is None, "the next owner need not wait"
