"""Queries: what a replay in this process answers about a run, whatever has become of it, and that nothing else happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import quarantined
from one_run import LIMIT_S
from pydantic import BaseModel
from virtually import virtually

from stepfold import (
    Client,
    ConfigError,
    Context,
    InputInvalid,
    NonDeterminism,
    QueryFailed,
    QueryUnknown,
    Run,
    RunNotFound,
    Step,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowUnknown,
)
from stepfold.log import Log


class Item(BaseModel):
    name: str
    price: int = 1


@dataclass
class Cart:
    items: list[Item] = field(default_factory=list[Item])
    paid: bool = False


ran: list[str] = []


async def price_of(name: str) -> int:
    ran.append(name)
    return len(name)


def shop(client: Client, version: str = "1") -> Any:
    """A workflow with a state of its own class, and queries about it."""

    @client.workflow(id="shop", version=version, state=Cart)
    async def shopping(ctx: Context[list[str], Cart], step: Step) -> int:
        for name in ctx.input.data:
            ctx.state.items.append(Item(name=name, price=await step.run("price", price_of, name)))
        await step.sleep("rest", 0.01)
        await step.wait_for_signal("paid", signal="pay")
        ctx.state.paid = True
        return sum(item.price for item in ctx.state.items)

    @shopping.query
    async def items(ctx: Context[list[str], Cart], dearer_than: int = 0, *, limit: int = 10) -> list[Item]:
        return [item for item in ctx.state.items if item.price > dearer_than][:limit]

    @shopping.query
    def paid(ctx: Context[list[str], Cart]) -> bool:
        return ctx.state.paid

    @shopping.query
    def since(ctx: Context[list[str], Cart], when: datetime) -> float:
        return (ctx.now() - when).total_seconds()

    return shopping


async def ends(log: Log) -> list[tuple[int, int]]:
    return [await log.bounds(partition) for partition in range(log.partitions)]


async def offsets(run: Run[Any]) -> list[tuple[str, int]]:
    """The types of the run's events, and where they are."""
    return [(event.type, event.offset or 0) for event in await run.history()]


async def waiting(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


async def waits(run: Run[Any]) -> bool:
    """Whether the run waits for a signal."""
    return any("signal" in words for words in (await run.status()).waiting_on)


async def asked(client: Client, name: str, *args: Any, **kwargs: Any) -> Any:
    """The answer about run `r`; the log is as it was."""
    before = await ends(client.log)
    try:
        return await client.inspect("r").query(name, *args, **kwargs)
    finally:
        assert await ends(client.log) == before


async def test_queries_of_a_run_that_goes_on_and_of_one_that_has_ended_elsewhere(new_log: NewLog) -> None:
    ran.clear()
    client, elsewhere = Client(driver=new_log()), Client(driver=new_log())
    shopping = shop(client)
    shop(elsewhere)
    async with client.worker():
        run = await client.start_workflow(shopping, ["tea", "bread"], run_id="r")
        await eventually(lambda: waits(run))
        assert await asked(client, "paid") is False
        assert await asked(client, "items") == [Item(name="tea", price=3), Item(name="bread", price=5)]
        assert await asked(client, "items", 3) == [Item(name="bread", price=5)]
        assert await asked(client, "items", limit=1) == [Item(name="tea", price=3)]
        await run.signal("pay")
        assert await run.result(LIMIT_S) == 8
    async with elsewhere:
        assert await asked(elsewhere, "paid") is True
        assert await asked(elsewhere, "items", "4", limit=2) == [Item(name="bread", price=5)]
        assert await asked(elsewhere, "since", "2030-01-01T00:00:00Z") < 0
        assert await asked(elsewhere, "since", datetime(2020, 1, 1, tzinfo=UTC)) > 0
    assert ran == ["tea", "bread"]


async def test_a_function_may_stand_for_its_name(client: Client) -> None:
    @client.workflow(id="w")
    async def workflow(ctx: Context[int], step: Step) -> None:
        ctx.state.done = ctx.input.data

    @workflow.query
    async def done(ctx: Context[int]) -> int:
        return ctx.state.done

    async def other(ctx: Context[int]) -> int:
        raise NotImplementedError

    other.__name__ = "done"
    async with client.worker():
        await (await client.start_workflow(workflow, 7, run_id="r")).result(LIMIT_S)
        assert await client.inspect("r").query(done) == 7
        with pytest.raises(QueryUnknown):
            await client.inspect("r").query(other)


async def test_the_run_as_it_was_at_each_offset(client: Client) -> None:
    shopping = shop(client)
    async with client.worker():
        run = await client.start_workflow(shopping, ["tea", "bread"], run_id="r", signal=("pay", None))
        await run.result(LIMIT_S)
        seen = 0
        for kind, offset in await offsets(run):
            seen += kind == "step-completed"
            assert len(await client.inspect("r", until=offset).query("items")) == seen
            assert await client.inspect("r", until=offset).query("paid") is (kind in ("wait-started", "completed"))
        assert seen == 2
        later = await client.start_workflow(shopping, [], run_id="later", signal=("pay", None))
        await later.result(LIMIT_S)
        start = (await offsets(later))[0][1]
        with pytest.raises(RunNotFound, match=f"had begun at offset {start - 1}"):
            await client.inspect("later", until=start - 1).query("paid")
        for until, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error):
                client.inspect("r", until=cast(int, until))


