"""Cancelling a run: raised at every await until the code ends, but for shields, in which it cleans up."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import pytest
from eventually import eventually
from one_run import LIMIT_S
from virtually import virtually

from stepfold import Client, Context, Retry, Run, RunNotFound, Step, Workflow, WorkflowCancelled, WorkflowFailed

Waiting = Workflow[Any, Any]


async def cancelled(client: Client, workflow: Waiting, reason: str | None = None) -> Run[Any]:
    """A run of `workflow` that was cancelled while it waited; ended."""
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await eventually(lambda: is_waiting(run))
        await run.cancel(reason)
        with pytest.raises(WorkflowCancelled, match=reason) as error:
            await run.result(LIMIT_S)
        assert (error.value.run_id, error.value.reason) == ("r", reason)
        status = await run.status()
        assert (status.state, status.reason, status.error, status.waiting_on) == ("cancelled", reason, None, [])
    return run


async def is_waiting(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


async def types(client: Client) -> list[str]:
    async with client:
        return [event.type for event in await client.run("r").history()]


async def test_a_run_that_waits_is_cancelled(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.wait_for_signal("never", signal="never")

    await cancelled(client, w, "changed my mind")
    assert await types(client) == ["started", "wait-started", "cancel-requested", "cancelled"]


async def test_a_step_that_runs_is_interrupted(client: Client) -> None:
    running, interrupted = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        running.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            interrupted.set()

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.run("hang", hang)

    async with client.worker():
        run = await client.start_workflow(w)
        await asyncio.wait_for(running.wait(), LIMIT_S)
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
        await asyncio.wait_for(interrupted.wait(), LIMIT_S)


async def test_the_code_cleans_up_in_a_shield(client: Client) -> None:
    done: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        try:
            await step.wait_for_signal("never", signal="never")
        finally:
            with step.shield():
                await step.run("refund", lambda: done.append("refund"))
                await step.sleep("settle", "1ms")
                await step.run("mail", lambda: done.append("mail"))

    await cancelled(client, w)
    assert done == ["refund", "mail"]
    assert (await types(client))[-1] == "cancelled"


async def test_without_a_shield_every_await_is_interrupted(client: Client) -> None:
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        for name in ("wait", "step", "sleep", "event", "plain sleep", "signal", "gather"):
            try:
                if name == "wait":
                    await step.wait_for_signal("never", signal="never")
                elif name == "step":
                    await step.run("a", lambda: seen.append("ran"))
                elif name == "sleep":
                    await step.sleep("b", 0)
                elif name == "event":
                    await asyncio.Event().wait()
                elif name == "plain sleep":
                    await asyncio.sleep(10)
                elif name == "signal":
                    await step.send_signal("c", signal="x", run_id="r")
                else:
                    await asyncio.gather(step.run("d", lambda: 1), asyncio.sleep(5))
            except asyncio.CancelledError:
                seen.append(name)
        await step.run("last", lambda: seen.append("ran"))

    await cancelled(client, w)
    assert seen == ["wait", "step", "sleep", "event", "plain sleep", "signal", "gather"]


async def test_who_swallows_it_for_ever_is_ended_all_the_same(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        while True:
            try:
                await step.wait_for_signal("never", signal="never")
            except asyncio.CancelledError:
                await asyncio.sleep(0)

    await cancelled(client, w)


async def test_who_swallows_it_with_a_bare_except_is_ended_too(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        while True:
            with contextlib.suppress(BaseException):
                await asyncio.Event().wait()

    async with client.worker():
        run = await client.start_workflow(w, run_id="r")
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)


async def test_who_ends_in_spite_of_it_has_ended(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        try:
            await step.wait_for_signal("never", signal="never")
        except asyncio.CancelledError:
            return "closed early"
        return "?"

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: is_waiting(run))
        await run.cancel("tired")
        assert await run.result(LIMIT_S) == "closed early"


async def test_who_fails_while_cleaning_up_has_failed(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        try:
            await step.wait_for_signal("never", signal="never")
        finally:
            raise ValueError("cannot clean up")

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: is_waiting(run))
        await run.cancel()
        with pytest.raises(WorkflowFailed, match="cannot clean up"):
            await run.result(LIMIT_S)


async def test_a_shield_is_finished_first(client: Client) -> None:
    """The request comes while the code is in a shield: it goes on to the shield's end and stops at the next await."""
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        with step.shield():
            await step.wait_for_signal("paid", signal="paid")
            await step.run("ship", lambda: seen.append("ship"))
        seen.append("after")
        await step.run("never", lambda: seen.append("never"))

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: is_waiting(run))
        await run.cancel()
        await run.signal("paid")
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
    assert seen == ["ship", "after"]


async def test_shields_inside_shields_and_tasks_born_in_one(client: Client) -> None:
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        async def ship() -> None:
            await step.run("ship", lambda: seen.append("ship"))

        try:
            await step.wait_for_signal("never", signal="never")
        finally:
            with step.shield():
                with step.shield():
                    await step.run("one", lambda: seen.append("one"))
                await asyncio.gather(ship(), step.run("two", lambda: seen.append("two")))
                async with asyncio.TaskGroup() as group:
                    group.create_task(step.run("three", lambda: seen.append("three")))

    await cancelled(client, w)
    assert sorted(seen) == ["one", "ship", "three", "two"]


