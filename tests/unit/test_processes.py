"""Simulated processes: who is paused gets no turn, who is killed never again, and what is outside goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from stepfold.testing.processes import Process, ProcessLoop, current_process


def simulated(main: Callable[[ProcessLoop], Coroutine[Any, Any, None]]) -> None:
    loop = ProcessLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


async def ticking(times: list[float], loop: ProcessLoop) -> None:
    while True:
        await asyncio.sleep(1)
        times.append(loop.time())


def test_what_a_process_starts_belongs_to_it() -> None:
    async def main(loop: ProcessLoop) -> None:
        process = Process(loop, "one")
        assert current_process() is None

        async def inner() -> Process | None:
            return await asyncio.create_task(innermost())

        async def innermost() -> Process | None:
            await asyncio.sleep(1)
            return current_process()

        assert await process.start(inner()) is process

    simulated(main)


def test_a_paused_process_gets_its_turns_afterwards() -> None:
    async def main(loop: ProcessLoop) -> None:
        process, other = Process(loop, "one"), Process(loop, "other")
        times: list[float] = []
        others: list[float] = []
        tasks = [process.start(ticking(times, loop)), other.start(ticking(others, loop))]
        await asyncio.sleep(2.5)
        process.pause()
        await asyncio.sleep(3)
        assert (times, others) == ([1, 2], [1, 2, 3, 4, 5])
        process.resume()
        await asyncio.sleep(2)
        assert times == [1, 2, 5.5, 6.5]
        for task in tasks:
            task.cancel()

    simulated(main)


def test_a_killed_process_cleans_nothing_up() -> None:
    async def main(loop: ProcessLoop) -> None:
        process = Process(loop, "one")
        cleaned: list[str] = []

        async def victim() -> None:
            try:
                await asyncio.sleep(1)
            finally:
                cleaned.append("no")

        task = process.start(victim())
        await asyncio.sleep(0.5)
        process.kill()
        process.resume()
        await asyncio.sleep(10)
        assert not task.done()
        assert cleaned == []
        process.held.clear()

    simulated(main)


def test_a_process_can_be_killed_at_any_turn() -> None:
    async def main(loop: ProcessLoop) -> None:
        for turn in range(1, 5):
            process = Process(loop, f"number {turn}")
            process.turns, process.on_turn = turn, process.kill
            times: list[float] = []
            began = loop.time()
            process.start(ticking(times, loop))
            await asyncio.sleep(10)
            assert process.state == "dead"
            assert len(times) < 10, began

    simulated(main)


def test_every_process_has_its_own_clock() -> None:
    async def main(loop: ProcessLoop) -> None:
        slow = Process(loop, "slow", skew_ms=-500)
        await asyncio.sleep(1)
        assert slow.clock() == loop.start_ms + 500
        slow.skew_ms = 2000
        assert slow.clock() == loop.start_ms + 3000

    simulated(main)
