"""The programs of the fault tests: a worker that may die at any moment, and a client that survives.

    python workload.py worker URL FOLDER SEED    executes runs until SIGTERM; each step that runs leaves a line in
                                                 FOLDER/executions, and a gated one ends once there is FOLDER/gate
    python workload.py client URL FOLDER RATE    starts RATE runs a second until SIGTERM, then waits for all of them, and
                                                 notes in FOLDER/told what it was told: starts acknowledged, and outcomes
    python workload.py client+rogues …           the same; every tenth is a rogue, which is cancelled when it does not end

Both end when their standard input does, so nothing outlives a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, field_validator

from stepfold import (
    Client,
    Context,
    LogUnavailable,
    Retry,
    Run,
    RunNotFound,
    Step,
    StepFailed,
    WorkflowCancelled,
    WorkflowFailed,
    current_step,
)
from stepfold.worker.owner.running import MAX_TOLD

T = TypeVar("T")

URL, FOLDER = sys.argv[2], Path(sys.argv[3])
SIGNALS = 3
GRACE_S = 2
ROGUE_S = 15
"""So long a rogue may take to end by itself."""
MOST_OPEN = 100
"""A client starts no more runs while it waits for so many: on a slow machine the workers would never be done."""

client = Client(URL)


class Lines:
    """A file to which several processes append whole lines of JSON."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)

    def write(self, **fields: Any) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")


executions = Lines(FOLDER / "executions")


class Journey(BaseModel):
    signals: int = 0
    slow_s: float = 0.0
    gated: bool = False
    poison: Literal["at once", "when tried again", "in the code", "after many values"] | None = None

    @field_validator("signals")
    @classmethod
    def _has_a_bug(cls, signals: int) -> int:
        if signals < 0:
            raise KeyError(signals)
        return signals


class Returned(BaseModel):
    """All that the code was given."""

    results: dict[str, str]
    signals: list[Any]


def leave_a_line() -> str:
    """What happens outside when a step runs: another token each time."""
    token = uuid.uuid4().hex
    step = current_step()
    executions.write(
        run_id=step.run_id,
        step_id=step.step_id,
        attempt=step.attempt,
        pid=os.getpid(),
        at=time.time_ns() // 1_000_000,
        token=token,
    )
    return token


async def effect(lasts_s: float = 0.0) -> str:
    token = leave_a_line()
    await asyncio.sleep(lasts_s)
    return token


async def gated() -> str:
    token = leave_a_line()
    while not (FOLDER / "gate").exists():
        await asyncio.sleep(0.05)
    return token


async def fails_at_first() -> str:
    token = await effect(0.01)
    if current_step().attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return token


def blocking_effect() -> str:
    token = leave_a_line()
    time.sleep(0.01)
    return token


