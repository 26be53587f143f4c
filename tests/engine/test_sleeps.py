"""Sleeps and the timers of plain asyncio: durable, to the millisecond, years of them in no time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, Body, history, outcome, virtual_outcome
from virtually import virtually

from stepfold import (
    Client,
    ConditionTimedOut,
    Context,
    Done,
    Retry,
    RetryAfter,
    Run,
    Step,
    StepFailed,
    WorkflowCancelled,
    current_step,
)
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.events import encode
from stepfold.log import Entry, partition_of
from stepfold.testing import START_MS, run_virtual, virtual_clock

START = datetime.fromtimestamp(START_MS / 1000, UTC)
YEAR = timedelta(days=365)


def test_three_sleeps_of_a_year_cost_next_to_nothing() -> None:
    """Under a second; counted instead of timed, as the engine's looks at the clock."""
    looks = 0

    def clock() -> int:
        nonlocal looks
        looks += 1
        return virtual_clock()

    async def body(ctx: Context, step: Step) -> Any:
        for number in range(3):
            await step.sleep(f"year {number}", YEAR)
        return (ctx.now() - ctx.input.time) / YEAR

    async def main() -> Any:
        return await outcome(Client(driver=MemoryDriver(clock=clock)), body, limit=10 * YEAR)

    assert run_virtual(main()) == 3
    assert looks < 100_000, "the engine must not look at its watch all the time"


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        (2, 2_000),
        (0.25, 250),
        (0, 0),
        (timedelta(days=3), 259_200_000),
        ("1h30m", 5_400_000),
        ("250ms", 250),
        ("1d2h", 93_600_000),
    ],
)
def test_a_sleep_is_as_long_as_it_says(duration: Any, ms: int) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        before = ctx.now()
        await step.sleep("nap", duration)
        return (ctx.now() - before) / timedelta(milliseconds=1)

    assert virtual_outcome(body) == ms


@pytest.mark.parametrize(
    ("when", "ms"),
    [
        (START + timedelta(hours=5), 5 * 3_600_000),
        ((START + timedelta(hours=5)).astimezone(timezone(timedelta(hours=-7))), 5 * 3_600_000),
        (START - timedelta(days=1), 0),
    ],
)
def test_a_sleep_until_ends_then_or_at_once(when: datetime, ms: int) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        before = ctx.now()
        await step.sleep_until("opening", when)
        return (ctx.now() - before) / timedelta(milliseconds=1)

    assert virtual_outcome(body) == ms


