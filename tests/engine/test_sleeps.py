"""Sleeps and the timers of plain asyncio: durable, to the millisecond, years of them in no time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from one_run import history, outcome, virtual_outcome
from virtually import virtually

from stepfold import Client, Context, Retry, Step, StepFailed
from stepfold.drivers import MemoryDriver
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
    _, scheduled, woken, _ = events
    assert 0 <= scheduled.wake_at - scheduled.at - 20 < 5 and woken.at >= scheduled.wake_at


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
