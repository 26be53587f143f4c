"""Signals: kept until somebody waits, first in first out, exactly once; a wait may time out."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from eventually import eventually
from histories import begun
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome, virtual_outcome
from pydantic import BaseModel, Field
from stage import Note, Replay, Stage
from virtually import virtually

from stepfold import Client, Context, InputInvalid, PayloadTooLarge, RunNotFound, Signal, Step, StepFailed, WorkflowFailed
from stepfold.client.requests import signal_received
from stepfold.client.status import RunStatus
from stepfold.drivers import MemoryDriver
from stepfold.errors import LogUnavailable
from stepfold.log import Ack, Entry, Log, partition_of
from stepfold.testing import run_virtual, virtual_clock
from stepfold.values.codec import codec_for


class Approval(BaseModel):
    by: str
    amount: int = 0


async def test_a_signal_reaches_a_run_that_waits(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        got = await step.wait_for_signal("approval", signal="approve")
        return [got.data, got.name]

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: waits_for(client, run.id, "signal 'approve' (step 'approval')"))
        await run.signal("approve", {"ok": True})
        assert await run.result(LIMIT_S) == [{"ok": True}, "approve"]


async def waits_for(client: Client, run_id: str, words: str) -> bool:
    status = await client.run(run_id).status()
    return status.state == "waiting" and words in status.waiting_on


async def test_signals_sent_before_the_wait_are_kept_in_order(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        await step.wait_for_signal("begin", signal="begin")
        return [(await step.wait_for_signal("next", signal="item")).data for _ in range(3)]

    async with client.worker():
        run = await client.start_workflow(w)
        for number in range(3):
            await run.signal("item", number)
        await run.signal("begin")
        assert await run.result(LIMIT_S) == [0, 1, 2]


async def test_waits_side_by_side_are_served_in_their_order(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        return await asyncio.gather(*(wait(step, f"wait-{number}") for number in range(3)))

    async def wait(step: Step, step_id: str) -> Any:
        return (await step.wait_for_signal(step_id, signal="item")).data

    async with client.worker():
        run = await client.start_workflow(w)
        for number in range(3):
            await run.signal("item", number)
        assert await run.result(LIMIT_S) == [0, 1, 2]


async def test_signals_of_other_names_are_left_alone(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        first = await step.wait_for_signal("a", signal="a")
        second = await step.wait_for_signal("b", signal="b")
        return [first.data, second.data]

    async with client.worker():
        run = await client.start_workflow(w)
        await run.signal("c", "nobody waits")
        await run.signal("b", 2)
        await run.signal("a", 1)
        assert await run.result(LIMIT_S) == [1, 2]


def test_a_wait_ends_with_none_when_its_time_is_up() -> None:
    async def body(ctx: Context, step: Step) -> Any:
        before = ctx.now()
        got = await step.wait_for_signal("approval", signal="approve", timeout="7d")
        return [got, ctx.now() - before == timedelta(days=7)]

    assert virtual_outcome(body) == [None, True]


def test_a_signal_that_comes_too_late_is_for_the_next_wait() -> None:
    async def main(client: Client) -> Any:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> Any:
            first = await step.wait_for_signal("first", signal="go", timeout="1h")
            second = await step.wait_for_signal("second", signal="go", timeout="1h")
            return [first, second and second.data]

        async with client.worker():
            run = await client.start_workflow(w)
            await asyncio.sleep(3_601)
            await run.signal("go", 1)
            return await run.result("1d")

    assert virtually(main) == [None, 1]


def test_a_wait_of_no_time_takes_what_is_there() -> None:
    async def main(client: Client) -> Any:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> Any:
            await step.sleep("until it is there", "1m")
            first = await step.wait_for_signal("first", signal="go", timeout=0)
            second = await step.wait_for_signal("second", signal="go", timeout=0)
            return [first and first.data, second]

        async with client.worker():
            run = await client.start_workflow(w)
            await run.signal("go", 1)
            return await run.result("1d")

    assert virtually(main) == [1, None]


async def test_a_signal_that_was_let_go_of_is_for_who_waits_next(client: Client) -> None:
    """The race of a signal and a time-out of the code's own is decided by the log; the loser's signal is not lost."""

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        waiting = asyncio.create_task(step.wait_for_signal("first", signal="go"))
        await step.wait_for_signal("stop", signal="stop")
        waiting.cancel()
        await asyncio.wait([waiting])
        return (await step.wait_for_signal("second", signal="go")).data

    async with client.worker():
        run = await client.start_workflow(w)
        await run.signal("stop")
        await eventually(lambda: waits_for(client, run.id, "signal 'go' (step 'second')"))
        await run.signal("go", 1)
        assert await run.result(LIMIT_S) == 1


# Typed.


async def test_a_schema_gives_typed_data(client: Client) -> None:
    seen: list[Signal[Approval]] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        seen.append(await step.wait_for_signal("approval", signal="approve", schema=Approval))

    async with client.worker():
        run = await client.start_workflow(w)
        await run.signal("approve", {"by": "me"})
        await run.result(LIMIT_S)
    assert seen == [Signal(Approval(by="me"), "approve")]


async def test_data_that_does_not_fit_is_an_error_there_and_the_signal_is_taken(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        with pytest.raises(InputInvalid, match="signal 'approve': by: Field required") as invalid:
            await step.wait_for_signal("approval", signal="approve", schema=Approval)
        assert invalid.value.errors
        return (await step.wait_for_signal("again", signal="approve", schema=Approval)).data.by

    async with client.worker():
        run = await client.start_workflow(w)
        await run.signal("approve", {"amount": 3})
        await run.signal("approve", Approval(by="you"))
        assert await run.result(LIMIT_S) == "you"


@pytest.mark.parametrize("data", [object(), {1: 2}, "\ud800"])
async def test_data_that_is_not_json_is_refused(client: Client, data: Any) -> None:
    async with client, client.worker():
        run = await client.start_workflow("w")
        with pytest.raises(InputInvalid, match="signal 'go' is not JSON"):
            await run.signal("go", data)
        with pytest.raises(PayloadTooLarge, match="signal 'go'"):
            await run.signal("go", "x" * 900_001)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 5, None])
async def test_what_is_no_name(client: Client, name: Any) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(ValueError, match="is not the name of a signal"):
            await step.wait_for_signal("wait", signal=name)

    await outcome(client, body)
    async with client:
        with pytest.raises(ValueError, match="is not the name of a signal"):
            await client.run("r").signal(name)


async def test_a_run_that_has_ended_takes_no_signals(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any: ...

    await outcome(client, body)
    async with client:
        with pytest.raises(RunNotFound, match="has ended"):
            await client.run("r").signal("go")


# Between runs.


async def test_a_run_signals_another(client: Client) -> None:
    @client.workflow(id="listener")
    async def listener(ctx: Context, step: Step) -> Any:
        return [(await step.wait_for_signal("next", signal="hello")).data for _ in range(2)]

    @client.workflow(id="speaker")
    async def speaker(ctx: Context[str], step: Step) -> None:
        for number in range(2):
            await step.send_signal("say", signal="hello", data={"n": number}, run_id=ctx.input.data)

    async with client.worker():
        listening = await client.start_workflow(listener)
        await (await client.start_workflow(speaker, listening.id)).result(LIMIT_S)
        assert await listening.result(LIMIT_S) == [{"n": 0}, {"n": 1}]


def test_a_signal_to_nobody_fails_the_step() -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.send_signal("say", signal="hello", run_id="nobody")

    with pytest.raises(WorkflowFailed, match=r"RunNotFound.*'nobody'") as failed:
        virtual_outcome(body)
    assert failed.value.error.step_id == "say"


class Forgetful:
    """A log that carries out the first signal's append and then says that it failed."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.forgot = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, partition: int, entries: list[Entry]) -> Any:
        acks: list[Ack] = list(await self._log.append(partition, entries))
        if not self.forgot and any(b"signal-received" in entry.value for entry in entries):
            self.forgot = True
            raise LogUnavailable("the answer was lost")
        return acks


