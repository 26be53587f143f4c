"""A worker keeps nothing of runs that are over, however they ended, and once it has stopped nothing at all is left.

In a process of its own, which does nothing else: there, what is left can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from eventually import DEADLINE_S, eventually
from neighbours import swallows_all
from one_run import LIMIT_S, Body

import stepfold.worker.watchdog
from stepfold import Client, Context, Retry, Run, Step, StepfoldError

ROUNDS = 2
RUNS = 5
"""Of each kind in a round: what is kept of one run would be seen this often."""
GRACE_S = 0.2
OURS = ("stepfold.", "asyncio.", "_asyncio.")
OF_RUNS = (
    "stepfold.replay.execution.",
    "stepfold.worker.attempt.",
    "stepfold.replay.loop.Deterministic",
    "stepfold.replay.futures.Deterministic",
    "stepfold.core.state.RunState",
    "stepfold.authoring.step.Running",
)
OF_WORKERS = ("stepfold.worker.worker.", "stepfold.worker.pool.", "stepfold.worker.owner.", "stepfold.core.fold.")
OF_THE_LOG = ("stepfold.log.Record", "stepfold.drivers.memory._Store")
"""A log in memory is there as long as its process."""
MADE_LATE = "stepfold.core.packing."
"""Each partition has one from the first run on that it puts away."""

over = threading.Event()
"""Threads that do not come back before this is set."""


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def add_in_thread(a: int, b: int) -> int:
    return a + b


async def hang() -> None:
    await asyncio.Event().wait()  # no sleep: asyncio itself keeps some of the timers that were cancelled


async def ignores_its_cancellation() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await hang()


def fail() -> None:
    raise ValueError("as asked")


def wait_in_thread() -> None:
    over.wait()


async def completes(ctx: Context[Any], step: Step) -> int:
    one, two = await asyncio.gather(step.run("one", add, 1, 2), step.run("two", add_in_thread, 3, 4))
    await step.sleep("nap", 0.01)
    return one + two


async def abandons(ctx: Context[Any], step: Step) -> None:
    asyncio.create_task(step.run("left", hang))  # noqa: RUF006  # that is what is tried
    asyncio.create_task(step.wait_for_signal("left too", signal="never", timeout="7d"))  # noqa: RUF006  # as the one above
    await step.run("one", add, 1, 2)


async def fails(ctx: Context[Any], step: Step) -> None:
    await step.run("one", fail, retry=Retry(2, backoff="10ms"))


async def is_too_slow(ctx: Context[Any], step: Step) -> None:
    await step.run("stuck", wait_in_thread, timeout="20ms", retry=Retry(1))


async def sleeps(ctx: Context[Any], step: Step) -> None:
    await step.sleep("long", "7d")


async def waits(ctx: Context[Any], step: Step) -> None:
    async with asyncio.timeout(3600):
        await step.wait_for_signal("some day", signal="never", timeout="7d")


async def runs_long(ctx: Context[Any], step: Step) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(step.run("hang", hang))
        group.create_task(step.run("on", ignores_its_cancellation))


async def swallows(ctx: Context[Any], step: Step) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await step.sleep("long", "7d")


async def blocks(ctx: Context[Any], step: Step) -> None:
    await step.run("one", add, 1, 2)
    while True:
        pass


async def connects(ctx: Context[Any], step: Step) -> None:
    await step.run("one", add, 1, 2)
    await asyncio.open_connection("localhost", 1)


END: list[Body] = [completes, abandons, fails, is_too_slow]
WAIT: list[Body] = [sleeps, waits, runs_long, swallows]
STAND_STILL: list[Body] = [blocks, swallows_all, connects]


async def see_to(run: Run[Any], body: Body) -> None:
    """See a run to its end."""
    if body not in END:
        states = ("waiting", "running") if body in WAIT else ("quarantined",)
        await eventually(lambda: is_in(run, *states))
        await run.cancel("enough")
    with contextlib.suppress(StepfoldError):
        await run.result(LIMIT_S)


async def is_in(run: Run[Any], *states: str) -> bool:
    return (await run.status()).state in states


async def a_round(url: str, name: str) -> None:
    """By a client of its own: one remembers what it has read."""
    over.clear()
    async with Client(url) as client:
        bodies = [body for body in (*END, *WAIT, *STAND_STILL) for _ in range(RUNS)]
        ids = (f"{name}-{number}" for number in range(len(bodies)))
        runs = [await client.start_workflow(body.__name__, run_id=run_id) for body, run_id in zip(bodies, ids, strict=False)]
        await asyncio.gather(*map(see_to, runs, bodies))
    over.set()


def there() -> Counter[str]:
    """The objects that are there, by type."""
    while gc.collect():  # one that a finalizer saw is freed by the next collection
        pass
    objects = [one for one in gc.get_objects() if not (isinstance(one, asyncio.Handle) and one.cancelled())]
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, objects))
    return Counter(kind for kind in kinds if kind.startswith(OURS) and not kind.startswith((*OF_THE_LOG, MADE_LATE)))


def in_the_end(look: Callable[[], Counter[str]]) -> Counter[str]:
    """What is left when nothing more goes: a thread that ends holds its worker until it has ended."""
    until = time.monotonic() + DEADLINE_S
    while (left := look()) and time.monotonic() < until:
        time.sleep(0.01)
    return left


async def nothing_more(before: Counter[str]) -> None:
    """Until all that is there was there before, and nothing of runs."""
    left = Counter[str]()

    async def look() -> bool:
        nonlocal left
        now = there()
        left = Counter({kind: number for kind, number in (now - before).items() if number >= RUNS})
        left += Counter({kind: number for kind, number in now.items() if kind.startswith(OF_RUNS)})
        return not left

    try:
        await eventually(look)
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None


async def serve(url: str, name: str, rounds: int) -> None:
    client = Client(url)
    for body in (*END, *WAIT, *STAND_STILL):
        client.workflow(id=body.__name__)(body)
    async with client.worker(grace=GRACE_S, live_runs=8):
        before: Counter[str] | None = None
        for number in range(rounds):
            await a_round(url, f"{name}-{number}")
            await nothing_more(before or there())
            before = before or there()


def live(url: str) -> Counter[str]:
    """Two workers, one after the other, and what is there of the second one when it has stopped."""
    for name, value in {"LOOK_S": 0.02, "WARN_S": 0.1, "STOP_S": 0.2, "INSIST_S": 0.05}.items():
        setattr(stepfold.worker.watchdog, name, value)
    logging.disable()
    asyncio.run(serve(url, "first", 1))  # what is made once is made now
    before = there()
    asyncio.run(serve(url, "second", ROUNDS))
    return in_the_end(lambda: there() - before)


async def never_stops(ctx: Context[Any], step: Step) -> None:
    while True:
        with contextlib.suppress(BaseException):
            await step.sleep("long", "7d")


async def serve_what_never_stops(url: str) -> None:
    client = Client(url)
    workflow = client.workflow(id="w")(never_stops)
    async with client.worker(grace=GRACE_S):
        run = await client.start_workflow(workflow)
        await eventually(lambda: is_in(run, "waiting"))
        await run.cancel("enough")
        with contextlib.suppress(StepfoldError):
            await run.result(LIMIT_S)


def kept(url: str) -> Counter[str]:
    """What is there of a worker that had code which is kept for ever."""
    logging.disable()
    asyncio.run(serve_what_never_stops(url))
    in_the_end(lambda: of_workers(there()))
    return there()


def of_workers(objects: Counter[str]) -> Counter[str]:
    return Counter(
        {kind: number for kind, number in objects.items() if kind.startswith(OF_WORKERS) or kind.endswith("SelectorEventLoop")}
    )


def in_a_process_of_its_own(work: Callable[[str], Counter[str]], url: str) -> Counter[str]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, url).result()


@pytest.mark.slow
def test_nothing_is_left_of_a_worker(tmp_path: Path) -> None:
    assert not in_a_process_of_its_own(live, "memory://freed")
    assert not in_a_process_of_its_own(live, f"sqlite:///{tmp_path}/runs.db")


@pytest.mark.slow
def test_nothing_is_left_of_a_worker_on_kafka(kafka_namespace: str) -> None:
    assert not in_a_process_of_its_own(live, kafka_namespace)


def test_code_that_never_stops_keeps_its_own_run_alone() -> None:
    left = in_a_process_of_its_own(kept, "memory://kept")
    assert left["stepfold.replay.loop.DeterministicLoop"] == 1
    assert not of_workers(left)
