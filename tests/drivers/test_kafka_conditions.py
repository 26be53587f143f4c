"""A condition on a real broker, whose owner dies between two polls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from eventually import eventually

from stepfold import Client, Context, Done, Run, Step, Workflow

pytestmark = pytest.mark.kafka


def registered(client: Client, open_gate: asyncio.Event) -> Workflow[Any, str]:
    async def check(state: int) -> int | Done[str]:
        return Done(f"open after {state}") if open_gate.is_set() else state + 1

    @client.workflow(id="gate")
    async def gate(ctx: Context[Any], step: Step) -> str:
        return await step.wait_for_condition("open", check, initial=0, every="20ms")

    return gate


async def test_the_next_owner_goes_on_from_the_last_state(kafka_namespace: str) -> None:
    url, opened = f"{kafka_namespace}?session_timeout_s=6", asyncio.Event()
    dying, living = Client(url), Client(url)
    workflow = registered(dying, opened)
    registered(living, opened)
    async with living:
        async with dying:
            doomed = dying.worker(grace=0)
            await doomed.__aenter__()
            await dying.start_workflow(workflow, run_id="g")
            run = living.run("g")
            await eventually(lambda: _polled(run, 3))
            await dying.log.close()  # its worker can append nothing more
            await doomed.__aexit__(None, None, None)
        before = len(await _states(run))
        async with living.worker():
            await eventually(lambda: _polled(run, before + 3))
            opened.set()
            result = await run.result(timeout=120)
        states = await _states(run)
        assert states == list(range(1, len(states) + 1))
        assert result == f"open after {len(states)}"


async def _states(run: Run[Any]) -> list[Any]:
    """The states that the polls gave, in the log's order."""
    events: list[Any] = await run.history()
    return [event.state for event in events if event.type == "condition-polled"]


async def _polled(run: Run[Any], polls: int) -> bool:
    return len(await _states(run)) >= polls
