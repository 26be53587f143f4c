"""A run that its code cannot continue stands still, with the reason; nothing of it is lost, and the others go on."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from typing import Annotated, Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S
from pydantic import AfterValidator

from stepfold import Client, Context, Run, Step, WorkflowCancelled, WorkflowFailed
from stepfold.client.requests import started
from stepfold.client.status import RunStatus
from stepfold.events import encode
from stepfold.log import CLAIM_KEY, Entry, partition_of


async def in_state(run: Run[Any], state: str) -> RunStatus | None:
    status = await run.status()
    return status if status.state == state else None


async def one(ctx: Context, step: Step) -> Any:
    await step.run("a", str)
    await step.wait_for_signal("go", signal="go")
    return await step.run("b", lambda: "old")


async def another(ctx: Context, step: Step) -> Any:
    await step.run("changed", str)
    await step.wait_for_signal("go", signal="go")


async def mended(ctx: Context, step: Step) -> Any:
    await step.run("a", str)
    await step.wait_for_signal("go", signal="go")
    return await step.run("b", lambda: "mended")


async def waiting_run(new_log: NewLog) -> Run[Any]:
    """A run of `one` that waits; its worker has left."""
    client = Client(driver=new_log())
    workflow = client.workflow(id="w")(one)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await eventually(lambda: in_state(run, "waiting"))
    return run


async def test_changed_code_quarantines_its_run_and_mended_code_takes_it_up(new_log: NewLog) -> None:
    await waiting_run(new_log)

    changed = Client(driver=new_log())
    changed.workflow(id="w")(another)
    async with changed.worker():
        run = changed.run("r")
        await run.signal("go")
        status = await eventually(lambda: in_state(run, "quarantined"))
        assert status is not None and status.error is not None
        assert status.error.type == "NonDeterminism"
        assert "step.run 'a'" in status.error.message and "step.run 'changed' at " in status.error.message
        assert status.waiting_on[0].startswith("a fix: NonDeterminism")
        quarantined = next(event for event in await run.history() if event.type == "quarantined")
        details = quarantined.error.model_dump()
        assert details["expected"] == "step.run 'a'" and details["found"].startswith("step.run 'changed'")
        assert "test_quarantine.py:" in details["source"][0]

    again = Client(driver=new_log())
    again.workflow(id="w")(mended)
    async with again.worker():
        assert await again.run("r").result(LIMIT_S) == "mended"
        types = [event.type for event in await again.run("r").history()]
    assert types.count("quarantined") == types.count("resumed") == 1


async def test_code_that_is_still_wrong_leaves_it_as_it_is(new_log: NewLog) -> None:
    await waiting_run(new_log)
    for _ in range(2):
        client = Client(driver=new_log())
        client.workflow(id="w")(another)
        other = client.workflow(id="other")(fine)
        async with client.worker():
            run = client.run("r")
            if not await in_state(run, "quarantined"):
                await run.signal("go")
            await eventually(lambda run=run: in_state(run, "quarantined"))
            assert await (await client.start_workflow(other)).result(LIMIT_S) == "fine"
            assert [event.type for event in await run.history()].count("quarantined") == 1


async def fine(ctx: Context, step: Step) -> str:
    return await step.run("work", lambda: "fine")


async def test_a_quarantined_run_can_be_cancelled(new_log: NewLog) -> None:
    await waiting_run(new_log)
    client = Client(driver=new_log())
    client.workflow(id="w")(another)
    async with client.worker():
        run = client.run("r")
        await run.signal("go")
        await eventually(lambda: in_state(run, "quarantined"))
        await run.cancel("not worth it")
        with pytest.raises(WorkflowCancelled, match="not worth it"):
            await run.result(LIMIT_S)


async def test_a_resumed_run_s_sleeps_and_time_outs_still_end(new_log: NewLog) -> None:
    """They ran out while it stood still."""
    first = Client(driver=new_log())

    async def before(ctx: Context, step: Step) -> Any:
        return await asyncio.gather(
            step.sleep("nap", "2s"), step.wait_for_signal("w", signal="never", timeout="2s"), step.run("a", lambda: "a")
        )

    workflow = first.workflow(id="w")(before)

    async def broken(ctx: Context, step: Step) -> Any:
        await step.run("something else", str)

    async with first.worker():
        await first.start_workflow(workflow, run_id="r")
        await eventually(lambda: in_state(first.run("r"), "waiting"))
    second = Client(driver=new_log())
    second.workflow(id="w")(broken)
    async with second.worker():
        await eventually(lambda: in_state(second.run("r"), "quarantined"))
        events = await second.run("r").history()
        last = max(event.wake_at if event.type == "sleep-scheduled" else event.at + 2000 for event in events)
        await eventually(lambda: is_past(second, last))
    third = Client(driver=new_log())
    third.workflow(id="w")(before)
    async with third.worker():
        assert await third.run("r").result(LIMIT_S) == [None, None, "a"]


async def is_past(client: Client, ms: int) -> bool:
    return client.log.now() > ms


@pytest.mark.parametrize("kind", ["thread", "socket", "executor", "swallowed"])
async def test_real_waiting_in_a_workflow_quarantines_it_and_names_step_run(client: Client, kind: str) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        if kind == "thread":
            await asyncio.to_thread(str)
        elif kind == "socket":
            await asyncio.open_connection("127.0.0.1", 9)
        elif kind == "executor":
            await asyncio.get_running_loop().run_in_executor(None, str)
        else:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(str)
            await step.run("a", str)

    other = client.workflow(id="other")(fine)
    async with client.worker():
        run = await client.start_workflow(w)
        status = await eventually(lambda: in_state(run, "quarantined"))
        assert status is not None and status.error is not None
        assert "step.run" in status.error.message and "test_quarantine.py:" in status.error.message
        assert await (await client.start_workflow(other)).result(LIMIT_S) == "fine"


async def test_a_future_of_the_worker_s_loop_quarantines_it(client: Client) -> None:
    outside = asyncio.get_running_loop().create_future()

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await outside

    async with client.worker():
        run = await client.start_workflow(w)
        status = await eventually(lambda: in_state(run, "quarantined"))
        assert status is not None and "another event loop" in str(status.error)


def _broken(value: int) -> int:
    if value == 7:
        raise TypeError("a mistake in a validator")
    return value


async def test_a_type_that_breaks_on_reading_stops_one_run_only(new_log: NewLog) -> None:
    """Whatever a user's validator raises, the partition goes on."""
    first = Client(driver=new_log())

    async def plain(ctx: Context, step: Step) -> Any:
        await step.run("give", lambda: 7)
        await step.wait_for_signal("go", signal="go")

    workflow = first.workflow(id="w")(plain)
    async with first.worker():
        run = await first.start_workflow(workflow, run_id="r")
        await eventually(lambda: in_state(run, "waiting"))

    def give() -> Any:
        return 7

    give.__annotations__["return"] = Annotated[int, AfterValidator(_broken)]

    async def typed(ctx: Context, step: Step) -> Any:
        await step.run("give", give)
        await step.wait_for_signal("go", signal="go")

    second = Client(driver=new_log())
    second.workflow(id="w")(typed)
    other = second.workflow(id="other")(fine)
    async with second.worker():
        await second.run("r").signal("go")
        status = await eventually(lambda: in_state(second.run("r"), "quarantined"))
        assert status is not None and "a mistake in a validator" in str(status.error)
        assert await (await second.start_workflow(other)).result(LIMIT_S) == "fine"