async def test_a_run_that_no_worker_has_begun_is_answered_up_to_its_first_step(new_log: NewLog) -> None:
    client = Client(driver=new_log())
    if getattr(client.log, "needs_local_worker", False):
        return  # nobody can start a run there
    shop(client)
    async with client:
        await client.start_workflow("shop", ["tea"], run_id="r")
        assert await asked(client, "items") == []
        assert (await client.run("r").status()).state == "pending"


async def test_runs_that_have_failed_and_that_were_cancelled(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> None:
        ctx.state.far = 1
        try:
            await step.wait_for_signal("go", signal="go")
        finally:
            ctx.state.far = 2
        raise ValueError("no")

    workflow = client.workflow(id="w")(body)

    @workflow.query
    async def far(ctx: Context) -> int:
        return ctx.state.far

    async with client.worker():
        failed = await client.start_workflow(workflow, run_id="r")
        await failed.signal("go")
        with pytest.raises(WorkflowFailed):
            await failed.result(LIMIT_S)
        assert await asked(client, "far") == 2
        cancelled = await client.start_workflow(workflow, run_id="c")
        await eventually(lambda: waiting(cancelled))
        assert await client.inspect("c").query("far") == 1
        await cancelled.cancel()
        with pytest.raises(WorkflowCancelled):
            await cancelled.result(LIMIT_S)
        assert await client.inspect("c").query("far") == 2


async def test_answers_and_arguments_are_copies(client: Client) -> None:
    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> None:
        ctx.state.numbers = [1]

    @workflow.query
    async def longer(ctx: Context, more: list[int]) -> list[int]:
        more.append(3)
        ctx.state.numbers += more
        return ctx.state.numbers

    async with client.worker():
        await (await client.start_workflow(workflow, run_id="r")).result(LIMIT_S)
        more = [2]
        assert await asked(client, "longer", more) == await asked(client, "longer", more) == [1, 2, 3]
        assert more == [2]


async def test_names_that_do_not_exist(client: Client, new_log: NewLog) -> None:
    shopping = shop(client)
    empty, later = Client(driver=new_log()), Client(driver=new_log())
    shop(later, "2")
    async with client.worker():
        await client.start_workflow(shopping, ["tea"], run_id="r", signal=("pay", None))
        await client.run("r").result(LIMIT_S)
        with pytest.raises(QueryUnknown, match="has no query 'itms'; it has: items, paid, since"):
            await asked(client, "itms")
        with pytest.raises(RunNotFound):
            await client.inspect("nobody").query("items")
        with pytest.raises(ConfigError):
            client.inspect("@bulk")
    for other, words in ((empty, "'shop' version '1', which this client does not have: "), (later, "it has version 2: ")):
        async with other:
            with pytest.raises(WorkflowUnknown, match=words) as raised:
                await asked(other, "items")
            assert (raised.value.workflow, raised.value.version) == ("shop", "1")
    with pytest.raises(ConfigError, match="not connected"):
        await client.inspect("r").query("items")


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (
            ("dear",),
            {},
            "argument 'dearer_than' of query 'items' of workflow 'shop' is not valid: Input should be a valid integer",
        ),
        ((1, 2), {}, r"too many positional arguments; it is items\(dearer_than=0, \*, limit=10\)"),
        ((), {"most": 1}, "got an unexpected keyword argument 'most'"),
        ((), {"limit": {1}}, "argument 'limit'"),
    ],
)
async def test_arguments_that_do_not_fit(client: Client, args: tuple[Any, ...], kwargs: dict[str, Any], words: str) -> None:
    shopping = shop(client)
    async with client.worker():
        run = await client.start_workflow(shopping, [], run_id="r", signal=("pay", None))
        await run.result(LIMIT_S)
        with pytest.raises(InputInvalid, match=words) as raised:
            await asked(client, "items", *args, **kwargs)
        assert raised.value.errors
        with pytest.raises(InputInvalid, match="missing a required argument: 'when'"):
            await asked(client, "since")


