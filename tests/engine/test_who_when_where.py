"""The history says when attempts waited and ran, where the code stands, and who asked for what."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from one_run import LIMIT_S, history, outcome
from virtually import virtually

from stepfold import Client, Context, Retry, Run, Step, WorkflowFailed
from stepfold.client.story import askers, line_json, story
from stepfold.client.tail import read_run
from stepfold.errors import StepfoldError
from stepfold.events import Request

HERE = Path(__file__).name


def line_with(text: str) -> int:
    """The number of the one line of this file that has the text in a comment."""
    [found] = [number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.endswith(f"# {text}")]
    return found


async def told_by(run: Run[Any], kind: str = "") -> list[Any]:
    return [event for event in await run.history() if event.type.startswith(kind)]


def test_an_attempt_tells_how_long_it_waited_for_a_place_and_how_long_it_ran() -> None:
    async def main(client: Client) -> None:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await asyncio.gather(step.run("first", asyncio.sleep, 3), step.run("second", asyncio.sleep, 2))
            await step.run("quick", asyncio.sleep, 0)

        async with client.worker(concurrency=1):
            run = await client.start_workflow(w, run_id="r")
            await run.result()
            done = await told_by(run, "step-completed")
            first, second, quick = done
            assert (first.queued_at, first.at - first.began_at) == (None, 3_000)
            assert (second.began_at - second.queued_at, second.at - second.began_at) == (3_000, 2_000)
            assert (quick.queued_at, quick.began_at) == (None, None), "there is nothing to say"
            view = await read_run(client.log, "r")
            assert view.run is not None
            told = {line.step_id: line for line in story(view.run, view.events)}
            assert [(line.queued_ms, line.ran_ms) for line in told.values()] == [(0, 3_000), (3_000, 2_000), (None, None)]
            start = view.run.started_at
            assert [(at - start, mark) for at, mark in told["second"].points] == [
                (0, "queued"),
                (3_000, "began"),
                (5_000, "ended"),
            ]

    virtually(main)


def test_a_failed_attempt_tells_it_too() -> None:
    async def main(client: Client) -> None:
        async def fail() -> None:
            await asyncio.sleep(4)
            raise ValueError("no")

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await step.run("a", fail, retry=Retry(2, backoff="1s", jitter=False))

        async with client.worker():
            run = await client.start_workflow(w)
            with pytest.raises(WorkflowFailed):
                await run.result()
            failures = await told_by(run, "step-failed")
            assert [(event.queued_at, event.at - event.began_at) for event in failures] == [(None, 4_000)] * 2

    virtually(main)


async def test_a_plain_function_begins_when_its_thread_calls_it(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> None:
        await step.run("a", time.sleep, 0.02)

    await outcome(client, body)
    [event] = [event for event in await history(client) if event.type == "step-completed"]
    assert event.began_at is not None and event.at - event.began_at >= 20


async def test_what_opens_an_operation_says_where_the_code_stands(client: Client) -> None:
    seen: list[int] = []

    def once() -> None:
        seen.append(1)
        if len(seen) == 1:
            raise ConnectionError("no answer")

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.sleep("nap", 0)  # the sleep
        await step.run("a", once, retry=Retry(2, backoff="1ms"), record_input=True)  # the step
        await step.callback("asked", timeout="1h")  # the callback
        await step.wait_for_signal("go", signal="go")  # the wait
        raise LookupError("the end")  # the failure

    async with asyncio.timeout(LIMIT_S), client.worker():
        run = await client.start_workflow(w)
        await run.signal("go")
        with pytest.raises(WorkflowFailed):
            await run.result()
        events: dict[str, Any] = {event.type: event for event in await told_by(run)}
    stands = {kind: event.at_line for kind, event in events.items() if getattr(event, "at_line", None)}
    assert stands == {
        "sleep-scheduled": f"{HERE}:{line_with('the sleep')}",
        "attempt-started": f"{HERE}:{line_with('the step')}",
        "step-failed": f"{HERE}:{line_with('the step')}",
        "callback-created": f"{HERE}:{line_with('the callback')}",
        "wait-started": f"{HERE}:{line_with('the wait')}",
        "failed": f"{HERE}:{line_with('the failure')}",
    }


async def test_each_request_says_who_asked_and_why(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.wait_for_signal("go", signal="go")
        asked = await step.callback("asked")
        await step.run("tell", ids.append, asked.id)
        await asked
        await step.wait_for_signal("never", signal="never")

    ids: list[str] = []
    async with asyncio.timeout(LIMIT_S), client.worker():
        run = await client.start_workflow(w, run_id="r", by="ann@shop", why="a new order")
        await run.signal("go", by="ben", why="it is paid")
        while not ids:
            await asyncio.sleep(0.002)
        assert await client.heartbeat_callback(ids[0], by="the printer")
        assert await client.complete_callback(ids[0], by="the printer", why="printed")
        await run.cancel("enough", by="cat")
        with pytest.raises(StepfoldError):
            await run.result()
        view = await read_run(client.log, "r")
    said = {event.type: (event.by, getattr(event, "why", None)) for event in view.events if isinstance(event, Request)}
    assert said == {
        "started": ("ann@shop", "a new order"),
        "signal-received": ("ben", "it is paid"),
        "callback-heartbeat": ("the printer", None),
        "callback-completed": ("the printer", "printed"),
        "cancel-requested": ("cat", None),
    }
    assert view.run is not None
    told = {line.step_id: line_json(line) for line in story(view.run, view.events)}
    assert [(told[step]["by"], told[step]["why"]) for step in ("go", "asked")] == [
        ("ben", "it is paid"),
        ("the printer", "printed"),
    ]
    assert askers(view.events) == {"by": "ann@shop", "why": "a new order", "cancelled_by": "cat", "at_line": None}


@pytest.mark.parametrize(
    "asked", [{"by": ""}, {"by": "a\nb"}, {"by": "x" * 201}, {"why": "x" * 10_001}, {"by": 7}, {"why": "\ud800"}]
)
async def test_a_name_or_text_that_is_not_valid_is_refused(client: Client, asked: dict[str, Any]) -> None:
    async with client.worker():
        with pytest.raises(ValueError, match=next(iter(asked))):
            await client.start_workflow("w", run_id="r", **asked)
        with pytest.raises(StepfoldError):
            await client.run("r").status()
