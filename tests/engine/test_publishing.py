"""Published values: what readers get while a run goes on, over restarts and kills, and how much a run may publish."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome

from stepfold import Client, Context, Published, Run, RunNotFound, StateChanged, Step, StepFailed, WorkflowCancelled
from stepfold.core.snapshot import pack
from stepfold.drivers import MemoryDriver
from stepfold.errors import LogUnavailable
from stepfold.log import Ack, Entry
from stepfold.operations.publish import published_by
from stepfold.worker.owner.appending import MAX_QUEUED
from stepfold.worker.owner.running import MAX_TOLD


def counting(total: int, before: int = 0) -> Any:
    """A body that publishes its way to `total`, and says how far it was when a signal let it go on."""

    async def body(ctx: Context[Any], step: Step) -> int:
        for number in range(before):
            await step.publish("progress", number + 1)
        if before:
            await step.wait_for_signal("go", signal="go")
        for number in range(before, total):
            await step.publish("progress", number + 1)
        return total

    return body


async def numbers(run: Run[Any], key: str = "progress") -> list[tuple[int, Any]]:
    """The numbers and values that count, in the log's order."""
    return [(event.seq, event.value) for event in await run.history() if event.type == "published" and event.key == key]


def dense(total: int) -> list[tuple[int, int]]:
    return [(number, number) for number in range(1, total + 1)]


async def test_the_last_value_of_each_key_is_there_while_the_run_goes_on_and_after(client: Client) -> None:
    async def body(ctx: Context[Any], step: Step) -> None:
        await step.publish("progress", {"done": 1, "of": [2]})
        await step.publish("note", None)
        await step.wait_for_signal("go", signal="go")
        async with step.scope("inner") as inner:
            await inner.publish("progress", {"done": 2})

    workflow = client.workflow(id="w")(body)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")

        async def there() -> bool:
            return (await run.status()).state == "waiting"

        await eventually(there)
        assert await run.published() == {"progress": {"done": 1, "of": [2]}, "note": None}
        (await run.published("progress"))["of"].append("of the reader alone")
        assert await run.published("progress") == {"done": 1, "of": [2]}
        assert await run.published("nothing") is None
        await run.signal("go")
        await run.result(LIMIT_S)
        assert await client.run("r").published("progress") == {"done": 2}
        with pytest.raises(RunNotFound):
            await client.run("nobody").published()
    kinds = [event.type for event in await history(client)]
    assert kinds == ["started", "published", "published", "wait-started", "signal-received", "published", "completed"]


async def test_a_step_function_is_told_to_use_the_heartbeat(client: Client) -> None:
    async def body(ctx: Context[Any], step: Step) -> str:
        async def fn() -> None:
            await step.publish("progress", 1)

        try:
            await step.run("s", fn)
        except StepFailed as failed:
            return failed.error.message
        return "published"

    said = await outcome(client, body)
    assert said.startswith("step.publish('progress') was called inside step 's'") and "heartbeat(details)" in said


async def test_a_watcher_sees_all_of_it_and_goes_on_where_it_was(client: Client) -> None:
    workflow = client.workflow(id="w")(counting(5, before=2))
    async with client.worker():
        with pytest.raises(RunNotFound):
            await anext(client.run("r").watch())
        run = await client.start_workflow(workflow, run_id="r")
        changes: list[Published | StateChanged] = []
        async for change in run.watch():
            changes.append(change)
            if isinstance(change, StateChanged) and change.state == "waiting":
                await run.signal("go")
        shown = [change[:-1] for change in changes]
        assert shown[0] in (("pending",), ("running",)) and [one for one in shown if len(one) == 2] == [
            ("progress", n) for n in range(1, 6)
        ]
        assert shown[-1] == ("completed",) and ("running",) in shown
        assert [change.position for change in changes] == sorted(change.position for change in changes)
        again = client.run("r")
        assert [change async for change in again.watch()] == changes
        for change in changes:
            behind = [one for one in changes if one.position > change.position]
            assert [one async for one in again.watch(after=change.position)] == behind


async def test_the_value_at_an_offset_is_the_one_that_could_be_read_then(new_log: NewLog) -> None:
    client = Client(driver=new_log())
    workflow = client.workflow(id="w")(counting(20, before=10))
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        seen: dict[int, Any] = {}

        async def look() -> None:
            while True:
                view = await client.views.read("r")
                if view.run is not None:
                    seen[view.changed_at] = {key: last.value for key, last in published_by(view.run).items()}
                await asyncio.sleep(0)

        reader = asyncio.create_task(look())
        await run.signal("go")
        await run.result(LIMIT_S)
        reader.cancel()
        last: dict[int, Any] = {}
        values: dict[str, Any] = {}
        for event in await run.history():
            if event.type == "published":
                values = values | {event.key: event.value}
            assert event.offset is not None
            last[event.offset] = values
        assert seen and all(last[offset] == found for offset, found in seen.items())


