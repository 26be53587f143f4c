"""The code of a step ends the event loop of its worker: that counts as a death. Ends by anybody else are in good order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from stepfold import Client, Context, Step

LOSSES = 8
"""Documented: so many losses in a row quarantine a run."""

EXITS = """
async def exits():
    await asyncio.sleep(0)
    sys.exit(2)

async def ends():
    await asyncio.gather(exits(), exits())
"""
INTERRUPTS = """
async def interrupts():
    raise KeyboardInterrupt

async def ends():
    await asyncio.create_task(interrupts())
"""
CALLS_BACK = """
async def ends():
    asyncio.get_running_loop().call_soon(sys.exit, "over")
    await asyncio.sleep(3600)
"""
STOPS = """
async def ends():
    asyncio.get_running_loop().stop()
    await asyncio.sleep(3600)
"""
CANCELS = """
async def ends():
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(3600)
"""
LIVES = """
import asyncio, os, signal, sys
from stepfold import Client, Context, Step
{ends}
def make():
    client = Client(sys.argv[1])

    @client.workflow(id="hostile")
    async def hostile(ctx: Context, step: Step) -> None:
        await step.run("ends", ends)

    @client.workflow(id="last")
    async def last(ctx: Context, step: Step) -> None:
        await step.run("told", os.kill, os.getpid(), signal.SIGTERM)

    return client

async def start(workflow):
    async with make() as client:
        await client.start_workflow(workflow, run_id=workflow)

async def say():
    async with make() as client:
        print((await client.run("hostile").status()).state, (await client.run("last").status()).state)

asyncio.run(start("hostile"))
for _ in range({losses}):
    try:
        make().run_worker()
    except BaseException as error:
        print(type(error).__name__)
    else:
        print("in good order")
asyncio.run(start("last"))
make().run_worker()
asyncio.run(say())
"""


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (EXITS, "SystemExit"),
        (INTERRUPTS, "KeyboardInterrupt"),
        (CALLS_BACK, "SystemExit"),
        (STOPS, "RuntimeError"),
        (CANCELS, "CancelledError"),
    ],
    ids=["exits", "interrupts", "calls back", "stops", "cancels"],
)
def test_a_step_that_ends_the_loop_is_put_aside_alone(tmp_path: Path, code: str, error: str) -> None:
    source = LIVES.format(ends=code, losses=LOSSES)
    command = [sys.executable, "-c", source, f"sqlite:///{tmp_path}/log.db?partitions=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[:LOSSES] == [error] * LOSSES, done.stderr
    assert done.stdout.splitlines()[LOSSES] == "quarantined completed", done.stderr
    assert done.stderr.count("this worker ends") == LOSSES and done.returncode == 0


FORKS = """
import asyncio, os, sys
from stepfold import Client, Context, Step

client = Client(sys.argv[1])
pids = []

def forks() -> int:
    pids.append(os.fork())
    return os.getpid()

async def forks_on_the_loop() -> int:
    return forks()

@client.workflow(id="w")
async def w(ctx: Context, step: Step) -> bool:
    return await step.run("forks", {forks}) == await step.run("here", os.getpid)

async def main():
    async with client.worker():
        print(await (await client.start_workflow(w)).result(60), flush=True)

asyncio.run(main())
print(os.WEXITSTATUS(os.waitpid(pids[0], 0)[1]))
"""


@pytest.mark.parametrize("forks", ["forks", "forks_on_the_loop"])
def test_the_child_of_a_step_that_forks_is_no_worker(tmp_path: Path, forks: str) -> None:
    command = [sys.executable, "-c", FORKS.replace("{forks}", forks), f"sqlite:///{tmp_path}/log.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.returncode) == ("True\n1\n", 0), done.stderr
    assert "the child of a fork has come back" in done.stderr


# `async with client.worker()`: the loop is the caller's, who may cancel and end it as they like.


@pytest.fixture
def serving(client: Client) -> Client:
    """A client with a step that waits."""

    @client.workflow(id="waits")
    async def waits(ctx: Context[None], step: Step) -> None:
        await step.run("waits", asyncio.sleep, 3600)

    return client


async def is_owned(client: Client, run_id: str) -> bool:
    async with client:
        return (await client.views.read(run_id)).owner is not None


def attempts_lost(client: Client, run_id: str) -> int:
    async def count() -> int:
        async with client:
            return [event.type for event in await client.run(run_id).history()].count("attempt-lost")

    return asyncio.run(count())


async def cancels_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(3600)


async def exits_in_a_task() -> None:
    async def exits() -> None:
        raise SystemExit(2)

    await asyncio.gather(exits(), exits())


@pytest.mark.parametrize(("ends", "error"), [(cancels_all, asyncio.CancelledError), (exits_in_a_task, SystemExit)])
def test_the_loop_of_a_caller_that_a_step_ends_is_a_death(
    client: Client, ends: Callable[[], Awaitable[None]], error: type[BaseException]
) -> None:
    @client.workflow(id="hostile")
    async def hostile(ctx: Context[None], step: Step) -> None:
        await step.run("ends", ends)

    async def start() -> None:
        async with client:
            await client.start_workflow(hostile, run_id="h")

    async def serve() -> None:
        async with client.worker():
            if client.log.name.startswith("memory"):
                await client.start_workflow(hostile, run_id="h")
            await asyncio.get_running_loop().create_future()

    if not client.log.name.startswith("memory"):
        asyncio.run(start())
    for life in range(2):
        with pytest.raises(error):
            asyncio.run(serve())
        assert asyncio.run(is_owned(client, "h"))
        assert attempts_lost(client, "h") == life


async def told() -> None:
    """The application's own routine: cancel everything, as many do when they are told to stop."""
    await asyncio.sleep(0)
    for task in asyncio.all_tasks():
        task.cancel()


async def interrupted() -> None:
    signal.raise_signal(signal.SIGINT)


async def exits() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("app", [told, interrupted, exits, None])
def test_the_loop_of_a_caller_that_the_caller_ends_is_left_in_good_order(
    serving: Client, app: Callable[[], Awaitable[None]] | None
) -> None:
    begun: list[bool] = []
    kept: list[asyncio.Task[None]] = []  # the loop itself holds no task that waits: the garbage collector would take it

    async def serve(over: asyncio.Event) -> None:
        async with serving.worker(grace=0):
            await serving.start_workflow("waits", run_id="w")
            while not (await serving.run("w").status()).waiting_on:
                await asyncio.sleep(0.001)
            begun.append(True)
            over.set()
            if app is not None:
                ending = asyncio.ensure_future(app())
                ending.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is read, so nobody logs it
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        over = asyncio.Event()
        kept.append(asyncio.create_task(serve(over)))
        await over.wait()
        if app is not None:
            await kept[0]

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError, SystemExit):
        asyncio.run(main())
    assert begun
    assert not asyncio.run(is_owned(serving, "w"))