async def test_a_signal_whose_sender_is_tried_again_is_sent_once(client: Client) -> None:
    client = Client(driver=cast(Log, Forgetful(client.log)))

    @client.workflow(id="listener")
    async def listener(ctx: Context, step: Step) -> Any:
        return (await step.wait_for_signal("first", signal="hello")).data

    async def body(ctx: Context, step: Step) -> Any:
        await step.send_signal("say", signal="hello", data=1, run_id="listener")

    async with client.worker():
        listening = await client.start_workflow(listener, run_id="listener")
        await outcome(client, body)
        assert await listening.result(LIMIT_S) == 1
        received = [event for event in await listening.history() if event.type == "signal-received"]
        assert len(received) == 1
    failed = [event for event in await history(client) if event.type == "step-failed"]
    assert len(failed) == 1


async def test_a_signal_that_comes_before_its_run_is_given_to_it(client: Client) -> None:
    """Two producers, or two partitions of an inbox: nothing orders a start and a signal that come by different ways."""

    @client.workflow(id="waits")
    async def waits(ctx: Context[None], step: Step) -> list[Any]:
        return [(await step.wait_for_signal("wait", signal="go")).data for _ in range(2)]

    async with client.worker():
        for number in range(2):
            entry = signal_received("run-1", "go", str(number).encode(), request=f"early-{number}", at=client.log.now())
            await client.log.append(partition_of("run-1", client.log.partitions), [entry])
        with pytest.raises(RunNotFound):
            await client.run("run-1").status()
        with pytest.raises(RunNotFound):
            await client.run("run-1").signal("go")
        run = await client.start_workflow(waits, run_id="run-1")
        assert await run.result() == [0, 1]
        kinds = [event.type for event in await run.history()]
        assert kinds[:3] == ["signal-received", "signal-received", "started"]


