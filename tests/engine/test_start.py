"""Starting a run: validated before anything is written, durable, once for each id."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID, uuid4

import pytest
from eventually import eventually
from local_logs import NewLog
from pydantic import BaseModel, Field
from virtually import virtually

from stepfold import (
    Client,
    ConfigError,
    Context,
    InputInvalid,
    LogUnavailable,
    PayloadTooLarge,
    Run,
    RunAlreadyExists,
    RunNotFound,
    Step,
    Workflow,
    WorkflowFailed,
)
from stepfold.drivers import MemoryDriver
from stepfold.log import CLAIM_KEY, Log

LIMIT_S = 30


class Order(BaseModel):
    order_id: str
    amount: int = Field(default=1, gt=0)


@dataclass
class Point:
    x: int
    y: int = 0


def echo_on(client: Client) -> Workflow[Order, Order]:
    @client.workflow(id="echo")
    async def echo(ctx: Context[Order], step: Step) -> Order:
        return ctx.input.data

    return echo


async def appended(log: Log) -> int:
    """How many records there are, but for claims."""
    found = 0
    for partition in range(log.partitions):
        reader = log.reader(partition, 0)
        while records := await reader.read():
            found += sum(record.key != CLAIM_KEY for record in records)
        await reader.close()
    return found


async def test_a_run_is_given_its_input_and_gives_its_result(client: Client) -> None:
    echo = echo_on(client)
    async with client.worker():
        run = await client.start_workflow(echo, Order(order_id="42", amount=3))
        assert await run.result(LIMIT_S) == Order(order_id="42", amount=3)
        assert await (await client.start_workflow(echo, {"order_id": "43"})).result(LIMIT_S) == Order(order_id="43")
        assert await (await client.start_workflow("echo", {"order_id": "44"})).result(LIMIT_S) == Order(order_id="44")


async def test_what_a_run_knows_about_its_start(client: Client) -> None:
    @client.workflow(id="who")
    async def who(ctx: Context[str], step: Step) -> list[Any]:
        known = ctx.input
        return [known.data, known.type, known.id, known.name, known.time == ctx.now(), ctx.run_id, ctx.attempt]

    async with client.worker():
        run = await client.start_workflow(who, "data", run_id="run-1")
        assert await run.result(LIMIT_S) == ["data", "invoke", "run-1", "who", True, "run-1", 1]


@pytest.mark.parametrize("data", [{"order_id": "42", "amount": 0}, {}, 5, None, {"order_id": ["a"]}])
async def test_input_that_the_model_rejects_is_not_written(new_log: NewLog, data: Any) -> None:
    client = Client(driver=new_log())
    echo = echo_on(client)
    async with client, client.worker():
        before = await appended(client.log)
        for workflow in (echo, "echo"):
            with pytest.raises(InputInvalid, match="'echo'") as invalid:
                await client.start_workflow(workflow, data, run_id="r")
            assert invalid.value.errors and "msg" in invalid.value.errors[0]
        assert await appended(client.log) == before
        with pytest.raises(RunNotFound):
            await client.run("r").status()


@pytest.mark.parametrize("data", [object(), {1: 2}, 2**70, {"text": "\ud800"}, b"bytes"])
async def test_input_that_is_not_json_is_not_written(client: Client, data: Any) -> None:
    @client.workflow(id="any")
    async def anything(ctx: Context, step: Step) -> None: ...

    async with client, client.worker():
        for workflow in (anything, "somewhere-else"):
            with pytest.raises(InputInvalid, match="JSON"):
                await client.start_workflow(workflow, data)


@pytest.mark.parametrize("depth", [199, 230, 400])
async def test_input_is_not_nested_without_end(client: Client, depth: int) -> None:
    """What one library reads and another cannot write must not get into the log."""

    @client.workflow(id="depth")
    async def depth_of(ctx: Context, step: Step) -> Any:
        return ctx.input.data

    data: Any = 1
    for _ in range(depth):
        data = [data]
    async with client.worker(checkpoint_records=1):
        if depth < 200:
            assert await (await client.start_workflow(depth_of, data)).result(LIMIT_S) == data
        else:
            with pytest.raises(InputInvalid):
                await client.start_workflow(depth_of, data)


async def test_input_above_the_limit_is_not_written(client: Client) -> None:
    async with client, client.worker():
        before = await appended(client.log)
        with pytest.raises(PayloadTooLarge, match="900,000"):
            await client.start_workflow("any", "x" * 900_001)
        assert await appended(client.log) == before
        await client.start_workflow("any", "x" * 899_000)


async def test_the_input_may_be_left_out_where_none_is_valid(client: Client) -> None:
    @client.workflow(id="optional")
    async def optional(ctx: Context[Point | None], step: Step) -> Point | None:
        return ctx.input.data

    @client.workflow(id="bare")
    async def bare(ctx: Context, step: Step) -> bool:
        return ctx.input.data is None

    echo = echo_on(client)
    async with client.worker():
        assert await (await client.start_workflow(optional)).result(LIMIT_S) is None
        assert await (await client.start_workflow(optional, Point(1, 2))).result(LIMIT_S) == Point(1, 2)
        assert await (await client.start_workflow(bare)).result(LIMIT_S)
        with pytest.raises(InputInvalid):
            await client.start_workflow(echo)


async def test_the_input_model_may_be_named_explicitly(client: Client) -> None:
    @client.workflow(id="explicit", input_schema=Order)
    async def explicit(ctx: Context[Any], step: Step) -> str:
        return type(ctx.input.data).__name__

    async with client.worker():
        assert await (await client.start_workflow(explicit, {"order_id": "1"})).result(LIMIT_S) == "Order"
        with pytest.raises(InputInvalid):
            await client.start_workflow(explicit, {})


# The same id again.


async def test_the_same_id_gives_the_same_run(client: Client) -> None:
    echo = echo_on(client)
    async with client.worker():
        first = await client.start_workflow(echo, Order(order_id="1"), run_id="order-1")
        again = await client.start_workflow(echo, {"order_id": "1", "amount": 1}, run_id="order-1")
        assert first.id == again.id == "order-1"
        await first.result(LIMIT_S)
        after_the_end = await client.start_workflow(echo, Order(order_id="1"), run_id="order-1")
        assert await after_the_end.result(LIMIT_S) == Order(order_id="1")
        assert [event.type for event in await first.history()] == ["started", "completed"]


async def test_the_same_id_may_be_refused(client: Client) -> None:
    echo = echo_on(client)
    async with client.worker():
        run = await client.start_workflow(echo, Order(order_id="1"), run_id="order-1", if_exists="reject")
        with pytest.raises(RunAlreadyExists, match="order-1"):
            await client.start_workflow(echo, Order(order_id="1"), run_id="order-1", if_exists="reject")
        await run.result(LIMIT_S)
        with pytest.raises(RunAlreadyExists, match="order-1"):
            await client.start_workflow(echo, Order(order_id="1"), run_id="order-1", if_exists="reject")


@pytest.mark.parametrize("if_exists", ["return", "reject"])
async def test_the_same_id_with_another_input_or_workflow_is_refused(
    client: Client, if_exists: Literal["return", "reject"]
) -> None:
    echo = echo_on(client)
    async with client, client.worker():
        await client.start_workflow(echo, Order(order_id="1"), run_id="order-1")
        with pytest.raises(RunAlreadyExists, match="order-1"):
            await client.start_workflow(echo, Order(order_id="2"), run_id="order-1", if_exists=if_exists)
        with pytest.raises(RunAlreadyExists, match="order-1"):
            await client.start_workflow("other", {"order_id": "1", "amount": 1}, run_id="order-1", if_exists=if_exists)


@pytest.mark.parametrize(("first", "other"), [({"n": 1}, {"n": True}), (True, 1), (1, 1.0), (True, 1.0), (0.0, -0.0)])
async def test_inputs_that_only_python_takes_for_equal_are_other_inputs(client: Client, first: Any, other: Any) -> None:
    async with client, client.worker():
        await client.start_workflow("w", first, run_id="r")
        assert (await client.start_workflow("w", first, run_id="r")).id == "r"
        with pytest.raises(RunAlreadyExists, match="another input"):
            await client.start_workflow("w", other, run_id="r")


async def test_the_order_of_keys_makes_no_other_input(client: Client) -> None:
    async with client, client.worker():
        await client.start_workflow("w", {"a": 1, "b": 2}, run_id="r")
        assert (await client.start_workflow("w", {"b": 2, "a": 1}, run_id="r")).id == "r"


@pytest.mark.parametrize("run_id", [None, "r"])
async def test_a_choice_that_does_not_exist_is_refused(client: Client, run_id: str | None) -> None:
    async with client, client.worker():
        with pytest.raises(ValueError, match="if_exists='rejct': it must be 'return' or 'reject'"):
            await client.start_workflow("w", run_id=run_id, if_exists=cast(Any, "rejct"))
        with pytest.raises(RunNotFound):
            await client.run("r").status()


async def test_of_many_that_start_the_same_id_at_once_one_starts_it(new_log: NewLog) -> None:
    clients = [Client(driver=new_log()) for _ in range(3)]
    echo = echo_on(clients[0])
    async with clients[0].worker(), clients[1], clients[2]:
        data = {"order_id": "1", "amount": 1}
        runs = await asyncio.gather(
            *(client.start_workflow("echo", data, run_id="order-1") for client in clients for _ in range(5))
        )
        assert {run.id for run in runs} == {"order-1"}
        for run in runs:
            assert (await run.result(LIMIT_S)) in (data, Order(order_id="1"))
        rejected = await asyncio.gather(
            *(client.start_workflow("echo", data, run_id="order-2", if_exists="reject") for client in clients),
            return_exceptions=True,
        )
        assert sorted(isinstance(outcome, RunAlreadyExists) for outcome in rejected) == [False, True, True]
        assert echo.id == "echo"


async def test_a_start_is_durable_without_any_worker(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    async with Client(url) as other:
        run = await other.start_workflow("echo", {"order_id": "1"}, run_id="order-1")
        status = await run.status()
        assert (status.state, status.waiting_on) == ("pending", ["a worker"])
    client = Client(url)
    echo_on(client)
    async with client.worker():
        assert await client.run("order-1").result(LIMIT_S) == Order(order_id="1")


def test_an_id_is_free_again_a_day_after_its_run_has_ended() -> None:
    async def main(client: Client) -> None:
        @client.workflow(id="w")
        async def w(ctx: Context[int], step: Step) -> int:
            return ctx.input.data

        async with client.worker():
            first = await client.start_workflow(w, 1, run_id="r")
            assert await first.result() == 1
            await asyncio.sleep(23 * 3_600)
            with pytest.raises(RunAlreadyExists):
                await client.start_workflow(w, 2, run_id="r")
            await asyncio.sleep(2 * 3_600)
            second = await client.start_workflow(w, 2, run_id="r", if_exists="reject")
            assert await second.result() == 2
            assert await client.run("r").result() == 2, "not that of the run before"
            assert len(await second.history()) == 2
            assert (await second.status()).result == 2

    virtually(main)


async def test_who_waits_for_a_result_hears_of_the_client_s_end(new_log: NewLog) -> None:
    serving, asking = Client(driver=new_log()), Client(driver=new_log())
    async with serving.worker():
        await serving.start_workflow("nobody-knows-it", run_id="r")
        async with asking:
            waiting = asyncio.create_task(asking.run("r").result())
            await asyncio.sleep(0.01)
            assert not waiting.done()
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(waiting, LIMIT_S)


async def test_who_begins_to_wait_hears_of_the_client_s_end_at_any_turn(new_log: NewLog) -> None:
    serving, asking = Client(driver=new_log()), Client(driver=new_log())
    async with serving.worker():
        await serving.start_workflow("nobody-knows-it", run_id="r")
        for turns in range(1, 60):
            async with asking:
                waiting = asyncio.create_task(asking.run("r").result())
                for _ in range(turns):
                    await asyncio.sleep(0)
            with pytest.raises(LogUnavailable):
                await asyncio.wait_for(waiting, LIMIT_S)


# What is refused at once.


async def test_memory_without_a_worker_is_an_error_and_no_endless_wait() -> None:
    client = Client("memory://")
    echo = echo_on(client)
    async with client:
        with pytest.raises(ConfigError, match=r"memory://.*client\.worker\(\)"):
            await client.start_workflow(echo, Order(order_id="1"))
        async with client.worker():
            await (await client.start_workflow(echo, Order(order_id="1"))).result(LIMIT_S)
        with pytest.raises(ConfigError):
            await client.start_workflow(echo, Order(order_id="1"))


async def test_on_a_shared_memory_log_any_worker_of_the_process_will_do() -> None:
    serving, starting = Client("memory://shared-with-a-worker"), Client("memory://shared-with-a-worker")
    echo_on(serving)
    async with starting, serving.worker():
        run = await starting.start_workflow("echo", {"order_id": "1"})
        assert await run.result(LIMIT_S) == {"order_id": "1", "amount": 1}


async def test_a_client_is_used_inside_its_block(client: Client) -> None:
    echo = echo_on(client)
    with pytest.raises(ConfigError, match="async with client"):
        await client.start_workflow(echo, Order(order_id="1"))
    with pytest.raises(ConfigError, match="async with client"):
        await client.run("x").status()


@pytest.mark.parametrize("run_id", ["", "@claims", "two\nlines", "x" * 201, 5])
async def test_an_id_that_cannot_be_one_is_refused(client: Client, run_id: Any) -> None:
    async with client, client.worker():
        with pytest.raises(ConfigError, match="is not a run id"):
            await client.start_workflow("w", run_id=run_id)
        with pytest.raises(ConfigError, match="is not a run id"):
            client.run(run_id)


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 5, None])
async def test_a_workflow_is_started_by_a_proper_name(client: Client, name: Any) -> None:
    async with client, client.worker():
        with pytest.raises(ConfigError, match="workflow"):
            await client.start_workflow(name)
        if name is not None:
            with pytest.raises(ConfigError, match="version"):
                await client.start_workflow("w", version=name)


async def test_a_run_that_is_not_there(client: Client) -> None:
    async with client:
        run = client.run("nobody")
        for ask in (run.status, run.history, run.cancel, run.result):
            with pytest.raises(RunNotFound, match="'nobody'"):
                await ask()
        with pytest.raises(RunNotFound, match="'nobody'"):
            await run.signal("go")


# Registration.


async def test_what_cannot_be_a_workflow(client: Client) -> None:
    def plain(ctx: Context, step: Step) -> None: ...
    async def one_argument(ctx: Context) -> None: ...
    async def only_by_name(*, ctx: Context, step: Step) -> None: ...
    async def any_names(ctx: Context, **rest: Any) -> None: ...
    async def no_context(ctx: int, step: Step) -> None: ...
    async def no_model(ctx: Context[Client], step: Step) -> None: ...

    async def fine(ctx: Context, step: Step) -> None: ...

    for handler, words in (
        (plain, "is not an async function"),
        (one_argument, "must take two arguments"),
        (only_by_name, "must take two arguments by position"),
        (any_names, "must take two arguments by position"),
        (no_context, "Context"),
        (no_model, "pydantic cannot validate"),
    ):
        with pytest.raises(ConfigError, match=words):
            client.workflow(id="w")(handler)  # pyright: ignore[reportArgumentType]  # that is the test
    with pytest.raises(ConfigError, match="needs an id"):
        client.workflow(fine)  # pyright: ignore[reportArgumentType]  # that is the test
    for name in ("", "x" * 201, "a\nb"):
        with pytest.raises(ConfigError, match="printable"):
            client.workflow(id=name)(fine)
        with pytest.raises(ConfigError, match="printable"):
            client.workflow(id="w", version=name)(fine)
    client.workflow(id="w")(fine)
    client.workflow(id="w", version="2")(fine)
    with pytest.raises(ConfigError, match="registered twice"):
        client.workflow(id="w")(fine)


async def test_workflows_that_name_each_other_may_be_defined_in_any_order(client: Client) -> None:
    @client.workflow(id="first")
    async def first(ctx: Context[int], step: Step) -> str:
        return second.id

    @client.workflow(id="second")
    async def second(ctx: Context[int], step: Step) -> None: ...

    async with client.worker():
        assert await (await client.start_workflow(first, 1)).result(LIMIT_S) == "second"


def test_a_url_or_a_driver() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        Client("memory://", driver=MemoryDriver())
    with pytest.raises(ConfigError, match="names no log"):
        Client("postgres://nowhere")
    with pytest.raises(ConfigError, match="names no log"):
        Client("")  # a variable that is empty; nobody has asked for a file of that name here


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFOLD_URL", "memory://from-the-environment")
    assert Client().log.name == "memory://from-the-environment"
    monkeypatch.delenv("STEPFOLD_URL")
    assert Client().log.name == "sqlite:///stepfold.db"


# Inputs that their model makes anew each time.


class Payment(BaseModel):
    amount: int
    reference: UUID = Field(default_factory=uuid4)


def paying(client: Client, seen: list[UUID]) -> Workflow[Payment, UUID]:
    @client.workflow(id="pay")
    async def pay(ctx: Context[Payment], step: Step) -> UUID:
        seen.append(ctx.input.data.reference)
        await step.wait_for_signal("go", signal="go")
        return ctx.input.data.reference

    return pay


async def waits(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


async def test_what_the_model_makes_of_a_start_is_made_once(new_log: NewLog) -> None:
    """By a service that has not got the model, and by a client that gives plain data: a replay sees the same."""
    seen: list[UUID] = []
    for number, by_name in enumerate((True, False)):
        for turn in range(2):
            client = Client(driver=new_log())
            workflow = paying(client, seen)
            async with client.worker():
                started = await client.start_workflow("pay" if by_name else workflow, {"amount": 1}, run_id=f"r{number}")
                assert started.id == f"r{number}", "the same start again"
                await eventually(lambda run=started: waits(run))
                if turn:
                    await started.signal("go")
                    assert await started.result(LIMIT_S) in (str(seen[-1]), seen[-1])
                    types = [event.type for event in await started.history()]
                    assert types == ["started", "input-completed", "wait-started", "signal-received", "completed"]
        assert len(set(seen)) == number + 1


async def test_an_input_that_its_model_makes_too_large_fails_the_run(new_log: NewLog) -> None:
    class Grown(BaseModel):
        text: str = Field(default_factory=lambda: "x" * 1_000_000)

    client = Client(driver=new_log())

    @client.workflow(id="w", input_schema=Grown)
    async def w(ctx: Context[Any], step: Step) -> None: ...

    async with Client(driver=client.log) as service, client.worker():
        run = await service.start_workflow("w", {})
        with pytest.raises(WorkflowFailed, match="PayloadTooLarge"):
            await run.result(LIMIT_S)


@pytest.mark.parametrize(
    ("registered", "highest"),
    [
        (("1", "2", "10"), "10"),
        (("10", "2"), "10"),
        (("z", "a"), "z"),
        (("1.9", "1.10", "1.2"), "1.10"),
        (("v2", "v10", "2"), "v10"),
    ],
)
async def test_a_run_without_a_version_gets_the_highest_and_that_is_said(
    new_log: NewLog, registered: tuple[str, ...], highest: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, elsewhere = Client(driver=new_log()), Client(driver=new_log())

    async def body(ctx: Context, step: Step) -> None: ...

    for version in registered:
        client.workflow(id="w", version=version)(body)
    async with client.worker(), elsewhere:
        for caller in (client, elsewhere):
            for _ in range(2):
                run = await caller.start_workflow("w")
                await run.result(LIMIT_S)
                assert (await run.status()).version == highest
    said = [record.getMessage() for record in caplog.records if "without a version" in record.getMessage()]
    assert len(said) == 1 and f"gets {highest!r}" in said[0]


async def test_a_version_that_was_chosen_is_nothing_to_speak_of(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    async def body(ctx: Context, step: Step) -> None: ...

    client.workflow(id="w", version="2")(body)
    first = client.workflow(id="w", version="1")(body)
    async with client.worker():
        for start in (client.start_workflow(first), client.start_workflow("w", version="1")):
            run = await start
            await run.result(LIMIT_S)
            assert (await run.status()).version == "1"
    assert not caplog.records
