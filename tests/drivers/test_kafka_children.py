"""Children on a real broker with four partitions, between two workers of which one dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from eventually import eventually

from stepfold import Client, Context, Step, Workflow

pytestmark = pytest.mark.kafka
CHILDREN = 40


def doubled(number: int) -> int:
    return 2 * number


def registered(client: Client) -> Workflow[int, list[int]]:
    @client.workflow(id="kid")
    async def kid(ctx: Context[int], step: Step) -> int:
        await step.sleep("a while", "50ms")
        return await step.run("double", doubled, ctx.input.data)

    @client.workflow(id="parent")
    async def parent(ctx: Context[int], step: Step) -> list[int]:
        return list(await asyncio.gather(*(step.invoke_workflow(f"{n}", kid, n) for n in range(ctx.input.data))))

    return parent


async def test_children_of_four_partitions_outlive_a_worker(kafka_namespace: str) -> None:
    url = f"{kafka_namespace}?session_timeout_s=6"
    dying, living = Client(url), Client(url)
    parents = registered(dying), registered(living)
    async with living, living.worker() as worker:
        async with dying:
            doomed = dying.worker(grace=0)
            other = await doomed.__aenter__()

            async def shared() -> bool:
                return all(sum(owner.active for owner in one.owners.values()) == 2 for one in (worker, other))

            await eventually(shared)
            runs = [await living.start_workflow(parents[1], CHILDREN, run_id=f"p{number}") for number in range(4)]
            await eventually(lambda: _some(living))
            await dying.log.close()  # nothing is said, nothing is released
            await doomed.__aexit__(None, None, None)
        for run in runs:
            assert await run.result(timeout=120) == [2 * number for number in range(CHILDREN)]
            history: list[Any] = await run.history()
            for kind in ("child-scheduled", "child-ended"):
                assert sum(event.type == kind for event in history) == CHILDREN


async def _some(client: Client) -> bool:
    """Whether some children have ended."""
    return sum([event.type == "child-ended" for event in await client.run("p0").history()]) > 2
