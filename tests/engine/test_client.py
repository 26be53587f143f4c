"""The client by itself: the event loop it belongs to, how long it waits for its log, what it reads again, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S
from pydantic import BaseModel
from virtually import virtually

from stepfold import Client, ConfigError, Context, InputInvalid, LogUnavailable, Run, RunEnded, RunNotFound, Step
from stepfold.drivers import MemoryDriver
from stepfold.log import Ack, Entry, Record
from stepfold.testing import run_virtual, virtual_clock

# Event loops and threads.

Call = Callable[[Client, Run[Any]], Coroutine[Any, Any, Any]]


async def _enter(client: Client, run: Run[Any]) -> None:
    async with client:
        raise AssertionError("it was let in")


async def _serve(client: Client, run: Run[Any]) -> None:
    async with client.worker():
        raise AssertionError("it was let in")


CALLS: dict[str, Call] = {
    "enter": _enter,
    "worker": _serve,
    "start": lambda client, run: client.start_workflow("w"),
    "start under an id": lambda client, run: client.start_workflow("w", run_id="other"),
    "status": lambda client, run: run.status(),
    "history": lambda client, run: run.history(),
    "signal": lambda client, run: run.signal("go"),
    "cancel": lambda client, run: run.cancel(),
    "result": lambda client, run: run.result(LIMIT_S),
    "result of a handle of its own": lambda client, run: client.run(run.id).result(LIMIT_S),
}


@contextmanager
def _in_another_loop(client: Client) -> Generator[Run[Any]]:
    """A run that waits, on a client that serves in another thread; afterwards it goes on there."""
    begun, over = threading.Event(), threading.Event()
    runs: list[Run[Any]] = []
    results: list[Any] = []

    async def serve() -> None:
        async with client.worker():
            runs.append(await client.start_workflow("w"))
            begun.set()
            await asyncio.to_thread(over.wait)
            await runs[0].signal("go")
            results.append(await runs[0].result(LIMIT_S))

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    begun.wait()
    try:
        yield runs[0]
    finally:
        over.set()
        thread.join()
    assert results == ["gone"], "the loop that the client belongs to must go on"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_client_in_another_loop_says_so(client: Client, call: Call) -> None:
    _waiting(client)
    with (
        _in_another_loop(client) as run,
        pytest.raises(ConfigError, match=r"belongs to another event loop.*run_coroutine_threads"),
    ):
        asyncio.run(call(client, run))


def test_a_client_may_be_entered_in_one_loop_after_another(client: Client) -> None:
    _waiting(client)

    async def once() -> Any:
        async with client.worker():
            run = await client.start_workflow("w")
            await run.signal("go")
            return await run.result(LIMIT_S)

    assert [asyncio.run(once()) for _ in range(2)] == ["gone"] * 2


def test_a_loop_that_ended_inside_the_client_is_named(client: Client) -> None:
    async def begin() -> None:
        await client.__aenter__()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    with pytest.raises(ConfigError, match="belongs to another event loop"):
        asyncio.run(begin())
    loop.run_until_complete(client.__aexit__(None, None, None))
    loop.close()


IN_A_THREAD = """
import asyncio, sys, threading
from stepfold import Client, Context, Step

def make():
    client = Client(sys.argv[1])
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return await step.run("s", lambda: "done")
    return client

async def ask(client):
    async with client:
        return await (await client.start_workflow("w")).result(30)

threading.Thread(target=make().run_worker, daemon=True).start()
print(asyncio.run(ask(make())))
"""


def test_a_worker_runs_in_a_thread(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_THREAD, f"sqlite:///{tmp_path}/log.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


LEAVES_THREADS_BEHIND = """
import asyncio, threading, time
from pydantic import BaseModel, field_serializer
from stepfold import Client, Context, Step

client = Client("memory://")
serializing = [threading.Event(), threading.Event()]

class Endless(BaseModel):
    number: int

    @field_serializer("number")
    def of_number(self, number: int) -> int:
        serializing[number].set()
        while True:
            time.sleep(0.001 * number)

def gives_what_cannot_be_written(number: int) -> Endless:
    return Endless(number=number)

@client.workflow(id="w")
async def w(ctx: Context[int], step: Step) -> None:
    await step.run("s", gives_what_cannot_be_written, ctx.input.data)

async def main():
    async with client.worker(grace=0):
        for number in range(2):
            await client.start_workflow(w, number)
        while not all(one.is_set() for one in serializing):
            await asyncio.sleep(0.01)