async def test_a_hundred_thousand_values_leave_the_run_as_small_as_one(client: Client) -> None:
    sizes: dict[int, int] = {}

    async def body(ctx: Context[int], step: Step) -> None:
        for number in range(ctx.input.data):
            await step.publish("progress", number % 10)
        await step.wait_for_signal("go", signal="go")

    workflow = client.workflow(id="w")(body)
    async with client.worker():
        for total in (1, 100_000):
            run = await client.start_workflow(workflow, total, run_id=f"r-{total}")

            async def there(run: Run[Any] = run) -> bool:
                return (await run.status()).state == "waiting"

            await eventually(there)
            folded = (await client.views.read(run.id)).run
            assert folded is not None and not folded.journal and published_by(folded)["progress"].seq == total
            sizes[total] = len(pack(folded))
            await run.signal("go")
            await run.result(LIMIT_S)
    assert sizes[100_000] < sizes[1] + 50


class Counted(MemoryDriver):
    """Notes how many records each append has, and may die of one of them."""

    @property
    def needs_local_worker(self) -> bool:
        return False

    def __init__(self, name: str, left: int | None = None) -> None:
        super().__init__(name)
        self.batches: list[int] = []
        self.left = left

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        if self.left is not None:
            ours = self.left
            self.left -= len(entries)
            if self.left < 0:
                if ours > 0:
                    await super().append(partition, entries[:ours])
                raise LogUnavailable("the process has died")
        self.batches.append(len(entries))
        return await super().append(partition, entries)


async def test_the_append_queue_stays_short_and_others_go_on(request: pytest.FixtureRequest) -> None:
    driver = Counted(request.node.name)
    client = Client(driver=driver)
    chatty = client.workflow(id="chatty")(counting(10_000))
    polite = client.workflow(id="polite")(counting(2))
    async with client.worker():
        runs = [await client.start_workflow(chatty, run_id=f"chatty-{number}") for number in range(3)]
        other = await client.start_workflow(polite, run_id="polite")
        await other.result(LIMIT_S)
        assert not any([(await run.status()).ended_at for run in runs])
        for run in runs:
            await run.result(120)
            assert await numbers(run) == dense(10_000)
    assert max(driver.batches) <= MAX_QUEUED + 4 * MAX_TOLD


@pytest.mark.parametrize("left", [3, 4, 5, 300, 301, 1999])
async def test_killed_between_two_values_the_next_worker_goes_on_with_the_next(request: pytest.FixtureRequest, left: int) -> None:
    name = request.node.name
    first = Client(driver=Counted(name))
    workflow = first.workflow(id="w")(counting(2_500, before=1_000))
    async with first:
        await first.start_workflow(workflow, run_id="r")
        await first.run("r").signal("go")
    dying = Client(driver=Counted(name, left))
    dying.workflow(id="w")(counting(2_500, before=1_000))
    async with dying.worker(grace=0):

        async def dead() -> bool:
            assert isinstance(dying.log, Counted)
            return dying.log.left is not None and dying.log.left < 0

        await eventually(dead)
        await dying.log.close()
    after = Client(driver=MemoryDriver(name))
    after.workflow(id="w")(counting(2_500, before=1_000))
    async with after.worker():
        run = after.run("r")
        assert await run.result(LIMIT_S) == 2_500
        assert await numbers(run) == dense(2_500)
        assert await run.published("progress") == 2_500


async def test_a_worker_that_leaves_in_the_middle_loses_nothing(new_log: NewLog) -> None:
    total = 6_000
    first = Client(driver=new_log())
    workflow = first.workflow(id="w")(counting(total))
    async with first.worker():
        run = await first.start_workflow(workflow, run_id="r")
        async for change in run.watch():
            if isinstance(change, Published):
                break
    second = Client(driver=new_log())
    second.workflow(id="w")(counting(total))
    async with second.worker():
        run = second.run("r")
        assert await run.result(LIMIT_S) == total
        assert await numbers(run) == dense(total)


async def test_a_cancelled_run_says_its_last_word_in_a_shield(client: Client) -> None:
    async def body(ctx: Context[Any], step: Step) -> None:
        try:
            await step.sleep("long", "1d")
        finally:
            with step.shield():
                for number in range(2 * MAX_TOLD + 7):
                    await step.publish("cleaned", number)
                await step.run("clean", int)
                await step.publish("state", "clean")

    workflow = client.workflow(id="w")(body)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await run.cancel()
        with pytest.raises(WorkflowCancelled):
            await run.result(LIMIT_S)
        assert await run.published() == {"cleaned": 2 * MAX_TOLD + 6, "state": "clean"}


async def test_nothing_is_published_before_what_the_code_had_read(client: Client) -> None:
    async def body(ctx: Context[Any], step: Step) -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(branch(step, name))

    async def branch(step: Step, name: str) -> None:
        async with step.scope(name) as inner:
            for number in range(5):
                await inner.publish(name, await inner.run("s", int, number))

    await outcome(client, body)
    known: dict[str, Any] = {}
    for event in await history(client):
        if event.type == "step-completed":
            known[event.step_id[0]] = event.result
        elif event.type == "published":
            assert known[event.key] == event.value