async def test_branches_are_cancelled_and_clean_up_each(client: Client) -> None:
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        async def branch(name: str) -> None:
            async with step.scope(name) as scoped:
                try:
                    await scoped.wait_for_signal("never", signal="never")
                finally:
                    with scoped.shield():
                        await scoped.run("clean", lambda: seen.append(name))

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(branch(name))

    await cancelled(client, w)
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize("together", ["gather", "group", "await"])
async def test_what_one_branch_shields_the_others_do_not_interrupt(client: Client, together: str) -> None:
    """The request comes while one branch is in a shield and another waits: only the other is interrupted."""
    seen: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        async def shielded() -> None:
            with step.shield():
                await step.wait_for_signal("paid", signal="paid")
                await step.run("ship", lambda: seen.append("ship"))
            await step.run("never", lambda: seen.append("never"))

        async def exposed() -> None:
            try:
                await step.wait_for_signal("other", signal="other")
            finally:
                seen.append("other interrupted")

        if together == "gather":
            await asyncio.gather(shielded(), exposed())
        elif together == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(shielded())
                group.create_task(exposed())
        else:
            second = asyncio.create_task(exposed())
            await asyncio.create_task(shielded())
            await second

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: waits_on(run, 2))
        await run.cancel()
        await eventually(lambda: waits_on(run, 1))
        await run.signal("paid")
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
    assert seen == ["other interrupted", "ship"]


async def waits_on(run: Run[Any], count: int) -> bool:
    status = await run.status()
    return status.state == "waiting" and len(status.waiting_on) == count


@pytest.mark.skipif(
    sys.version_info < (3, 11, 3), reason="asyncio.timeout of this Python does not work in a cancelled task (gh-102780)"
)
def test_a_time_out_inside_a_shield_works_while_the_run_is_cancelled() -> None:
    async def main(client: Client) -> list[str]:
        seen: list[str] = []

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            try:
                await step.wait_for_signal("never", signal="never")
            finally:
                with step.shield():
                    try:
                        async with asyncio.timeout(60):
                            await step.wait_for_signal("answer", signal="answer")
                    except TimeoutError:
                        seen.append("no answer")
                    await step.run("note", lambda: seen.append("noted"))

        async with client.worker():
            run = await client.start_workflow(w)
            await asyncio.sleep(1)
            await run.cancel()
            with pytest.raises(WorkflowCancelled):
                await run.result("1d")
        return seen

    assert virtually(main) == ["no answer", "noted"]


async def test_a_second_request_changes_nothing(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        try:
            await step.wait_for_signal("never", signal="never")
        finally:
            with step.shield():
                await step.wait_for_signal("go", signal="go")

    async with client.worker():
        run = await client.start_workflow(w)
        await eventually(lambda: is_waiting(run))
        await run.cancel("first")
        await run.cancel("second")
        await run.signal("go")
        with pytest.raises(WorkflowCancelled, match="first"):
            await run.result(LIMIT_S)


async def test_what_has_ended_or_never_was_cannot_be_cancelled(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None: ...

    async with client.worker():
        run = await client.start_workflow(w)
        await run.result(LIMIT_S)
        with pytest.raises(RunNotFound, match="has ended"):
            await run.cancel()
        with pytest.raises(RunNotFound):
            await client.run("nobody").cancel()


@pytest.mark.parametrize("reason", [5, b"x", "\ud800", "x" * 1_000_000])
async def test_a_reason_is_a_text_of_sensible_length(client: Client, reason: Any) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await step.wait_for_signal("go", signal="go")

    async with client.worker():
        run = await client.start_workflow(w)
        with pytest.raises(ValueError, match="why="):
            await run.cancel(reason)
        await run.signal("go")
        await run.result(LIMIT_S)


def test_a_run_that_sleeps_for_a_year_is_cancelled_at_once() -> None:
    async def main(client: Client) -> float:
        loop = asyncio.get_running_loop()

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> None:
            await step.sleep("long", "365d")

        async with client.worker():
            run = await client.start_workflow(w)
            await asyncio.sleep(10)
            await run.cancel()
            with pytest.raises(WorkflowCancelled):
                await run.result()
            return loop.time()

    assert virtually(main) < 11


async def test_a_workflow_that_cancels_itself_has_failed(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await step.run("a", lambda: 1)

    async with client.worker():
        run = await client.start_workflow(w)
        with pytest.raises(WorkflowFailed, match="cancelled itself"):
            await run.result(LIMIT_S)


async def test_a_shield_is_for_workflows(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        async def use() -> None:
            with step.shield():
                pass

        await step.run("use", use, retry=Retry(1))

    async with client.worker():
        run = await client.start_workflow(w)
        with pytest.raises(WorkflowFailed, match="is for workflow code"):
            await run.result(LIMIT_S)