# Workflows that this worker does not know.


async def test_an_unknown_workflow_waits_visibly_and_is_served_when_it_is_registered(client: Client) -> None:
    async with client.worker():
        run = await client.start_workflow("later", {"n": 1}, run_id="r")
        await eventually(lambda: unknown(run))
        status = await run.status()
        assert (status.state, status.waiting_on) == ("pending", ["a worker that knows workflow 'later'"])

        @client.workflow(id="later")
        async def later(ctx: Context, step: Step) -> Any:
            return [ctx.input.data, await step.run("a", lambda: "served")]

        assert await run.result(LIMIT_S) == [{"n": 1}, "served"]
        assert [event.type for event in await run.history()] == ["started", "workflow-unknown", "step-completed", "completed"]
        assert later.id == "later"


async def unknown(run: Run[Any]) -> bool:
    return any(event.type == "workflow-unknown" for event in await run.history())


async def test_an_unknown_version_waits_for_a_worker_that_knows_it(new_log: NewLog) -> None:
    first = Client(driver=new_log())
    first.workflow(id="w", version="1")(one)
    async with first.worker():
        run = await first.start_workflow("w", version="2", run_id="r")
        await eventually(lambda: unknown(run))
        assert (await run.status()).waiting_on == ["a worker that knows workflow 'w' version '2'"]

    second = Client(driver=new_log())
    second.workflow(id="w", version="1")(one)
    second.workflow(id="w", version="2")(fine)
    async with second.worker():
        assert await second.run("r").result(LIMIT_S) == "fine"


