"""Virtual time: no real time passes, equal times keep their order, a program in which nothing can happen says so."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from loop_programs import Drive

from stepfold import Client, ConfigError, Context, Step
from stepfold.replay.loop import DeterministicLoop
from stepfold.testing.virtual import START_MS, VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_clock

YEAR_S = 365 * 86400


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def test_years_pass_at_once() -> None:
    async def main() -> tuple[float, int]:
        for _ in range(100):
            await asyncio.sleep(YEAR_S)
        return virtual_loop().time(), virtual_loop().clock()

    assert run_virtual(main()) == (100 * YEAR_S, START_MS + 100 * YEAR_S * 1000)


def test_the_clock_starts_where_it_is_told_and_counts_whole_milliseconds() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        for seconds in (0.1, 0.2, 0.0004, 0.0006):
            await asyncio.sleep(seconds)
            assert virtual_clock() == virtual_loop().clock()
            seen.append(virtual_clock())
        return seen

    assert run_virtual(main(), start_ms=1_000_000) == [1_000_100, 1_000_300, 1_000_300, 1_000_301]


async def test_real_time_has_another_clock() -> None:
    with pytest.raises(RuntimeError, match="this runs in real time"):
        virtual_clock()


def test_the_same_time_keeps_the_order_of_asking() -> None:
    seen: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for i in range(200):
            loop.call_at(1 + i % 2, seen.append, i)
        loop.call_at(1, seen.append, -1).cancel()
        loop.call_at(-5, seen.append, -2)
        await asyncio.sleep(3)

    run_virtual(main())
    assert seen == [-2, *range(0, 200, 2), *range(1, 200, 2)]


def test_the_same_program_does_the_same_things() -> None:
    async def main() -> list[Any]:
        trace: list[Any] = []
        slots = asyncio.Semaphore(3)

        async def work(i: int) -> int:
            async with slots:
                await asyncio.sleep(i % 4)
                trace.append((i, virtual_loop().time()))
            return i

        pending = {asyncio.create_task(work(i)) for i in range(60)}
        trace.append([task.get_name() for task in pending])
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            trace.append([task.result() for task in done])
        gathered, _ = await asyncio.wait({asyncio.gather(work(i)) for i in range(20)})
        trace.append([each.result() for each in gathered])
        return trace

    first = run_virtual(main())
    elsewhere = [object() for _ in range(1001)]  # so that the second run's objects have other addresses
    assert run_virtual(main()) == first
    assert len(elsewhere) == 1001


def test_timeouts_are_as_virtual_as_sleeps() -> None:
    async def main() -> tuple[str, float]:
        try:
            async with asyncio.timeout(YEAR_S):
                await asyncio.sleep(2 * YEAR_S)
        except TimeoutError:
            return "late", virtual_loop().time()
        return "in time", math.nan

    assert run_virtual(main()) == ("late", YEAR_S)


def test_functions_for_threads_run_inline() -> None:
    async def main() -> tuple[Any, ...]:
        seen: list[float] = []
        virtual_loop().call_soon_threadsafe(seen.append, virtual_loop().time())
        results = await asyncio.gather(asyncio.to_thread(divmod, 7, 2), asyncio.to_thread(int, "x"), return_exceptions=True)
        return *results, seen

    quotient, error, seen = run_virtual(main())
    assert quotient == (3, 1)
    assert isinstance(error, ValueError)
    assert seen == [0]


def test_when_nothing_can_happen_it_says_who_waits_where() -> None:
    cleaned: list[str] = []

    async def wait_for_ever(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(name)

    async def main() -> None:
        task = asyncio.create_task(wait_for_ever("a"), name="a")
        await asyncio.sleep(1)
        await task

    with pytest.raises(VirtualDeadlock) as caught:
        run_virtual(main())
    line = wait_for_ever.__code__.co_firstlineno + 2
    assert f"\n  a at {__file__}:{line}" in str(caught.value)
    assert f"\n  Task-1 at {__file__}:{main.__code__.co_firstlineno + 3}" in str(caught.value)
    assert cleaned == ["a"]


def test_a_task_that_never_began_or_waits_inside_asyncio_has_a_place_too() -> None:
    async def main() -> None:
        asyncio.create_task(asyncio.Event().wait(), name="event")  # noqa: RUF006  # the loop is about to stop
        await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlock, match="event at its beginning"):
        run_virtual(main())


def test_what_main_raises_is_raised() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1)

    async def main() -> None:
        async for number in numbers():
            raise ValueError(number)

    with pytest.raises(ValueError, match="1"):
        run_virtual(main())


def test_workflow_code_runs_nested_in_it() -> None:
    async def workflow(d: Drive) -> str:
        for _ in range(3):
            await asyncio.sleep(YEAR_S)
        return await d.step("a")

    async def main() -> tuple[str, float]:
        d = Drive(DeterministicLoop)
        d.start(workflow)
        assert d.main is not None
        while not d.main.done():
            for name in d.deliverable():
                if name in d.timers:
                    await asyncio.sleep(d.timers[name].delay_s)
                d.deliver(name)
                d.loop.run_until_idle()
        return d.main.result(), virtual_loop().time()

    assert run_virtual(main()) == ("a", 3 * YEAR_S)


def test_what_runs_wait_for_is_said() -> None:
    async def main() -> None:
        client = Client("memory://")

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await step.sleep("nap", "7d")
            await step.wait_for_signal("wait", signal="a")

        async with client.worker():
            await (await client.start_workflow(w, run_id="r")).result()

    with pytest.raises(VirtualDeadlock, match=r"nothing is left to do: run r waits for signal 'a' \(step 'wait'\)") as caught:
        run_virtual(main())
    assert "\n  Task-1 at " in str(caught.value) and "stepfold-read" not in str(caught.value)


def test_of_many_runs_some_are_said() -> None:
    async def main() -> None:
        client = Client("memory://")

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await asyncio.sleep(math.inf)

        async with client.worker():
            runs = [await client.start_workflow(w) for _ in range(8)]
            await runs[0].result()

    with pytest.raises(VirtualDeadlock, match=r"waits for sleep '@timer' for ever.* and 3 more runs"):
        run_virtual(main())


def test_memory_takes_the_virtual_date() -> None:
    async def main() -> list[str]:
        client = Client("memory://")

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> list[str]:
            began = ctx.now()
            await step.sleep("nap", "7d")
            return [f"{when:%Y-%m-%d}" for when in (began, ctx.now())]

        async with client.worker():
            return await (await client.start_workflow(w)).result()

    assert run_virtual(main()) == ["2030-01-01", "2030-01-08"]


async def test_memory_takes_the_date_of_this_machine_in_real_time() -> None:
    client = Client("memory://")
    async with client:
        assert abs(client.log.now() - time.time() * 1000) < 3_600_000


def test_timers_beyond_all_time_are_never_due() -> None:
    async def main() -> None:
        await asyncio.sleep(sys.maxsize)

    with pytest.raises(VirtualDeadlock, match="can happen any more"):
        run_virtual(main())


REAL: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "create_connection": lambda: asyncio.open_connection("127.0.0.1", 9),
    "create_server": lambda: asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0),
    "subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
}


@pytest.mark.parametrize(("name", "call"), REAL.items(), ids=REAL)
def test_what_virtual_time_has_not_is_refused_by_name(name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    with pytest.raises(RuntimeError, match=rf"virtual time has no sockets.*loop\.{name}"):
        run_virtual(call())


def test_a_file_needs_real_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(f"sqlite:///{tmp_path}/log.db"):
            pass

    with pytest.raises(ConfigError, match="needs real time"):
        run_virtual(main())
