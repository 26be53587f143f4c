"""`step.compensations()`: what a run has done is undone in reverse order, if it fails or is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome, virtual_outcome

from stepfold import Client, Context, NonRetryable, Retry, Step, WorkflowCancelled, WorkflowFailed


async def test_an_error_undoes_in_reverse_order_and_goes_on(client: Client) -> None:
    done: list[str] = []

    async def body(ctx: Context, step: Step) -> None:
        async with step.compensations() as undo:
            for thing in ("room", "flight"):
                await step.run(f"book-{thing}", done.append, thing)
                undo.push(f"release-{thing}", done.append, f"no {thing}")
            raise ValueError("there is no car")

    with pytest.raises(WorkflowFailed, match="there is no car") as failed:
        await outcome(client, body)
    assert failed.value.error.type == "ValueError"
    assert done == ["room", "flight", "no flight", "no room"]
    steps = [event.step_id for event in await history(client) if event.type == "step-completed"]
    assert steps == ["book-room", "book-flight", "release-flight", "release-room"]


def test_nothing_is_undone_after_success() -> None:
    done: list[str] = []

    async def body(ctx: Context, step: Step) -> str:
        async with step.compensations() as undo:
            undo.push("never", done.append, "undone")
            return "fine"

    assert virtual_outcome(body) == "fine"
    assert done == []


async def test_a_cancelled_run_undoes_too(client: Client) -> None:
    done: list[str] = []

    async def body(ctx: Context, step: Step) -> None:
        async with step.compensations() as undo:
            undo.push("first", done.append, "first")
            undo.push("second", done.append, "second")
            await step.wait_for_signal("never", signal="never")

    workflow = client.workflow(id="w")(body)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await eventually(lambda: waits(client))
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
    assert done == ["second", "first"]


async def waits(client: Client) -> bool:
    return bool((await client.run("r").status()).waits)


def test_a_failed_compensation_stops_no_other_and_is_a_note() -> None:
    done: list[str] = []

    def refuse() -> None:
        raise NonRetryable("the hotel is closed")

    async def body(ctx: Context, step: Step) -> list[str]:
        try:
            async with step.compensations() as undo:
                undo.push("first", done.append, "first")
                undo.push("second", refuse)
                raise ValueError("no car")
        except ValueError as error:
            return error.__notes__

    [note] = virtual_outcome(body)
    assert note == "compensation 'second' failed: NonRetryable: the hotel is closed"
    assert done == ["first"]


def test_compensations_are_retried_and_take_their_arguments_when_noted() -> None:
    tries: list[list[int]] = []

    def flaky(numbers: list[int]) -> None:
        tries.append(numbers)
        if len(tries) < 4:
            raise ConnectionError

    async def body(ctx: Context, step: Step) -> None:
        numbers = [1]
        async with step.compensations() as undo:
            undo.push("undo", flaky, numbers, retry=Retry(9, backoff="1s"), timeout="1m")
            numbers.append(2)
            raise ValueError("no")

    with pytest.raises(WorkflowFailed, match="no"):
        virtual_outcome(body)
    assert tries == [[1]] * 4


async def test_a_worker_that_leaves_undoes_nothing_and_the_next_goes_on(new_log: NewLog) -> None:
    done: list[str] = []

    def client_of() -> tuple[Client, Any]:
        client = Client(driver=new_log())

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            async with step.compensations() as undo:
                undo.push("one", done.append, "one")
                undo.push("two", done.append, "two")
                await step.wait_for_signal("go", signal="go")
                raise ValueError("no")

        return client, w

    client, w = client_of()
    async with client, client.worker():
        await client.start_workflow(w, run_id="r")
        await eventually(lambda: waits(client))
    assert done == []
    client, w = client_of()
    async with client, client.worker():
        await client.run("r").signal("go")
        with pytest.raises(WorkflowFailed, match="no"):
            await client.run("r").result(LIMIT_S)
    assert done == ["two", "one"]


MISUSED: dict[str, Callable[[Any], Any]] = {
    "ValueError: .*a#b. is not a step id": lambda undo: undo.push("a#b", print),
    "TypeError: step.run.'a'. was given 3": lambda undo: undo.push("a", 3),
    "TypeError: .*write retry=Retry.3.": lambda undo: undo.push("a", print, retry=3),
    "ValueError: .*soon": lambda undo: undo.push("a", print, timeout="soon"),
    "TypeError: a generator can be iterated once": lambda undo: undo.push("a", print, (one for one in "ab")),
}


@pytest.mark.parametrize("error", MISUSED)
def test_misuse_is_named_when_it_is_noted(error: str) -> None:
    async def body(ctx: Context, step: Step) -> None:
        async with step.compensations() as undo:
            MISUSED[error](undo)

    with pytest.raises(WorkflowFailed, match=error):
        virtual_outcome(body)