asyncio.run(main())
print("over")
"""


def test_a_process_ends_in_good_order_whatever_the_threads_of_its_steps_do() -> None:
    """What ends them unasked aborts the process where they are in pydantic."""
    command = [sys.executable, "-c", LEAVES_THREADS_BEHIND]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("over\n", 0)
    assert "is abandoned" in done.stderr and "Traceback" not in done.stderr


async def test_a_worker_in_a_running_loop_is_refused_and_leaves_nothing_behind(client: Client) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ConfigError, match=r"async with client\.worker"):
            client.run_worker()
    assert not caught


async def test_a_client_in_workflow_code_is_refused_before_it_writes(client: Client) -> None:
    @client.workflow(id="parent")
    async def parent(ctx: Context, step: Step) -> None:
        await step.run("first", lambda: None)
        await client.start_workflow("w", run_id="child")

    _waiting(client)
    async with client.worker():
        run = await client.start_workflow(parent)
        await eventually(lambda: _is(run, "quarantined"))
        error = (await run.status()).error
        assert error is not None and "workflow code called a client" in error.message and "step.run" in error.message
        with pytest.raises(RunNotFound):
            await client.run("child").status()


async def test_a_step_may_call_its_client(client: Client) -> None:
    _waiting(client)

    @client.workflow(id="parent")
    async def parent(ctx: Context, step: Step) -> str:
        async def start() -> str:
            return (await client.start_workflow("w", run_id="child")).id

        return await step.run("start", start)

    async with client.worker():
        assert await (await client.start_workflow(parent)).result(LIMIT_S) == "child"
        await client.run("child").signal("go")
        assert await client.run("child").result(LIMIT_S) == "gone"


# How long it waits.


class Silent(MemoryDriver):
    """A log that stops answering."""

    silent = False

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        await self._answers()
        return await super().append(partition, entries)

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        await self._answers()
        return await super().find(partition, keys, start)

    async def _answers(self) -> None:
        if self.silent:
            await asyncio.get_running_loop().create_future()


def test_a_log_that_does_not_answer_is_waited_for_as_long_as_is_said() -> None:
    async def main() -> list[tuple[str, float, str]]:
        log = Silent(clock=virtual_clock)
        client = Client(driver=log)
        another = Silent(clock=virtual_clock)
        hasty = Client(driver=another, timeout="2s")
        _waiting(client)
        loop = asyncio.get_running_loop()
        found: list[tuple[str, float, str]] = []
        async with client.worker():
            run = await client.start_workflow("w", run_id="r")
            await eventually(lambda: _is(run, "waiting"))
            async with hasty:
                log.silent = another.silent = True
                calls = {
                    "the client's default": run.status(),
                    "another default": hasty.run("r").status(),
                    "status": run.status(timeout=1),
                    "history": run.history(timeout=1),
                    "signal": run.signal("go", timeout=1),
                    "cancel": run.cancel(timeout=1),
                    "start": client.start_workflow("w", run_id="s", timeout=1),
                }
                for name, call in calls.items():
                    began = loop.time()
                    with pytest.raises(LogUnavailable) as failed:
                        await call
                    found.append((name, round(loop.time() - began, 6), str(failed.value)))
                log.silent = False
            assert (await run.status()).state == "waiting"
            await run.signal("go")
            assert await run.result(LIMIT_S) == "gone"
        return found

    found = run_virtual(main())
    assert [(name, took) for name, took, _ in found][:2] == [("the client's default", 10), ("another default", 2)]
    assert {took for _, took, _ in found[2:]} == {1}
    assert all(f"has not answered for {took:g} s" in text and "timeout=" in text for _, took, text in found)


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan")])
def test_a_timeout_that_is_no_duration(timeout: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        Client("memory://", timeout=timeout)


# What it reads.


class Counting(MemoryDriver):
    """How many records were read for somebody who looks at a run."""

    found = 0

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        records = await super().find(partition, keys, start)
        self.found += len(records)
        return records


ASKS: dict[str, Call] = {
    "signal": lambda client, run: run.signal("more"),
    "status": lambda client, run: run.status(),
    "start": lambda client, run: client.start_workflow("w", run_id="r"),
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_what_has_been_read_of_a_run_is_not_read_again(ask: Call) -> None:
    async def main() -> list[int]:
        log = Counting(clock=virtual_clock)
        client = Client(driver=log)
        _waiting(client)
        async with client.worker():
            run = await client.start_workflow("w", run_id="r")
            for _ in range(200):
                await run.signal("more")
            costs: list[int] = []
            for _ in range(2):
                log.found = 0
                for _ in range(100):
                    await ask(client, run)
                costs.append(log.found)
        return costs

    first, second = run_virtual(main())
    assert max(first, second) < 500, "a few records for each call, however many there are"


def test_what_a_status_gives_is_the_callers_own() -> None:
    async def main(client: Client) -> Any:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> dict[str, int]:
            return {"n": 1}

        async with client.worker():
            run = await client.start_workflow(w, run_id="r")
            await run.result()
            (await run.status()).result["n"] = 2
            return (await run.status()).result

    assert virtually(main) == {"n": 1}


# What is refused.


async def test_a_run_that_never_was_and_one_that_has_ended(new_log: NewLog) -> None:
    client = Client(driver=new_log())
    _waiting(client)
    async with client.worker():
        run = await client.start_workflow("w", run_id="r")
        await run.signal("go")
        await run.result(LIMIT_S)
        for call in (run.signal("go"), run.cancel()):
            with pytest.raises(RunEnded, match=r"^run 'r' has ended \(completed\)") as ended:
                await call
            assert (ended.value.run_id, ended.value.log, ended.value.state) == ("r", client.log.name, "completed")
        nobody = client.run("nobody")
        for call in (nobody.signal("go"), nobody.cancel(), nobody.status(), nobody.history(), nobody.result()):
            with pytest.raises(RunNotFound) as missing:
                await call
            assert type(missing.value) is RunNotFound
            assert str(missing.value) == "this log has no run 'nobody'", "nothing that is nobody's business"
            assert (missing.value.run_id, missing.value.log) == ("nobody", client.log.name)


def _waiting(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        await step.wait_for_signal("wait", signal="go")
        return "gone"


async def _is(run: Run[Any], state: str) -> bool:
    return (await run.status()).state == state


# Data are written at the call.


class Counted(BaseModel):
    n: int


async def test_a_change_after_the_call_does_not_reach_a_signal(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        return [(await step.wait_for_signal("next", signal="item")).data for _ in range(3)]

    async with client.worker():
        run = await client.start_workflow(w)
        data: dict[str, int] = {}
        tasks: list[asyncio.Task[None]] = []
        for number in range(3):
            data["n"] = number
            tasks.append(asyncio.create_task(run.signal("item", data)))
        await asyncio.gather(*tasks)
        assert await run.result(LIMIT_S) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_change_after_the_call_does_not_reach_an_input(client: Client, by_name: bool) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context[Counted], step: Step) -> int:
        return ctx.input.data.n

    async with client.worker():
        data = Counted(n=0)
        starts: list[Coroutine[Any, Any, Run[Any]]] = []
        for number in range(3):
            data.n = number
            starts.append(client.start_workflow("w", data) if by_name else client.start_workflow(w, data))
        runs = await asyncio.gather(*starts)
        assert [await run.result(LIMIT_S) for run in runs] == [0, 1, 2]


async def test_errors_of_the_data_come_at_the_await(client: Client) -> None:
    """A caller that makes several coroutines before it awaits one would leave the others behind."""

    @client.workflow(id="w")
    async def w(ctx: Context[Counted], step: Step) -> None: ...

    async with client.worker():
        run = await client.start_workflow(w, Counted(n=1))
        wrong: list[tuple[Coroutine[Any, Any, Any], type[Exception]]] = [
            (client.start_workflow(w, {"n": "x"}), InputInvalid),
            (client.start_workflow("other", {1, 2}), InputInvalid),
            (run.signal("x", {1, 2}), InputInvalid),
            (client.start_workflow(cast(Any, 5)), ConfigError),
            (run.signal(cast(Any, 5), 1), ValueError),
        ]
        for call, kind in wrong:
            with pytest.raises(kind):
                await call


async def test_a_call_that_nobody_awaits_still_warns(client: Client) -> None:
    async with client:
        calls: dict[str, Callable[[], Any]] = {
            "signal": lambda: client.run("r").signal("x"),
            "start_workflow": lambda: client.start_workflow("w"),
        }
        for name, call in calls.items():
            with pytest.warns(RuntimeWarning, match=f"{name}' was never awaited"):
                forget(call)


def forget(call: Callable[[], Any]) -> None:
    call()
    gc.collect()


async def test_a_step_may_call_the_client_by_its_methods(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> Any:
        await step.run("tell", client.run(ctx.run_id).signal, "item", 7)
        return (await step.wait_for_signal("item", signal="item")).data

    async with client.worker():
        assert await (await client.start_workflow(w)).result(LIMIT_S) == 7


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 has no such mark")
def test_the_calls_are_known_as_coroutine_functions() -> None:
    assert inspect.iscoroutinefunction(Run.signal) and inspect.iscoroutinefunction(Client.start_workflow)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"driver": "sqlite:///x.db"}, ConfigError, "give a URL first"),
        ({"driver": MemoryDriver(), "random": 5}, TypeError, r"random=5\): it must be"),
        ({"driver": MemoryDriver(), "ids": "x"}, TypeError, r"ids='x'\): it must be"),
    ],
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Client(**options)