async def test_a_run_keeps_the_version_it_began_with(new_log: NewLog) -> None:
    await waiting_run(new_log)
    client = Client(driver=new_log())
    client.workflow(id="w", version="1")(one)
    client.workflow(id="w", version="2")(fine)
    async with client.worker():
        assert await (await client.start_workflow("w")).result(LIMIT_S) == "fine", "the one registered last"
        await client.run("r").signal("go")
        assert await client.run("r").result(LIMIT_S) == "old"


async def test_input_that_a_later_model_rejects_fails_the_run(client: Client) -> None:
    async with client.worker():
        run = await client.start_workflow("later", "no number")
        await eventually(lambda: unknown(run))

        @client.workflow(id="later")
        async def later(ctx: Context[int], step: Step) -> None: ...

        with pytest.raises(WorkflowFailed, match=r"InputInvalid.*'later'"):
            await run.result(LIMIT_S)
        assert later.version == "1"


async def test_a_run_of_an_unknown_workflow_is_cancelled(client: Client) -> None:
    """There is no code that could clean up, and none has begun anything."""
    async with client.worker():
        run = await client.start_workflow("later", run_id="r")
        await eventually(lambda: unknown(run))
        await run.cancel("not any more")
        with pytest.raises(WorkflowCancelled, match="not any more"):
            await run.result(LIMIT_S)
        assert [event.type for event in await run.history()] == ["started", "workflow-unknown", "cancel-requested", "cancelled"]


async def test_a_run_of_an_unknown_workflow_that_was_cancelled_meanwhile_ends_when_a_worker_comes(client: Client) -> None:
    async with client:
        async with client.worker():
            run = await client.start_workflow("later", run_id="r")
            await eventually(lambda: unknown(run))
        await run.cancel()
        async with client.worker():
            with pytest.raises(WorkflowCancelled):
                await run.result(LIMIT_S)


async def test_a_run_that_has_begun_is_cancelled_by_its_code(new_log: NewLog) -> None:
    """What it has done may have to be undone: it waits for a worker that can."""

    async def careful(ctx: Context, step: Step) -> None:
        await step.run("charge", str)
        try:
            await step.wait_for_signal("go", signal="go")
        finally:
            with step.shield():
                await step.run("refund", str)

    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(careful)
    async with first.worker():
        started = await first.start_workflow(workflow, run_id="r")
        await eventually(lambda: in_state(started, "waiting"))

    second = Client(driver=new_log())
    async with second.worker():
        run = second.run("r")
        await run.cancel()
        await eventually(lambda: unknown(run))
        second.workflow(id="w")(careful)
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
        assert [event.step_id for event in await run.history() if event.type == "step-completed"] == ["charge", "refund"]


async def test_a_run_whose_code_fails_over_its_cancellation_is_cancelled_all_the_same(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        try:
            await step.wait_for_signal("go", signal="go")
        finally:
            await asyncio.to_thread(print)

    async with client.worker():
        run = await client.start_workflow(w, run_id="r")
        await eventually(lambda: in_state(run, "waiting"))
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
        assert [event.type for event in await run.history()][-2:] == ["quarantined", "cancelled"]


@pytest.mark.parametrize(("reason", "told"), [("StepInterrupted", []), ("NonDeterminism", ["code-suspected", "resumed"])])
async def test_after_deaths_no_code_is_announced_that_will_not_be_tried(new_log: NewLog, reason: str, told: list[str]) -> None:
    client = Client(driver=new_log())
    workflow = client.workflow(id="w")(one)
    async with client:
        partition, at = partition_of("r", client.log.partitions), client.log.now()
        claims = [
            {"type": "claim", "v": 2, "at": at, "prev": prev, "owner": owner, "nonce": owner}
            for owner, prev in (("dead-1", -1), ("dead-2", 1), ("dead-3", 3))
        ]
        error = {"type": reason, "message": "stands still"}
        stands = {"type": "quarantined", "v": 2, "at": at, "run_id": "r", "claim": 1, "error": error}
        start = started("r", "w", None, b"null", request="r", at=at)
        first, *others = [Entry(CLAIM_KEY, encode(claim)) for claim in claims]
        await client.log.append(partition, [start, first, Entry("r", encode(stands)), *others])
        other_id = next(f"r-{number}" for number in count() if partition_of(f"r-{number}", client.log.partitions) == partition)
        async with client.worker():
            other = await client.start_workflow(workflow, run_id=other_id)
            await eventually(lambda: in_state(other, "waiting"))
            assert [event.type for event in await client.run("r").history()][:4] == ["started", "quarantined", *told]