async def test_a_time_without_a_zone_is_refused(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(ValueError, match="has no time zone"):
            await step.sleep_until("opening", datetime(2030, 1, 1))  # noqa: DTZ001  # that is the test

    await outcome(client, body)


async def test_the_wake_time_is_recorded_once_and_absolute(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        await step.sleep("nap", "20ms")

    await outcome(client, body)
    events = await history(client)
    assert [event.type for event in events] == ["started", "sleep-scheduled", "sleep-completed", "completed"]
    started, scheduled, woken, _ = events
    assert started.at <= scheduled.wake_at - 20 <= woken.at - 20


def test_what_waits_is_said_in_words() -> None:
    async def main(client: Client) -> list[str]:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            def fail() -> None:
                raise ValueError("no luck")

            await asyncio.gather(
                step.sleep("nap", "1d"),
                step.wait_for_signal("approval", signal="approve", timeout="2d"),
                step.wait_for_signal("forever", signal="come"),
                step.run("flaky", fail, retry=Retry(2, backoff="1h", jitter=False)),
            )

        async with client.worker():
            run = await client.start_workflow(w)
            await asyncio.sleep(1)
            status = await run.status()
            assert status.state == "waiting"
            return sorted(status.waiting_on)

    assert virtually(main) == [
        "signal 'approve' (step 'approval', until 2030-01-03 00:00:00 UTC)",
        "signal 'come' (step 'forever')",
        "sleep 'nap' until 2030-01-02 00:00:00 UTC",
        "step 'flaky': attempt 2 at 2030-01-01 01:00:00 UTC, after ValueError: no luck",
    ]


# Plain asyncio.


def test_asyncio_s_timers_are_durable_ones() -> None:
    async def body(ctx: Context, step: Step) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(86_400)
        found: list[Any] = [loop.time() - began]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(step.wait_for_signal("never", signal="never"), 3_600)
        try:
            async with asyncio.timeout(7_200):
                await asyncio.Event().wait()
        except TimeoutError:
            found.append("timed out")
        done, pending = await asyncio.wait([asyncio.create_task(step.sleep("long", "2h"))], timeout=60)
        found.append([len(done), len(pending)])
        return [*found, (ctx.now() - ctx.input.time) / timedelta(seconds=1)]

    assert virtual_outcome(body) == [86_400, "timed out", [0, 1], 86_400 + 3_600 + 7_200 + 60]


def test_a_time_out_around_steps() -> None:
    cancelled: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            cancelled.append("step")
            raise

    async def body(ctx: Context, step: Step) -> Any:
        try:
            async with asyncio.timeout(30):
                await step.run("hang", hang)
        except TimeoutError:
            return await step.run("instead", (ctx.now() - ctx.input.time).total_seconds)

    assert virtual_outcome(body) == 30
    assert cancelled == ["step"]


def test_timers_run_out_in_their_order() -> None:
    async def body(ctx: Context, step: Step) -> Any:
        order: list[str] = []

        async def note(name: str, wait: Any) -> None:
            await wait
            order.append(name)

        await asyncio.gather(
            note("c", step.sleep("c", "3h")),
            note("a", asyncio.sleep(3_600)),
            note("d", asyncio.sleep(4 * 3_600)),
            note("b", step.sleep("b", "2h")),
            note("now", asyncio.sleep(0)),
        )
        return order

    assert virtual_outcome(body) == ["now", "a", "b", "c", "d"]


def test_a_timer_that_was_cancelled_wakes_nobody() -> None:
    async def main(client: Client) -> list[str]:
        async def body(ctx: Context, step: Step) -> Any:
            async with asyncio.timeout(3_600):
                await step.sleep("short", "1m")
            await step.sleep("long", "2h")

        await outcome(client, body, "1d")
        return [f"{event.type} {event.step_id}" for event in await history(client) if hasattr(event, "step_id")]

    found = virtually(main)
    assert sorted(found) == sorted(
        [
            "sleep-scheduled @timer",
            "sleep-scheduled short",
            "sleep-completed short",
            "step-cancelled @timer",
            "sleep-scheduled long",
            "sleep-completed long",
        ]
    )


def test_a_step_that_fails_after_the_time_is_up_is_not_heard() -> None:
    async def body(ctx: Context, step: Step) -> Any:
        async def slow() -> None:
            await asyncio.sleep(60)
            raise ValueError

        task = asyncio.create_task(step.run("slow", slow, retry=Retry(1)))
        await asyncio.wait([task], timeout=10)
        task.cancel()
        await step.sleep("longer", "1h")
        with pytest.raises(asyncio.CancelledError):
            await task
        try:
            await step.run("slow", slow, retry=Retry(1))
        except StepFailed as failed:
            return failed.step_id

    assert virtual_outcome(body) == "slow#2"


NEVER: dict[str, Callable[[Context, Step], Coroutine[Any, Any, Any]]] = {
    "until the end of the calendar": lambda ctx, step: step.sleep_until("never", datetime.max.replace(tzinfo=UTC)),
    "the largest int": lambda ctx, step: asyncio.sleep(sys.maxsize),
    "infinity": lambda ctx, step: asyncio.sleep(math.inf),
    "a time-out of 1e300 s": lambda ctx, step: asyncio.wait_for(asyncio.Event().wait(), 1e300),
}
if sys.version_info < (3, 13):  # from then on asyncio itself refuses it
    NEVER["a number without end"] = lambda ctx, step: asyncio.sleep(10**400)


@pytest.mark.parametrize("sleep", NEVER.values(), ids=NEVER)
async def test_a_sleep_for_ever_is_said_and_disturbs_nobody(client: Client, sleep: Body) -> None:
    _forever(client, sleep)
    other = client.workflow(id="other")(_nothing)
    async with client.worker():
        run = await client.start_workflow("forever", run_id="r")
        await eventually(lambda: _waits(run))
        assert (await run.status()).waiting_on[0].endswith("for ever")
        assert await (await client.start_workflow(other)).result(LIMIT_S) is None
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)


def test_for_ever_does_not_end_in_virtual_time_either() -> None:
    async def main(client: Client) -> Any:
        _forever(client, NEVER["infinity"])
        async with client.worker():
            run = await client.start_workflow("forever")
            with pytest.raises(TimeoutError):
                await run.result("366000d")
            return (await run.status()).waiting_on

    assert virtually(main) == ["sleep '@timer' for ever"]


@pytest.mark.parametrize("wake_at", [2**63 - 1, 2**64 - 1, -(2**63), 253_402_300_800_000])
async def test_times_that_others_wrote_disturb_nobody(new_log: NewLog, wake_at: int) -> None:
    client = Client(driver=new_log())

    async def wait(ctx: Context, step: Step) -> None:
        await step.wait_for_signal("w", signal="come")

    client.workflow(id="w")(wait)
    other = client.workflow(id="other")(_nothing)
    async with client.worker() as worker:
        run = await client.start_workflow("w", run_id="r")
        await eventually(lambda: _waits(run))
        [owner] = (owner for owner in worker.owners.values() if owner.partition == partition_of("r", client.log.partitions))
        event = {"v": 1, "run_id": "r", "at": 0, "claim": owner.claim}
        foreign = [
            {**event, "type": "sleep-scheduled", "step_id": "s", "wake_at": wake_at},
            {**event, "type": "wait-started", "step_id": "t", "signal": "x", "timeout_at": wake_at},
        ]
        await client.log.append(owner.partition, [Entry("r", encode(one)) for one in foreign])
        await client.log.append(owner.partition, [Entry("r", encode({**foreign[0], "step_id": "u"}))])
        await eventually(lambda: _many(run))
        # What is over before the code asks for it is of another history than the code's, once the owner has seen to it.
        assert (await run.status()).state in (("waiting", "quarantined") if wake_at < 0 else ("waiting",)) and await run.history()
        for number in range(8):  # of every partition
            assert await (await client.start_workflow(other, run_id=f"o{number}")).result(LIMIT_S) is None


# Clocks that are wrong.


async def _times_out(ctx: Context, step: Step) -> None:
    async with asyncio.timeout(30):
        await step.wait_for_signal("w", signal="never")


async def _fails_once(ctx: Context, step: Step, retry: Retry, error: Exception) -> None:
    def fail() -> None:
        if current_step().attempt == 1:
            raise error

    await step.run("s", fail, retry=retry)


async def _second_poll(state: int) -> int | Done[None]:
    return state + 1 if state == 0 else Done(None)


async def _never_holds(state: int) -> int | Done[None]:
    return state + 1


async def _gives_up(step: Step) -> None:
    with contextlib.suppress(ConditionTimedOut):
        await step.wait_for_condition("c", _never_holds, initial=0, every=20, timeout=30)


HALF_A_MINUTE: dict[str, Callable[[Context, Step], Coroutine[Any, Any, Any]]] = {
    "step.sleep": lambda ctx, step: step.sleep("s", 30),
    "asyncio.sleep": lambda ctx, step: asyncio.sleep(30),
    "wait_for_signal": lambda ctx, step: step.wait_for_signal("w", signal="never", timeout=30),
    "asyncio.timeout": _times_out,
    "a retry": lambda ctx, step: _fails_once(ctx, step, Retry(2, backoff=30, jitter=False), ValueError()),
    "RetryAfter": lambda ctx, step: _fails_once(ctx, step, Retry(2), RetryAfter(30)),
    "the next poll of a condition": lambda ctx, step: step.wait_for_condition("c", _second_poll, initial=0, every=30),
    "a condition's time-out": lambda ctx, step: _gives_up(step),
}


class OnePartition(MemoryDriver):
    partitions = 1


A_YEAR_MS = 365 * 86_400_000


@pytest.mark.parametrize("jumps", [(0, -3_600_000), (0, 3_600_000), (A_YEAR_MS, 0), (-A_YEAR_MS, 0)], ids=str)
@pytest.mark.parametrize("wait", HALF_A_MINUTE.values(), ids=HALF_A_MINUTE)
@pytest.mark.parametrize("live_runs", [0, 1000])
def test_what_shall_last_half_a_minute_does_whatever_the_clock_does(live_runs: int, wait: Body, jumps: tuple[int, int]) -> None:
    """With room for no run, each that begins drives the code of those that wait out of memory."""

    async def main() -> list[float]:
        off_ms = jumps[0]
        client = Client(driver=OnePartition(clock=lambda: virtual_clock() + off_ms))
        nothing = client.workflow(id="nothing")(_nothing)
        loop = asyncio.get_running_loop()

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            with contextlib.suppress(TimeoutError):
                await wait(ctx, step)

        async def took(started: float, run: Run[Any]) -> float:
            await run.result("2d")
            return round(loop.time() - started, 3)

        async with client.worker(live_runs=live_runs):
            during = took(loop.time(), await client.start_workflow(w))
            await asyncio.sleep(5)
            off_ms = jumps[1]
            after = took(loop.time(), await client.start_workflow(w))
            await asyncio.sleep(1)
            await client.start_workflow(nothing)
            return list(await asyncio.gather(during, after))

    assert run_virtual(main()) == [30, 30]


def test_a_log_whose_time_is_ahead_is_said_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        off_ms = 0
        client = Client(driver=MemoryDriver(clock=lambda: virtual_clock() + off_ms))
        nothing = client.workflow(id="w")(_nothing)
        async with client.worker():
            for back_ms in (0, 1_000, 7_200_000):
                off_ms -= back_ms
                for _ in range(60):
                    await (await client.start_workflow(nothing)).result()
                    await asyncio.sleep(60)

    run_virtual(main())
    said = [record for record in caplog.records if "this worker's clock" in record.getMessage()]
    assert len(said) == 1
    assert "1h 59m ahead of" in said[0].getMessage() or "2h ahead of" in said[0].getMessage()


@pytest.mark.parametrize("jump_ms", [-3_600_000, A_YEAR_MS])
async def test_a_file_whose_clock_was_set(tmp_path: Path, jump_ms: int) -> None:
    """The file's time never goes back: a run of it may begin an hour, or a year, ahead of the clock."""
    off_ms = max(jump_ms, 0)
    client = Client(driver=SQLiteDriver(tmp_path / "log.db", clock=lambda: time.time_ns() // 1_000_000 + off_ms))
    nothing = client.workflow(id="w")(_nothing)
    async with client.worker():
        await (await client.start_workflow(nothing)).result(LIMIT_S)
        off_ms = min(jump_ms, 0)
        await (await client.start_workflow(nothing)).result(LIMIT_S)


def _forever(client: Client, sleep: Body) -> None:
    @client.workflow(id="forever")
    async def forever(ctx: Context, step: Step) -> None:
        await sleep(ctx, step)


async def _nothing(ctx: Context, step: Step) -> None:
    await step.sleep("short", 0.001)


async def _waits(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


async def _many(run: Run[Any]) -> bool:
    """It waits for all that was written, or that was over before anybody could see it wait."""
    status = await run.status()
    return len(status.waiting_on) >= 2 or status.state == "quarantined"