async def poisonous(fails_before: bool) -> str:
    await effect()
    if fails_before and current_step().attempt == 1:
        raise ConnectionError("the next attempt is worse")
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@client.workflow(id="journey")
async def journey(ctx: Context[Journey], step: Step) -> Returned:
    results: dict[str, str] = {}
    signals: list[Any] = []

    async def run(step_id: str, *rest: Any, **options: Any) -> None:
        results[step_id] = await step.run(step_id, *rest, **options)

    async def branch(number: int) -> None:
        await run(f"branch-{number}-a", effect, 0.01 * number)
        await run(f"branch-{number}-b", blocking_effect)

    await run("first", effect)
    if ctx.input.data.slow_s:
        await run("slow", effect, ctx.input.data.slow_s)
    if ctx.input.data.gated:
        await run("gated", gated)
    if ctx.input.data.poison == "after many values":
        for number in range(4 * MAX_TOLD):
            await step.publish("number", number)
        await run("published", effect)
    if ctx.input.data.poison in ("in the code", "after many values"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif ctx.input.data.poison is not None:
        await run("poison", poisonous, ctx.input.data.poison == "when tried again", retry=Retry(3, backoff="500ms"))
    await asyncio.gather(*(branch(number) for number in range(3)))
    await step.sleep("nap", 0.05)
    await run("flaky", fails_at_first, retry=Retry(2, backoff="20ms", jitter=False))
    try:
        async with asyncio.timeout(0.03):
            await step.sleep("too long", 3600)
    except TimeoutError:
        await run("after the timeout", effect)
    async with asyncio.timeout(3600):
        await run("in time", effect, 0.02)
    for number in range(ctx.input.data.signals):
        got = await step.wait_for_signal(f"signal-{number}", signal="go", timeout="1h")
        assert got is not None
        signals.append(got.data)
        await run(f"after signal {number}", effect)
    return Returned(results=results, signals=signals)


@client.workflow(id="errand")
async def errand(ctx: Context[None], step: Step) -> Returned:
    return Returned(results={"only": await step.run("only", effect)}, signals=[])


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")

    __repr__ = __str__


async def returns_what_cannot_be_written() -> Any:
    return float("nan")


async def cannot_be_shown() -> None:
    raise CannotBeShown


async def changes(argument: list[int]) -> list[int]:
    seen = list(argument)
    argument.append(0)
    if current_step().attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return seen


@client.workflow(id="rogue")
async def rogue(ctx: Context[str], step: Step) -> Any:
    """What no workflow should do, by name; its neighbours must not feel it."""
    kind = ctx.input.data
    await step.run("first", fine)
    if kind == "unwritable":
        return object()
    if kind == "unshowable":
        raise CannotBeShown
    if kind in ("code kills", "step kills"):
        await step.run("kills", poisonous, False) if kind == "step kills" else os.kill(os.getpid(), signal.SIGKILL)
    if kind == "blocks":
        time.sleep(0.4)  # noqa: ASYNC251  # that is the point
        return "blocked"
    if kind == "swallows":
        while True:
            with contextlib.suppress(BaseException):
                await step.wait_for_signal("never", signal="never")
    if kind == "spins":
        while True:
            await asyncio.sleep(0)
    if kind == "sleeps":
        await asyncio.sleep(sys.maxsize)
    if kind == "changes":
        return await step.run("changes", changes, [1], retry=Retry(2, backoff="20ms"))
    try:
        return await step.run("refused", {"step unwritable": returns_what_cannot_be_written}.get(kind, cannot_be_shown))
    except StepFailed:
        return "refused"


ROGUES: dict[str, tuple[str, ...]] = {
    "unwritable": ("failed",),
    "unshowable": ("failed",),
    "code kills": ("cancelled",),
    "step kills": ("cancelled",),
    "blocks": ("completed",),
    "swallows": ("cancelled",),
    "spins": ("cancelled",),
    "sleeps": ("cancelled",),
    "changes": ("completed",),
    "step unwritable": ("completed",),
    "step unshowable": ("completed",),
}
"""How such a run may end, if it is not cancelled while it has not come to that."""
KILLERS = ("code kills", "step kills")
"""Each ends as many workers as it may, so a client starts one of each."""


def rogue_of(number: int) -> str:
    """Which rogue is the next: each once, then those again that kill no worker."""
    if number < len(ROGUES):
        return [*ROGUES][number]
    return [kind for kind in ROGUES if kind not in KILLERS][number % (len(ROGUES) - len(KILLERS))]


async def fine() -> str:
    return "fine"


async def worker(seed: int) -> None:
    """With bounds so small that runs are evicted, and checkpoints written and read, all the time."""
    choose = random.Random(seed)
    told_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_leave.set)
    async with client.worker(
        grace=float(os.environ.get("GRACE_S", GRACE_S)),
        concurrency=choose.choice([5, 50]),
        live_runs=choose.choice([2, 1000]),
        checkpoint_records=choose.choice([40, 400]),
    ) as serving:
        waits = [asyncio.create_task(serving.wait()), asyncio.create_task(told_to_leave.wait())]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in done:
            wait.result()