async def test_code_that_disagrees_with_its_history(new_log: NewLog) -> None:
    before, today = Client(driver=new_log()), Client(driver=new_log())
    workflow = shop(before)

    @today.workflow(id="shop")
    async def shopping(ctx: Context[list[str]], step: Step) -> None:
        ctx.state.begun = True
        await step.sleep("other", 1)

    @shopping.query
    async def items(ctx: Context[list[str]]) -> bool:
        return ctx.state.begun

    async with before.worker():
        run = await before.start_workflow(workflow, ["tea"], run_id="r")
        await eventually(lambda: waits(run))
        start = (await offsets(run))[0][1]
    async with today:
        with pytest.raises(NonDeterminism, match="until=") as raised:
            await asked(today, "items")
        assert (
            "price" in raised.value.expected and "other" in raised.value.found and Path(__file__).name in raised.value.source[0]
        )
        assert await today.inspect("r", until=start).query("items") is True
    async with today.worker():
        await today.run("r").signal("pay")
        assert await eventually(lambda: quarantined(today.run("r"))) is not None
        with pytest.raises(NonDeterminism, match="until="):
            await asked(today, "items")
    async with before:  # it stands still, and this code agrees with its history
        assert [item.name for item in await asked(before, "items")] == ["tea"]
        assert await asked(before, "paid") is True


async def test_code_that_never_begins(client: Client) -> None:
    @client.workflow(id="w")
    async def workflow(ctx: Context[int], step: Step) -> None:
        raise NotImplementedError

    @workflow.query
    async def far(ctx: Context[int]) -> int:
        raise NotImplementedError

    async with client.worker():
        run = await client.start_workflow("w", 1, run_id="r")
        with pytest.raises(WorkflowFailed):
            await run.result(LIMIT_S)
        with pytest.raises(QueryFailed, match="NotImplementedError") as raised:
            await asked(client, "far")
        assert "test_queries.py:" in str(raised.value)


async def test_input_that_does_not_validate_any_more(new_log: NewLog) -> None:
    before, today = Client(driver=new_log()), Client(driver=new_log())

    @before.workflow(id="w")
    async def workflow(ctx: Context[str], step: Step) -> None:
        pass

    @today.workflow(id="w")
    async def other(ctx: Context[int], step: Step) -> None:
        raise NotImplementedError

    @other.query
    async def far(ctx: Context[int]) -> int:
        raise NotImplementedError

    async with before.worker():
        await (await before.start_workflow(workflow, "a", run_id="r")).result(LIMIT_S)
    async with today:
        with pytest.raises(QueryFailed, match="has not begun: InputInvalid"):
            await asked(today, "far")


def test_in_virtual_time() -> None:
    async def main(client: Client) -> Any:
        shopping = shop(client)
        async with client.worker():
            run = await client.start_workflow(shopping, ["tea"], run_id="r", signal=("pay", None))
            await run.result("1d")
            return await client.inspect("r").query("items")

    assert virtually(main) == [Item(name="tea", price=3)]


def refused(client: Client, fn: Any) -> str:
    async def body(ctx: Context, step: Step) -> None:
        raise NotImplementedError

    workflow = client.workflow(id="w")(body)
    with pytest.raises(ConfigError) as raised:
        workflow.query(fn)
    return str(raised.value)


def test_functions_that_cannot_be_queries() -> None:
    async def nothing() -> None:
        raise NotImplementedError

    async def many(ctx: Context, *numbers: int) -> None:
        raise NotImplementedError

    async def named(*, ctx: Context) -> None:
        raise NotImplementedError

    async def unwritable(ctx: Context) -> Log:
        raise NotImplementedError

    for fn in (nothing, many, named):
        assert "must take the context" in refused(Client("memory://"), fn)
    assert "a function with a name" in refused(Client("memory://"), 5)
    assert "pydantic cannot validate" in refused(Client("memory://"), unwritable)
    shopping = shop(Client("memory://"))

    async def items(ctx: Context[list[str], Cart]) -> None:
        raise NotImplementedError

    with pytest.raises(ConfigError, match="'items' of workflow 'shop' is registered twice"):
        shopping.query(items)


def test_the_class_of_a_state_is_said_where_the_workflow_is_registered() -> None:
    client = Client("memory://")

    async def body(ctx: Context[int, Cart], step: Step) -> None:
        raise NotImplementedError

    of_any_state: Any = client.workflow
    with pytest.raises(ConfigError, match=r"state=Cart\)"):
        of_any_state(id="w")(body)
    with pytest.raises(ConfigError, match="is not a class"):
        of_any_state(id="w", state=5)(body)
