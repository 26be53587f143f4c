"""A task that is cancelled from outside its shields, and those that it has entered itself."""

from __future__ import annotations

import asyncio

from loop_programs import Drive

from stepfold.replay.futures import DeterministicTask
from stepfold.replay.loop import DeterministicLoop


def test_a_cancellation_outside_shields_waits_for_those_that_the_task_has_entered() -> None:
    async def program(d: Drive) -> list[str]:
        seen: list[str] = []

        async def shielded(name: str, depth: int) -> None:
            me = asyncio.current_task()
            assert isinstance(me, DeterministicTask)
            me.shielded += depth
            await d.step(name)
            for _ in range(depth):
                seen.append(f"{name} at {me.shielded}")
                me.left_shield()
            await d.step(f"{name} again")
            seen.append(f"{name} is done")

        me = asyncio.current_task()
        assert isinstance(me, DeterministicTask)
        me.shielded += 1  # the others inherit this one
        tasks = [d.loop.create_task(shielded(name, depth)) for name, depth in (("bare", 0), ("deep", 2), ("left alone", 1))]
        await d.step("begin")
        for task in tasks[:2]:
            task.cancel_outside_shield()
        await asyncio.wait(tasks)
        return [*seen, *(f"{task.cancelled()}" for task in tasks)]

    d = Drive(DeterministicLoop)
    d.start(program)
    for name in ("begin", "deep", "left alone", "left alone again"):
        d.deliver(name)
        d.loop.run_until_idle()
    assert d.main is not None
    seen = ["deep at 3", "deep at 2", "left alone at 2", "left alone is done"]
    assert d.main.result() == [*seen, "True", "True", "False"]