class Caller:
    """Starts runs, sends them signals, waits for their ends, and notes what it is told."""

    def __init__(self, rate: float, rogues: bool) -> None:
        self._rate = rate
        self._rogues = rogues
        self._told = Lines(FOLDER / "told")
        self._following: set[asyncio.Task[None]] = set()
        self._outages = 0

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Again and again, while the log cannot be reached."""
        while True:
            try:
                return await ask()
            except LogUnavailable as error:
                self._outages += 1
                print(error, flush=True)
                await asyncio.sleep(0.5)

    async def run(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with client:
            number = 0
            while not stop.is_set():
                await self._start(number)
                number += 1
                while len(self._following) >= MOST_OPEN and not stop.is_set():
                    await asyncio.sleep(0.1)
                await asyncio.sleep(random.expovariate(self._rate))
            await asyncio.gather(*self._following)

    async def _start(self, number: int) -> None:
        """With and without a run id of its own; the same start again is the same run."""
        if self._rogues and number % 10 == 9:
            kind = rogue_of(number // 10)
            bad = await self._patiently(lambda: client.start_workflow(rogue, kind, run_id=f"rogue-{number}"))
            self._told.write(started=bad.id)
            self._keep(self._see_to(bad, kind))
            return
        data = Journey(signals=SIGNALS if number % 3 == 0 else 0)
        run_id = f"run-{number}" if number % 4 == 0 else None
        run = await self._patiently(lambda: client.start_workflow(journey, data, run_id=run_id))
        self._told.write(started=run.id)
        if run_id is not None and number % 8 == 0:
            again = await self._patiently(lambda: client.start_workflow(journey, data, run_id=run_id))
            assert again.id == run_id
        self._keep(self._follow(run, data.signals))

    def _keep(self, following: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(following)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _see_to(self, run: Run[Any], kind: str) -> None:
        """A rogue that does not end by itself, because it stands still or would go on for ever, is cancelled."""
        cancelled = False
        while True:
            try:
                result = await self._patiently(lambda: run.result(ROGUE_S))
            except TimeoutError:
                cancelled = True
                with contextlib.suppress(RunNotFound):
                    await self._patiently(run.cancel)
                continue
            except WorkflowCancelled:
                type_, result = "cancelled", None
            except WorkflowFailed:
                type_, result = "failed", None
            else:
                type_ = "completed"
            assert type_ in ROGUES[kind] or (cancelled and type_ == "cancelled"), (run.id, kind, type_, result)
            if kind == "changes" and type_ == "completed":
                assert result == [1], (run.id, result)
            self._told.write(ended=run.id, type=type_, **({"result": result} if type_ == "completed" else {}))
            return

    async def _follow(self, run: Run[Returned], signals: int) -> None:
        """Some of the signals are sent before the run can have asked for them, some after."""
        for number in range(signals):
            await asyncio.sleep(random.choice([0, 0, 0.2, 1]))
            try:
                await self._patiently(lambda number=number: run.signal("go", number))
            except RunNotFound:  # it has ended: what was not acknowledged may have arrived all the same, and then again
                assert self._outages
                break
        try:
            returned = await self._patiently(run.result)
        except WorkflowCancelled:
            self._told.write(ended=run.id, type="cancelled")
        except WorkflowFailed:
            self._told.write(ended=run.id, type="failed")
        else:
            self._told.write(ended=run.id, type="completed", result=returned.model_dump())


def say_where() -> None:
    """For the log, when a test fails: what this process is doing."""
    for task in asyncio.all_tasks():
        task.print_stack()


async def main() -> None:
    asyncio.get_running_loop().add_reader(sys.stdin, os._exit, 1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say_where)
    if sys.argv[1] == "worker":
        await worker(int(sys.argv[4]))
    else:
        await Caller(float(sys.argv[4]), sys.argv[1] == "client+rogues").run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(name)s %(message)s", datefmt="%H:%M:%S")
    asyncio.run(main())
