"""What many runs cost: to recover them, to keep them, and to wake them."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from figures import Figure, client_with_workflows, ended_run, runs, serving
from past import Past

from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.log import Entry

PROGRAMS = Path(__file__).parent / "programs.py"
PORTION = 20_000
SLEEPERS = 1_000_000
WAKE_UPS = 20_000
WAKE_UPS_PER_S = 1_000
BEFORE_WAKE_UPS_S = 100.0
"""How long after the start of the worker the first of them is due."""


async def child(*arguments: object) -> dict[str, Any]:
    """What one of the programs found out."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAMS), *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}"
    return orjson.loads(output.splitlines()[-1])


# -- recovery


def waiting(past: Past, count: int) -> Iterator[list[Entry]]:
    """Runs that wait for a signal."""
    for _ in range(count):
        run_id = uuid.uuid4().hex
        yield [
            past.started(run_id, "holder", 1),
            past.event(run_id, "step-completed", step_id="step", attempt=1, result=None),
            past.event(run_id, "wait-started", step_id="end", signal="end", timeout_at=None),
        ]


async def open_runs(folder: Path, count: int = 100_000) -> list[Figure]:
    """A partition of runs that wait; once left in good order, once by a crash right before its next checkpoint."""
    driver = SQLiteDriver(folder / "open.db", partitions=1)
    await driver.open()
    past = Past(driver)
    await past.claim()
    made = waiting(past, count)
    for _ in range(0, count, PORTION // 4):
        await past.checkpoint()
        await past.write(entry for run in islice(made, PORTION // 4) for entry in run)
    await driver.close()
    after_crash = await recovered_s(driver, count)
    took = [await recovered_s(driver, count) for _ in range(3)]
    mine = statistics.median(took)
    return [
        Figure(f"partition with {count:,} open runs", f"{mine:.2f} s", "", "", "at most 5 s", mine <= 5),
        Figure(
            f"the same after a crash, {PORTION // 4:,} runs since the last checkpoint",
            f"{after_crash:.2f} s",
            "",
            "",
            "at most 5 s",
            after_crash <= 5,
        ),
    ]


async def recovered_s(driver: SQLiteDriver, count: int) -> float:
    """How long a new worker takes until it serves all of these runs."""
    client = client_with_workflows(driver)
    began = time.perf_counter()
    async with serving(client) as worker:
        took = time.perf_counter() - began
        assert sum(len(owner.state.runs) for owner in worker.owners.values() if owner.state is not None) == count
    gc.collect()
    return took


async def ended_history(folder: Path) -> Figure:
    """Start-up against 10^4 and against 10^6 events of runs that have ended."""
    took: dict[int, list[float]] = {}
    drivers: dict[int, SQLiteDriver] = {}
    for events in (10_000, 1_000_000):
        driver = drivers[events] = SQLiteDriver(folder / f"ended-{events}.db")
        await driver.open()
        past = Past(driver)
        await past.claim()
        of_one = len(ended_run("", 0, 0))
        for _ in range(0, events // of_one, 1_000):
            await past.write(
                entry
                for run_id in [uuid.uuid4().hex for _ in range(1_000)]
                for entry in ended_run(run_id, past.claim_of(run_id), driver.now())
            )
        await past.checkpoint()
        await past.claim(None)
        await driver.close()
        took[events] = []
    for _ in range(7):
        for events, driver in drivers.items():
            took[events].append(await recovered_s(driver, 0))
    few, many = (statistics.median(times) for times in took.values())
    return Figure(
        "start-up against 10^6 ended events and against 10^4",
        f"{many * 1000:.0f} ms",
        f"{few * 1000:.0f} ms",
        f"{many / few:.2f} x",
        "at most 1.3 x",
        many <= 1.3 * few,
    )


# -- sleep


async def sleepers(folder: Path, count: int = SLEEPERS, wake_ups: int = WAKE_UPS) -> list[Figure]:
    """Runs that sleep in one worker, a process of its own. The last of them wake up while it is watched."""
    path = folder / "sleepers.db"
    driver = SQLiteDriver(path, durability="normal")
    await driver.open()
    past = Past(driver)
    await past.claim()
    first_due = driver.now() + 365 * 24 * 3600 * 1000  # the worker's clock is set accordingly

    def sleeping() -> Generator[list[Entry]]:
        for number in range(count):
            due = first_due + (number * 1000 // WAKE_UPS_PER_S if number < wake_ups else 30 * 24 * 3600 * 1000 + number)
            run_id = f"{number:08x}{uuid.uuid4().hex[8:]}"
            yield [
                past.started(run_id, "sleeper"),
                past.event(run_id, "step-completed", step_id="before", attempt=1, result=None),
                past.event(run_id, "sleep-scheduled", step_id="long", wake_at=due),
            ]

    made = sleeping()
    for _ in range(0, count, PORTION):
        await past.write(entry for run in islice(made, PORTION) for entry in run)
        await past.checkpoint()
    await past.claim(None)
    await driver.close()
    made.close()
    found = await child("sleepers", path, first_due, BEFORE_WAKE_UPS_S, wake_ups)
    late = (
        f"{found['early']} early, p50 {found['p50_ms']:.0f} ms late, p99 {found['p99_ms']:.0f} ms, {found['cores']:.0%} of a core"
    )
    assert found["recovered"] == count and found["woken"] == wake_ups, found
    return [
        Figure(
            f"{count:,} sleeping runs in one worker: memory",
            f"{found['recovered_mb']:.0f} MB (at most {found['peak_mb']:.0f} MB while they wake up)",
            "",
            "",
            "at most 400 MB",
            found["peak_mb"] <= 400,
        ),
        Figure("all of them recovered", f"{found['recovered_s']:.1f} s", "", "", "at most 60 s", found["recovered_s"] <= 60),
        Figure(
            f"{WAKE_UPS_PER_S:,} wake-ups/s among them",
            f"{found['woken_per_s']:,.0f}/s, {late}",
            "",
            "",
            "none early, p99 at most 100 ms late",
            found["early"] == 0 and found["p99_ms"] <= 100,
        ),
    ]


# -- how a step's cost depends on the others


async def step_among_others(_folder: Path) -> Figure:
    """The CPU time of one step while 100 and while 100,000 other runs are open."""
    costs: dict[int, float] = {}
    for others in (100, 100_000):
        client = client_with_workflows(MemoryDriver())
        async with serving(client) as worker:
            for _ in range(others // 100):
                await asyncio.gather(*(client.start_workflow("holder", 1) for _ in range(100)))
            await runs(client, 64, 16, steps=100)
            while any(len(owner.state.runs) != others for owner in worker.owners.values() if owner.state is not None):
                await asyncio.sleep(0.1)
            measured: list[float] = []
            for _ in range(3):
                began = time.process_time()
                await runs(client, 64, 16, steps=200)
                measured.append((time.process_time() - began) / (64 * 200))
            costs[others] = statistics.median(measured)
        gc.collect()
    few, many = costs.values()
    return Figure(
        "CPU time of one step among 100,000 open runs and among 100",
        f"{many * 1e6:.0f} µs",
        f"{few * 1e6:.0f} µs",
        f"{many / few:.2f} x",
        "at most 1.5 x",
        many <= 1.5 * few,
    )
