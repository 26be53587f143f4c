"""Workers: how many steps at a time, which runs stay in memory, several on one log, and what is the same on every replay."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S

from stepfold import Client, Context, Run, Step, Worker


async def is_waiting(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_steps_run_at_a_time_than_allowed(client: Client, kind: str, concurrency: int) -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def begin() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def end() -> None:
        nonlocal running
        with lock:
            running -= 1

    def work() -> None:
        begin()
        end()

    async def work_async() -> None:
        begin()
        await asyncio.sleep(0)
        end()

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        await asyncio.gather(*(step.run(f"{n}", work if kind == "plain" else work_async) for n in range(10)))

    async with client.worker(concurrency=concurrency):
        runs = [await client.start_workflow(w) for _ in range(3)]
        await asyncio.gather(*(run.result(LIMIT_S) for run in runs))
    assert 1 <= most <= concurrency


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_run_with_many_steps_keeps_no_other_run_waiting(client: Client, kind: str) -> None:
    ran: list[str] = []
    asked: set[str] = set()
    place = asyncio.Event()

    async def on_the_loop(name: str) -> None:
        await place.wait()
        ran.append(name)

    async def both_have_asked() -> bool:
        return asked == {"many", "one"}

    @client.workflow(id="many")
    async def many(ctx: Context, step: Step) -> None:
        asked.add("many")
        fn = on_the_loop if kind == "async" else ran.append
        await asyncio.gather(step.run("holds", on_the_loop, "many"), *(step.run(f"s{n}", fn, "many") for n in range(30)))

    @client.workflow(id="one")
    async def one(ctx: Context, step: Step) -> None:
        asked.add("one")
        await step.run("only", ran.append, "one")

    async with client.worker(concurrency=1):
        runs = [await client.start_workflow(many), await client.start_workflow(one)]
        await eventually(both_have_asked)
        place.set()
        for run in runs:
            await run.result(timeout=LIMIT_S)
    assert ran.index("one") <= 2
    assert ran.count("many") == 31


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_a_worker_that_may_do_nothing_is_refused(client: Client, concurrency: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        async with client.worker(concurrency=concurrency):
            pass


@pytest.mark.parametrize("option", ["concurrency", "live_runs", "checkpoint_records"])
@pytest.mark.parametrize("number", [2.5, "5", True, None])
async def test_a_worker_takes_whole_numbers(client: Client, option: str, number: Any) -> None:
    with pytest.raises(TypeError, match=f"{option}=.*: it must be a whole number"):
        async with client.worker(**{option: number}):
            pass


async def test_a_worker_may_be_entered_again(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return "done"

    for _ in range(3):
        async with client.worker():
            assert await (await client.start_workflow(w)).result(LIMIT_S) == "done"


async def test_two_workers_on_one_log_record_everything_once(new_log: NewLog) -> None:
    """A partition may change hands on the way, so a step may run again; it has one result and its run one end."""
    ran: list[str] = []

    async def body(ctx: Context[int], step: Step) -> int:
        await step.run("note", lambda: ran.append(ctx.run_id))
        return ctx.input.data

    clients = [Client(driver=new_log()) for _ in range(2)]
    for each in clients:
        each.workflow(id="w")(body)
    async with clients[0].worker(), clients[1].worker():
        runs = [await clients[n % 2].start_workflow("w", n, run_id=f"run-{n}") for n in range(20)]
        assert await asyncio.gather(*(run.result(LIMIT_S) for run in runs)) == list(range(20))
        for run in runs:
            types = [event.type for event in await run.history()]
            assert types.count("step-completed") == types.count("completed") == 1
    assert set(ran) == {f"run-{n}" for n in range(20)}


async def test_when_one_worker_leaves_the_other_goes_on(new_log: NewLog) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        return (await step.wait_for_signal("go", signal="go")).data

    first, second = (Client(driver=new_log()) for _ in range(2))
    for each in (first, second):
        each.workflow(id="w")(body)
    async with second.worker():
        async with first.worker():
            runs = [await first.start_workflow("w", run_id=f"run-{n}") for n in range(8)]
            for run in runs:
                await eventually(lambda run=run: is_waiting(run))
        for n in range(8):
            await second.run(f"run-{n}").signal("go", n)
        assert await asyncio.gather(*(second.run(f"run-{n}").result(LIMIT_S) for n in range(8))) == list(range(8))


# In memory and out of it.


async def test_runs_beyond_the_bound_leave_memory_and_come_back(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stepfold.run")
    entered: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        entered.append(ctx.run_id)
        ctx.log.info("begins")
        first = (await step.wait_for_signal("a", signal="a")).data
        ctx.log.info("has a")
        return [first, (await step.wait_for_signal("b", signal="b")).data]

    async with client.worker(live_runs=2):
        runs = list[Run[Any]]()
        for _ in range(12):
            runs.append(await client.start_workflow(w))
            await eventually(lambda: is_waiting(runs[-1]))
        for name in ("a", "b"):
            for number, run in enumerate(runs):
                await run.signal(name, number)
        results = await asyncio.gather(*(run.result(LIMIT_S) for run in runs))
    assert results == [[number, number] for number in range(12)]
    assert len(entered) > len(runs), "some were replayed"
    for run in runs:
        said = [line.message for line in caplog.records if line.name == "stepfold.run" and getattr(line, "run_id", "") == run.id]
        assert said == ["begins", "has a"], "and a replay is silent"


async def test_a_backlog_is_brought_in_as_there_is_room(client: Client) -> None:
    in_memory: list[int] = []
    workers: list[Worker] = []

    async def look() -> None:
        in_memory.extend(len(owner.live) for worker in workers for owner in worker.owners.values())

    @client.workflow(id="w")
    async def w(ctx: Context[int], step: Step) -> int:
        await step.run("a", look)
        await step.sleep("nap", 0.01)
        await step.run("b", look)
        return ctx.input.data

    async with client.worker(live_runs=1, concurrency=2) as worker:
        workers.append(worker)
        runs = await asyncio.gather(*(client.start_workflow(w, number) for number in range(40)))
        assert [await run.result(LIMIT_S) for run in runs] == list(range(40))
    assert 1 <= max(in_memory) <= 4, "twice as many as there are slots for steps"


async def test_who_waits_makes_room_for_a_backlog(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context[int], step: Step) -> int:
        await step.wait_for_signal("go", signal="go")
        return ctx.input.data

    async with client.worker(live_runs=1, concurrency=1):
        runs = await asyncio.gather(*(client.start_workflow(w, number) for number in range(40)))
        for run in runs:
            await eventually(lambda run=run: is_waiting(run))
        for run in runs:
            await run.signal("go")
        assert [await run.result(LIMIT_S) for run in runs] == list(range(40))


async def test_what_is_the_same_on_every_replay(new_log: NewLog) -> None:
    seen: list[list[Any]] = []

    async def body(ctx: Context, step: Step) -> None:
        found: list[Any] = []
        seen.append(found)
        for _ in range(2):
            found += [ctx.random.random(), ctx.uuid4(), ctx.now()]
            await step.run("a", str)
        found += [ctx.random.random(), ctx.uuid4(), ctx.now()]
        await step.wait_for_signal("go", signal="go")

    for turn in range(3):
        client = Client(driver=new_log())
        workflow = client.workflow(id="w")(body)
        async with client.worker():
            run = await client.start_workflow(workflow, run_id="r")
            await eventually(lambda run=run: is_waiting(run))
            if turn == 2:
                await run.signal("go")
                await run.result(LIMIT_S)
    longest = max(seen, key=len)
    assert len(longest) == 9 and len(set(longest)) > 6
    for found in seen:
        assert found == longest[: len(found)]
    other: list[Any] = []

    async def another(ctx: Context, step: Step) -> None:
        other.extend([ctx.random.random(), ctx.uuid4()])

    client = Client(driver=new_log())
    workflow = client.workflow(id="another")(another)
    async with client.worker():
        await (await client.start_workflow(workflow)).result(LIMIT_S)
    assert other[0] != longest[0] and other[1] != longest[1], "another run, other numbers"


async def test_the_log_of_a_run_names_it(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stepfold.run")

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        ctx.log.info("one %s", "word", extra={"order": 5})

    async with client.worker():
        run = await client.start_workflow(w)
        await run.result(LIMIT_S)
    [line] = [line for line in caplog.records if line.name == "stepfold.run"]
    fields = vars(line)
    assert (line.getMessage(), fields["run_id"], fields["workflow"], fields["order"]) == ("one word", run.id, "w", 5)


async def test_a_status_tells_the_whole_way(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        await step.run("a", str)
        await step.wait_for_signal("go", signal="go")
        return "end"

    async with client.worker():
        run = await client.start_workflow(w, run_id="r")
        await eventually(lambda: is_waiting(run))
        status = await run.status()
        assert (status.id, status.workflow, status.version, status.steps_completed) == ("r", "w", "1", 1)
        assert status.ended_at is None and status.result is None and status.attempt == 1
        with pytest.raises(TimeoutError, match=r"'r' has not ended within 0\.01 s; it is still running"):
            await run.result("10ms")
        await run.signal("go")
        assert await run.result(LIMIT_S) == "end"
        status = await run.status()
        assert (status.state, status.result, status.waiting_on) == ("completed", "end", [])
        assert status.ended_at is not None and status.ended_at >= status.started_at
        events = await run.history()
        assert [event.offset for event in events] == sorted(event.offset or 0 for event in events)
