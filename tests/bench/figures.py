"""What the cases share: a figure, the workflows that are measured, and histories that nobody has run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import orjson

from stepfold import Client, Context, Step, Worker
from stepfold.log import Entry, Log

STEPS = 10
APPENDS = STEPS + 2


class Figure(NamedTuple):
    """One row: what was measured, the ceiling if there is one, and what the issue of this table asked for."""

    case: str
    measured: str
    ceiling: str
    ratio: str
    wanted: str
    holds: bool


async def nothing() -> None:
    """A step that does nothing."""


def plainly_nothing() -> None:
    """The same as a plain function."""


def client_with_workflows(driver: Log, *, tracing: object = False) -> Client:
    client = Client(driver=driver, tracing=tracing)

    async def steps(ctx: Context[int], step: Step) -> int:
        for _ in range(ctx.input.data):
            await step.run("step", nothing)
        return ctx.input.data

    async def plain(ctx: Context[int], step: Step) -> int:
        for _ in range(ctx.input.data):
            await step.run("step", plainly_nothing)
        return ctx.input.data

    async def sleeper(_ctx: Context[None], step: Step) -> None:
        await step.run("before", nothing)
        await step.sleep("long", "30d")

    async def holder(ctx: Context[int], step: Step) -> None:
        await steps(ctx, step)
        await step.wait_for_signal("end", signal="end")

    async def ticking(ctx: Context[int], step: Step) -> None:
        for _ in range(ctx.input.data):
            await step.run("tick", asyncio.sleep, 0.2)

    client.workflow(id="ticking")(ticking)
    client.workflow(id="steps")(steps)
    client.workflow(id="plain")(plain)
    client.workflow(id="holder")(holder)
    client.workflow(id="sleeper")(sleeper)
    return client


@contextlib.asynccontextmanager
async def serving(client: Client) -> AsyncGenerator[Worker]:
    """A worker that owns everything and has recovered it."""
    async with client, client.worker() as worker:
        while not worker.owners or not worker.caught_up:
            await asyncio.sleep(0.002)
        yield worker


async def runs(
    client: Client, count: int, at_a_time: int, steps: int = STEPS, workflow: str = "steps"
) -> tuple[float, list[float]]:
    """Runs per second and the seconds of each, start to result."""
    took: list[float] = []

    async def some(number: int) -> None:
        for _ in range(number):
            began = time.perf_counter()
            run = await client.start_workflow(workflow, steps)
            await run.result()
            took.append(time.perf_counter() - began)

    await some(3)
    took.clear()
    began = time.perf_counter()
    await asyncio.gather(*(some(count // at_a_time) for _ in range(at_a_time)))
    return len(took) / (time.perf_counter() - began), took


async def plain_beside_async(client: Client, case: str, wanted: float, count: int, at_a_time: int, rounds: int) -> Figure:
    """The best rounds of plain step functions and of async ones, which take turns."""
    plain = ours = 0.0
    for _ in range(rounds):
        plain = max(plain, (await runs(client, count, at_a_time, workflow="plain"))[0])
        ours = max(ours, (await runs(client, count, at_a_time))[0])
    return Figure(
        f"{case}, plain functions",
        f"{plain:,.0f} runs/s",
        f"{ours:,.0f} runs/s if async",
        f"{plain / ours:.2f} x",
        f"at least {wanted} x",
        plain >= wanted * ours,
    )


def ended_run(run_id: str, claim: int, at: int, steps: int = STEPS) -> list[Entry]:
    """The records of a run that has been and gone."""

    def event(kind: str, **fields: Any) -> Entry:
        return Entry(run_id, orjson.dumps({"type": kind, "v": 1, "run_id": run_id, "at": at, **fields}))

    made = [event("started", request=run_id, workflow="steps", version="1", input=steps)]
    made += [
        event("step-completed", claim=claim, step_id="step" if n == 1 else f"step#{n}", attempt=1, result=None)
        for n in range(1, steps + 1)
    ]
    made.append(event("completed", claim=claim, result=steps))
    return made
