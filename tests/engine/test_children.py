"""Children over the partitions of a log, and what becomes of them when workers die."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S
from pydantic import BaseModel

from stepfold import (
    ChildFailed,
    ChildTimedOut,
    Client,
    Context,
    InputInvalid,
    Run,
    RunNotFound,
    Step,
    Workflow,
    WorkflowCancelled,
)
from stepfold.core.messages import OUTBOX_KEY
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.errors import LogUnavailable
from stepfold.log import Ack, Entry, Log, partition_of


class Parcel(BaseModel):
    weight: int


def halved(weight: int) -> int:
    return weight // 2


def shipping(client: Client) -> Workflow[Parcel, int]:
    @client.workflow(id="ship")
    async def ship(ctx: Context[Parcel], step: Step) -> int:
        if ctx.input.data.weight < 0:
            raise ValueError("lighter than air")
        return await step.run("halve", halved, ctx.input.data.weight)

    return ship


def lasting(client: Client) -> Workflow[str, str]:
    """Lasts until it is told to go on, or cancelled; then it cleans up until it is told to."""

    @client.workflow(id="last")
    async def last(ctx: Context[str], step: Step) -> str:
        try:
            await step.wait_for_signal("go", signal="go")
        except asyncio.CancelledError:
            with step.shield():
                await step.wait_for_signal("clean", signal="clean")
            raise
        return f"{ctx.input.data} lasted"

    return last


async def records(log: Log) -> list[tuple[int, str, bytes]]:
    return [
        (number, record.key, record.value)
        for number in range(log.partitions)
        for record in await log.reader(number, 0).read(10_000)
    ]


async def settled(log: Log) -> bool:
    """Whether the last messages are known to be delivered."""
    return any(key == OUTBOX_KEY for _, key, _ in await records(log))


async def test_a_parent_gets_the_results_of_its_children(client: Client) -> None:
    ship = shipping(client)

    @client.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> list[int]:
        one = await step.invoke_workflow("ship", ship, Parcel(weight=2))
        two = await step.invoke_workflow("ship", "ship", {"weight": 4})
        many = await asyncio.gather(*(step.invoke_workflow(f"n{n}", ship, {"weight": n}) for n in range(ctx.input.data)))
        return [one, two, *many]

    async with client.worker():
        run = await client.start_workflow(order, 20, run_id="o")
        assert await run.result(LIMIT_S) == [1, 2, *(n // 2 for n in range(20))]
        starts = [value for _, _, value in await records(client.log) if value.startswith(b'{"type":"started"')]
        assert len(starts) == 1 + 22
        await eventually(lambda: settled(client.log))


async def test_failures_and_time_outs_of_a_child_are_errors_of_the_parent(client: Client) -> None:
    ship, last = shipping(client), lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> list[Any]:
        found: list[Any] = []
        try:
            await step.invoke_workflow("ship", ship, Parcel(weight=-1))
        except ChildFailed as error:
            found += [error.run_id.startswith("o/ship~"), error.error.message]
        try:
            await step.invoke_workflow("last", last, "x", timeout="10ms", run_id="late")
        except ChildTimedOut as error:
            found.append(error.run_id)
        try:
            await step.invoke_workflow("taken", last, "x", run_id="foreign")
        except ChildFailed as error:
            found.append(error.error.type)
        try:
            await step.invoke_workflow("wrong", ship, {"weight": "heavy"})
        except InputInvalid:
            found.append("refused")
        return found

    async with client.worker():
        foreign = await client.start_workflow(last, "a", run_id="foreign")
        run = await client.start_workflow(order, "y", run_id="o")
        assert await run.result(LIMIT_S) == [True, "lighter than air", "late", "RunAlreadyExists", "refused"]
        late = client.run("late")
        await late.signal("clean")
        with pytest.raises(WorkflowCancelled):
            await late.result(LIMIT_S)
        await foreign.signal("go")
        assert await foreign.result(LIMIT_S) == "a lasted"


async def test_a_parent_is_cancelled_after_its_child_has_cleaned_up(client: Client) -> None:
    last = lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> None:
        try:
            await step.invoke_workflow("last", last, "x", run_id="kid")
        except asyncio.CancelledError:
            with step.shield():
                await step.run("after", halved, 2)
            raise

    async with client.worker():
        run, kid = await client.start_workflow(order, run_id="o"), client.run("kid")
        await eventually(lambda: exists(kid))
        await run.cancel("enough")
        await eventually(lambda: is_cleaning(kid))
        assert (await run.status()).state == "waiting"
        await kid.signal("clean")
        with pytest.raises(WorkflowCancelled, match="its parent is being cancelled"):
            await kid.result(LIMIT_S)
        with pytest.raises(WorkflowCancelled, match="enough"):
            await run.result(LIMIT_S)
        types = [event.type for event in await run.history()]
        assert types.index("child-ended") < types.index("step-completed")


async def exists(run: Run[Any]) -> bool:
    found = (await run._gateway.views.read(run.id)).run  # pyright: ignore[reportPrivateUsage]  # a run that may not be there
    return found is not None and bool(found.open)


async def is_cleaning(run: Run[Any]) -> bool:
    return any("clean" in words for words in (await run.status()).waiting_on)


async def test_a_detached_child_goes_on_without_its_parent(client: Client) -> None:
    last = lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> str:
        first = await step.start_workflow("mail", last, "a")
        await step.start_workflow("mail", last, "b", run_id="named")
        return first

    async with client.worker():
        run_id = await (await client.start_workflow(order, run_id="o")).result(LIMIT_S)
        for child, data in ((run_id, "a"), ("named", "b")):
            await eventually(lambda child=child: exists(client.run(child)))
            await client.run(child).signal("go")
            assert await client.run(child).result(LIMIT_S) == f"{data} lasted"


async def test_a_parent_lists_its_children_and_each_child_names_its_parent(client: Client) -> None:
    ship, last = shipping(client), lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> None:
        await step.run("before", halved, 2)
        await step.invoke_workflow("ship", ship, Parcel(weight=2), run_id="parcel")
        with contextlib.suppress(ChildFailed):
            await step.invoke_workflow("heavy", ship, Parcel(weight=-1), run_id="balloon")
        await step.start_workflow("mail", last, "a", run_id="mail")
        async with step.scope("inner") as inner:
            await inner.invoke_workflow("last", last, "x", run_id="kid")

    async with client.worker():
        run = await client.start_workflow(order, run_id="o")
        await eventually(lambda: exists(client.run("kid")))
        kids = await run.children()
        assert [(kid.id, kid.workflow, kid.step_id, kid.state, kid.detached) for kid in kids] == [
            ("parcel", "ship", "ship", "completed", False),
            ("balloon", "ship", "heavy", "failed", False),
            ("mail", "last", "mail", "detached", True),
            ("kid", "last", "inner/last", "open", False),
        ]
        assert (repr(kids[0]), await kids[0].result(LIMIT_S)) == ("<ChildRun 'parcel' completed>", 1)
        status = await kids[3].status()
        assert (status.parent, status.parent_step, status.state) == ("o", "inner/last", "waiting")
        await eventually(lambda: exists(client.run("mail")))
        assert (await kids[2].status()).parent == "o"
        assert (await run.status()).parent is (await run.status()).parent_step is None
        await kids[3].signal("go")
        await run.result(LIMIT_S)
        assert [kid.state for kid in await run.children()] == ["completed", "failed", "detached", "completed"]
        assert await kids[0].children() == []
        with pytest.raises(RunNotFound):
            await client.run("nobody").children()


async def test_cancelling_the_root_ends_a_deep_tree(client: Client) -> None:
    @client.workflow(id="tree")
    async def tree(ctx: Context[int], step: Step) -> None:
        if ctx.input.data:
            await step.invoke_workflow("t", "tree", ctx.input.data - 1)
        else:
            await step.wait_for_signal("go", signal="go")

    async with client.worker():
        run = await client.start_workflow(tree, 12, run_id="root")

        async def grown() -> list[str]:
            return [key for _, key, value in await records(client.log) if value.startswith(b'{"type":"wait-started"')]

        [leaf] = await eventually(grown)
        await run.cancel("enough")
        for each in (run, client.run(leaf)):
            with pytest.raises(WorkflowCancelled):
                await each.result(LIMIT_S)
        ends = [key for _, key, value in await records(client.log) if value.startswith(b'{"type":"cancelled"')]
        assert len(ends) == 13 and ends[0] != "root"


async def test_what_a_worker_did_not_send_the_next_one_sends(new_log: NewLog) -> None:
    """The first worker dies after one, two, three … of its appends: the child starts once, and its parent hears once."""
    for lives in range(1, 10):
        dying, run_id = new_log(), f"o{lives}"
        first = Client(driver=dying)
        order = _order(first)
        async with first:
            died = _dies_after(dying, lives)
            worker = first.worker(grace=0)
            await worker.__aenter__()
            await first.start_workflow(order, run_id=run_id)
            await asyncio.wait_for(died.wait(), LIMIT_S)
            await dying.close()
            await worker.__aexit__(None, None, None)
        second = Client(driver=new_log())
        _order(second)
        async with second, second.worker():
            assert await second.run(run_id).result(LIMIT_S) == 1
            history = [event.type for event in await second.run(run_id).history()]
            assert history.count("child-scheduled") == history.count("child-ended") == 1


def _dies_after(log: Log, appends: int) -> asyncio.Event:
    """The log answers its worker so often, and never again. The start of the run, which a client appends, does not count."""
    append, died = log.append, asyncio.Event()
    left = appends

    async def mortal(partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        nonlocal left
        if not any(b'"type":"started"' in entry.value and b'"cause"' not in entry.value for entry in entries):
            left -= 1
        if left < 0:
            died.set()
            raise LogUnavailable("nobody answers")
        return await append(partition, entries)

    log.append = mortal
    return died


def _order(client: Client) -> Workflow[Any, int]:
    ship = shipping(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> int:
        return await step.invoke_workflow("ship", ship, Parcel(weight=2))

    return order


async def test_a_target_that_is_away_stops_no_other(new_log: NewLog) -> None:
    log = new_log()
    away = True
    append = log.append

    async def partly(partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        if away and any(b'"cause"' in entry.value and entry.key == "hidden" for entry in entries):
            raise LogUnavailable("this partition is away")
        return await append(partition, entries)

    log.append = partly
    client = Client(driver=log)
    ship = shipping(client)

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> int:
        return await step.invoke_workflow("ship", ship, Parcel(weight=4), run_id=ctx.input.data)

    async with client.worker():
        waiting = await client.start_workflow(order, "hidden", run_id="o1")
        if not isinstance(log, MemoryDriver):  # which has one partition
            assert await (await client.start_workflow(order, "other", run_id="o2")).result(LIMIT_S) == 2
        await asyncio.sleep(0)
        away = False
        assert await waiting.result(LIMIT_S) == 2


async def test_each_target_is_delivered_by_itself(tmp_path: Path) -> None:
    log = SQLiteDriver(tmp_path / "runs.db", partitions=2)
    append, away = log.append, False

    async def partly(partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        if away and partition == 1 and any(b'"cause"' in entry.value for entry in entries):
            raise LogUnavailable("this partition is away")
        return await append(partition, entries)

    log.append = partly
    client = Client(driver=log)
    ship = shipping(client)

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> int:
        return await step.invoke_workflow("ship", ship, Parcel(weight=4), run_id=ctx.input.data)

    parents, near = ([f"{name}{n}" for n in range(50) if partition_of(f"{name}{n}", 2) == 0] for name in "on")
    far = [f"f{n}" for n in range(50) if partition_of(f"f{n}", 2) == 1]
    async with client.worker():
        assert await (await client.start_workflow(order, far[0], run_id=parents[0])).result(LIMIT_S) == 2
        away = True
        waiting = await client.start_workflow(order, far[1], run_id=parents[1])
        await eventually(lambda: exists(waiting))
        assert await (await client.start_workflow(order, near[0], run_id=parents[2])).result(LIMIT_S) == 2
        owed, later = [await scheduled_at(client.run(parent)) for parent in parents[1:3]]
        assert later > owed

        async def delivered() -> list[dict[str, int]]:
            here = [value for number, key, value in await records(log) if (number, key) == (0, OUTBOX_KEY)]
            found = [orjson.loads(value)["through"] for value in here]
            return found if any(through.get("0", -1) >= later for through in found) else []

        assert all(through.get("1", -1) < owed for through in await eventually(delivered))
        away = False
        assert await waiting.result(LIMIT_S) == 2


async def scheduled_at(run: Run[Any]) -> int:
    [offset] = [event.offset for event in await run.history() if event.type == "child-scheduled"]
    assert offset is not None
    return offset


async def test_a_parent_whose_child_has_no_worker_says_who_must_act(new_log: NewLog) -> None:
    first = Client(driver=new_log())

    @first.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> int:
        return await step.invoke_workflow("ship", "ship", {"weight": 4}, run_id="parcel")

    async with first, first.worker():
        run, kid = await first.start_workflow(order, run_id="o"), first.run("parcel")

        async def pending() -> bool:
            found = (await run._gateway.views.read("parcel")).run  # pyright: ignore[reportPrivateUsage]  # may not be there yet
            return found is not None and found.awaits_worker

        await eventually(pending)
        [wait] = (await run.status()).waits
        assert (wait.kind, wait.step_id, wait.command) == ("child", "ship", "stepfold run show parcel")
        assert "'parcel'" in wait.on and "workflow 'ship'" in wait.who
        [child] = await run.children()
        assert (child.state, (await child.status()).state) == ("open", "pending")
        [wait] = (await kid.status()).waits
        assert "'ship'" in f"{wait.on} {wait.who}"
    second = Client(driver=new_log())
    shipping(second)
    second.workflow(id="order")(order.handler)
    async with second, second.worker():
        assert await second.run("o").result(LIMIT_S) == 2


async def test_an_abandoned_child_outlives_its_cancelled_parent(client: Client) -> None:
    last = lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> None:
        await asyncio.gather(
            step.invoke_workflow("kept", last, "kept", run_id="kept", on_parent_close="abandon"),
            step.invoke_workflow("ended", last, "ended", run_id="ended"),
        )

    async with client.worker():
        run, kept, ended = await client.start_workflow(order, run_id="o"), client.run("kept"), client.run("ended")
        for child in (kept, ended):
            await eventually(lambda child=child: exists(child))
        await run.cancel("enough")
        await eventually(lambda: is_cleaning(ended))
        await ended.signal("clean")
        with pytest.raises(WorkflowCancelled, match="enough"):
            await run.result(LIMIT_S)
        with pytest.raises(WorkflowCancelled, match="its parent"):
            await ended.result(LIMIT_S)
        assert [(child.id, child.state) for child in await run.children()] == [("kept", "dropped"), ("ended", "cancelled")]
        await kept.signal("go")
        assert await kept.result(LIMIT_S) == "kept lasted"


async def test_a_taken_id_is_said_with_the_run_that_has_it(client: Client) -> None:
    last = lasting(client)

    @client.workflow(id="order")
    async def order(ctx: Context[Any], step: Step) -> str:
        try:
            return await step.invoke_workflow("last", last, "x", run_id="foreign")
        except ChildFailed as error:
            return str(error)

    async with client.worker():
        await client.start_workflow(last, "a", run_id="foreign")
        run = await client.start_workflow(order, run_id="o")
        said = await run.result(LIMIT_S)
        assert "there is a run 'foreign' already, which this one did not start" in said
        assert [child.state for child in await run.children()] == ["refused"]
        assert (await client.run("foreign").status()).parent is None