def test_what_came_early_and_for_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """After the memory, and the margin that an owner's clock is given; until then it survives owners."""
    caplog.set_level(logging.WARNING, "stepfold.worker")

    async def main() -> None:
        log = MemoryDriver(clock=virtual_clock)
        client = Client(driver=log)
        entry = signal_received("nobody", "go", b"1", request="early", at=log.now())
        async with client:
            partition = partition_of("nobody", log.partitions)
            async with client.worker():
                await log.append(partition, [entry])
                await asyncio.sleep(3600)
            async with client.worker() as worker:
                await asyncio.sleep(60)
                state = worker.owners[partition].state
                assert state is not None and "nobody" in state.runs
                await asyncio.sleep(2 * 86_400)
                assert "nobody" not in state.runs

    run_virtual(main())
    [record] = [record for record in caplog.records if "is refused" in record.message]
    assert "while the signal was kept" in record.message and record.__dict__["run_id"] == "nobody"


def test_the_time_limit_of_a_wait_that_is_over_is_not_kept_until_it_comes() -> None:
    async def main(client: Client) -> int:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await step.wait_for_signal("approval", signal="approved", timeout="365d")

        async with client.worker() as worker:
            for _ in range(50):
                run = await client.start_workflow(w)
                await asyncio.sleep(1)  # by now it waits
                await run.signal("approved")
                await run.result()
            return sum(len(vars(owner)["_timers"]) for owner in worker.owners.values())

    assert virtually(main) <= 4


@pytest.mark.parametrize(("signal", "run_id"), [("go", 5), ("go", None), ("go", "@x"), ("", "r"), (5, "r")])
async def test_a_signal_to_nobody_is_refused_at_the_call(client: Client, signal: Any, run_id: Any) -> None:
    async def body(ctx: Context, step: Step) -> None:
        with pytest.raises(ValueError, match=r"is not a run id|is not the name of a signal"):
            await step.send_signal("tell", signal=signal, run_id=run_id)

    assert await outcome(client, body) is None


def test_a_replay_does_not_refuse_what_an_engine_of_before_has_sent() -> None:
    """The result of the step is in the log, with a run id that is refused today."""

    async def body(step: Step, note: Note) -> None:
        try:
            await step.send_signal("tell", signal="go", run_id="@x")
        except StepFailed as error:
            note(error.error.type)

    ledger = begun()
    error = {"type": "RunNotFound", "message": "no run '@x'"}
    ledger.accepts("step-failed", step_id="tell", attempt=1, error=error, next_at=None)
    assert Stage(body, ledger).live.notes == ["RunNotFound"]
    Replay.close_all()


# Schemas that make a value by themselves.


class Order(BaseModel):
    amount: int
    reference: UUID = Field(default_factory=uuid4)
    tags: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=lambda: ["a"])


class Dated(BaseModel):
    on: date = Field(default_factory=date.today)  # the same all day


@dataclass
class Stamped:
    x: int
    id: UUID = field(default_factory=uuid4)


class Fixed(BaseModel):
    amount: int
    reference: UUID | None = None


def taking(client: Client, schema: Any) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        got = await step.wait_for_signal("order", signal="order", schema=schema)
        await step.wait_for_signal("go", signal="go")
        return repr(got.data)


@pytest.mark.parametrize(
    ("schema", "data", "place"),
    [
        (Order, {"amount": 1}, "reference"),
        (list[Order], [{"amount": 1}], "[0].reference"),
        (Dated, {}, "on"),
        (Stamped, {"x": 1}, "id"),
    ],
)
async def test_data_that_the_schema_completes_with_something_new_put_the_run_aside(
    new_log: NewLog, schema: Any, data: Any, place: str
) -> None:
    """The code would see another value at each replay. Nothing is lost: with a mended schema the run goes on."""
    for turn in range(2):
        client = Client(driver=new_log())
        taking(client, schema)
        async with client.worker():
            if turn == 0:
                await (await client.start_workflow("w", run_id="r")).signal("order", data)
            status = await eventually(lambda client=client: quarantined(client))
            assert status is not None and status.error is not None
            assert f"do not fix `{place}`" in status.error.message
            assert "ctx.uuid4()" in status.error.message and "test_signals.py:" in status.error.message

    client = Client(driver=new_log())
    taking(client, Any)
    async with client.worker():
        await client.run("r").signal("go")
        assert await client.run("r").result(LIMIT_S) == repr(data)


async def quarantined(client: Client) -> RunStatus | None:
    status = await client.run("r").status()
    assert status.state in ("pending", "running", "waiting", "quarantined"), status
    return status if status.state == "quarantined" else None


@pytest.mark.parametrize(
    ("schema", "data"),
    [(Order, {"amount": 1, "reference": str(UUID(int=7))}), (Stamped, {"x": 1, "id": str(UUID(int=7))}), (Fixed, {"amount": 1})],
)
async def test_data_that_give_all_that_a_schema_would_make_are_the_same_at_each_replay(
    new_log: NewLog, schema: Any, data: Any
) -> None:
    for turn in range(2):
        client = Client(driver=new_log())
        taking(client, schema)
        async with client.worker():
            if turn == 0:
                run = await client.start_workflow("w", run_id="r")
                await run.signal("order", data)
                await eventually(lambda client=client: waits_for(client, "r", "signal 'go' (step 'go')"))
            else:
                await client.run("r").signal("go")
                assert await client.run("r").result(LIMIT_S) == repr(codec_for(schema).decode(data))
