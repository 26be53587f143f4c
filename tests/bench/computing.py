"""`stepfold worker --processes 2` against one process, with steps that compute, on SQLite and on Kafka.

It is also the app of these workers: `computing:client`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
import uuid
from collections import defaultdict
from pathlib import Path

from figures import Figure
from takeover import Takeovers

from stepfold import Client, Context, Step
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import partition_of

ROUNDS = 3
RUNS_A_PARTITION = 16
STEPS = 10

client = Client("memory://")


def compute() -> int:
    """Some 5 ms of Python."""
    return sum(number * number for number in range(100_000))


def compute_some(times: int) -> None:
    for _ in range(times):
        compute()


@client.workflow(id="computing")
async def computing(ctx: Context[None], step: Step) -> None:
    for _ in range(STEPS):
        await step.run("compute", compute)


async def processes(folder: Path) -> list[Figure]:
    found = [await against_one("SQLite", f"sqlite:///{folder}/computing.db")]
    with LocalBroker() as broker:
        url = f"kafka://{broker.bootstrap}/bench-{uuid.uuid4().hex[:8]}"
        await KafkaDriver.from_url(url).create_topics(4, 1)
        found.append(await against_one("Kafka", url))
    return found


async def against_one(log: str, url: str) -> Figure:
    rates: dict[int, list[float]] = defaultdict(list)
    bare: dict[int, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for count in (1, 2):
            bare[count].append(await asyncio.to_thread(bare_rate, count))
            rates[count].append(await rate(url, count))
    one, two, bare_one, bare_two = (statistics.median(found[count]) for found in (rates, bare) for count in (1, 2))
    return Figure(
        f"{log}, steps of 5 ms of Python, worker --processes 2 against one",
        f"{two:,.0f} against {one:,.0f} steps/s",
        f"{bare_two:,.0f} against {bare_one:,.0f}/s, nothing but computing",
        f"{two / one:.2f} x",
        "at least 1.5 x",
        two >= 1.5 * one,
    )


def bare_rate(count: int) -> float:
    """The same computations per second in so many processes: a machine that others use gives less for the second one."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.map(compute_some, [1] * count, chunksize=1)
        began = time.perf_counter()
        pool.map(compute_some, [200] * count, chunksize=1)
        return 200 * count / (time.perf_counter() - began)


async def rate(url: str, count: int) -> float:
    """Steps per second, of as many runs in each partition."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stepfold.cli.app", "worker", "computing:client", "--url", url, "--processes", str(count)),
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with Client(url) as starter:
            async with Takeovers(starter.log) as watch:
                await watch.owned_by(count)
            by_partition: dict[int, list[str]] = {partition: [] for partition in range(starter.log.partitions)}
            while any(len(ids) < RUNS_A_PARTITION for ids in by_partition.values()):
                run_id = uuid.uuid4().hex
                by_partition[partition_of(run_id, starter.log.partitions)].append(run_id)
            ids = [run_id for some in by_partition.values() for run_id in some[:RUNS_A_PARTITION]]
            began = time.perf_counter()
            runs = [await starter.start_workflow("computing", run_id=run_id) for run_id in ids]
            await asyncio.gather(*(run.result() for run in runs))
            return len(runs) * STEPS / (time.perf_counter() - began)
    finally:
        worker.terminate()
        await worker.wait()
