"""Processes that are measured, most of them from within: the last line that one prints is what it found, as JSON.

python programs.py sleepers PATH FIRST_DUE_MS BEFORE_S COUNT    a worker on a SQLite file, whose clock reaches
                                                                FIRST_DUE_MS after BEFORE_S, when the first of COUNT
                                                                runs of it are due
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from figures import client_with_workflows, runs, serving

from stepfold.drivers import SQLiteDriver
from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import Log


def memory_mb() -> tuple[float, float]:
    """What this process takes now, and what it has taken at most."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


async def ends(log: Log) -> list[int]:
    return [(await log.bounds(partition))[1] for partition in range(log.partitions)]


async def lateness_ms(log: Log, starts: list[int]) -> list[int]:
    """By how much the sleeps that ended since then were late, by the log's time of their records."""
    late: list[int] = []
    for partition, start in enumerate(starts):
        reader = log.reader(partition, start)
        woken: dict[str, int] = {}
        while records := await reader.read(5_000):
            woken |= {record.key: record.timestamp for record in records if b'"sleep-completed"' in record.value}
        scheduled = [record for record in await log.find(partition, woken) if b'"sleep-scheduled"' in record.value]
        late += [woken[record.key] - orjson.loads(record.value)["wake_at"] for record in scheduled]
        await reader.close()
    return late


async def sleepers(path: str, first_due: str, before_s: str, count: str) -> Mapping[str, Any]:
    ahead = int(first_due) - int((time.time() + float(before_s)) * 1000)
    driver = SQLiteDriver(path, clock=lambda: time.time_ns() // 1_000_000 + ahead)
    client = client_with_workflows(driver)
    began = time.perf_counter()
    async with serving(client) as worker:
        recovered_s = time.perf_counter() - began
        states = [owner.state for owner in worker.owners.values() if owner.state is not None]
        recovered = sum(len(state.runs) for state in states)
        recovered_mb, _ = memory_mb()
        starts = await ends(driver)
        while driver.now() < int(first_due):
            await asyncio.sleep(0.1)
        cpu_s = time.process_time()
        while sum(len(state.runs) for state in states) > recovered - int(count):
            await asyncio.sleep(0.5)
        cpu_s = time.process_time() - cpu_s
        _, peak_mb = memory_mb()
        took_s = (driver.now() - int(first_due)) / 1000
        late = await lateness_ms(driver, starts)
    return {
        "recovered": recovered,
        "recovered_s": recovered_s,
        "recovered_mb": recovered_mb,
        "peak_mb": peak_mb,
        "woken": len(late),
        "woken_per_s": len(late) / took_s,
        "cores": cpu_s / took_s,
        "early": sum(ms < 0 for ms in late),
        "p50_ms": statistics.median(late),
        "p99_ms": statistics.quantiles(late, n=100)[98],
    }


async def worker(url: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with serving(client_with_workflows(KafkaDriver.from_url(url))):
        await ended.wait()


async def backlog(url: str, count: str) -> Mapping[str, Any]:
    driver = KafkaDriver.from_url(url)
    client = client_with_workflows(driver)
    async with serving(client):
        steady, _ = await runs(client, 6_400, 64, steps=1)
    async with client:
        for _ in range(int(count) // 500):
            await asyncio.gather(*(client.start_workflow("steps", 1) for _ in range(500)))
    before_mb, _ = memory_mb()
    began = time.perf_counter()
    async with client, client.worker() as worker:
        left = int(count)
        while not worker.owners or not worker.caught_up or left:
            await asyncio.sleep(0.1)
            left = sum(len(owner.state.runs) for owner in worker.owners.values() if owner.state is not None)
        took_s = time.perf_counter() - began
    _, peak_mb = memory_mb()
    return {"steady": steady, "drained": int(count) / took_s, "before_mb": before_mb, "peak_mb": peak_mb}


PROGRAMS = {"sleepers": sleepers, "worker": worker, "backlog": backlog}

if __name__ == "__main__":
    found = asyncio.run(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
    if found is not None:
        print(orjson.dumps(found).decode())
