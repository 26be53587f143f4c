"""What a worker that dies or leaves costs, and a backlog, on Kafka."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Self

import orjson
from figures import Figure, client_with_workflows
from scale import PROGRAMS, child

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import CLAIM_KEY, Log


async def backlog(_folder: Path, count: int = 100_000) -> list[Figure]:
    """Runs that were started while no worker was there."""
    with LocalBroker() as broker:
        url = f"kafka://{broker.bootstrap}/bench-{uuid.uuid4().hex[:8]}"
        await KafkaDriver.from_url(url).create_topics(4, 1)
        found = await child("backlog", url, count)
    share = found["drained"] / found["steady"]
    return [
        Figure(
            f"backlog of {count:,} starts on Kafka",
            f"{found['drained']:,.0f} runs/s",
            f"{found['steady']:,.0f} runs/s, 64 at a time",
            f"{share:.2f} x",
            "at least 0.8 x",
            share >= 0.8,
        ),
        Figure(
            "memory meanwhile",
            f"at most {found['peak_mb']:.0f} MB",
            f"{found['before_mb']:.0f} MB before",
            "",
            "at most 400 MB",
            found["peak_mb"] <= 400,
        ),
    ]


class Takeovers:
    """Who owns each partition, and since when its runs go on under that claim, by the log's time."""

    def __init__(self, driver: Log) -> None:
        self.owners: dict[int, str] = {}
        self.going: dict[int, int] = {}
        self._driver = driver
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(partition)) for partition in range(self._driver.partitions)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, partition: int) -> None:
        reader = self._driver.reader(partition, 0)
        claim = -1
        while True:
            for record in await reader.read(1_000, None):
                event = orjson.loads(record.value)
                if record.key == CLAIM_KEY and event["prev"] == claim:
                    claim = record.offset
                    self.owners[partition] = event["owner"] or ""
                    self.going.pop(partition, None)
                elif event.get("claim") == claim:
                    self.going.setdefault(partition, record.timestamp)

    def of(self, pid: int) -> list[int]:
        """The partitions of a process whose runs go on."""
        return [partition for partition in self.going if f"-{pid}-" in self.owners[partition]]

    async def shared(self, workers: list[asyncio.subprocess.Process]) -> None:
        """Until all partitions have long been going on, each worker with a share."""
        shares: list[list[int]] = []
        unchanged = 0
        while unchanged < 20:
            before, shares = shares, [self.of(worker.pid) for worker in workers]
            complete = all(shares) and sum(map(len, shares)) == self._driver.partitions
            unchanged = unchanged + 1 if complete and shares == before else 0
            await asyncio.sleep(0.1)

    async def owned_by(self, count: int) -> None:
        """Until so many have had all partitions for two seconds."""
        owners: dict[int, str] = {}
        unchanged = 0
        while unchanged < 20:
            before, owners = owners, dict(self.owners)
            complete = len(owners) == self._driver.partitions and all(owners.values()) and len(set(owners.values())) == count
            unchanged = unchanged + 1 if complete and owners == before else 0
            await asyncio.sleep(0.1)


async def takeover(_folder: Path) -> list[Figure]:
    """One of two workers is killed, then one is told to stop; how long its runs stand still, by the broker's clock."""
    session_s = 6
    killed: list[float] = []
    stopped: list[float] = []
    with LocalBroker() as broker:
        url = f"kafka://{broker.bootstrap}/bench-{uuid.uuid4().hex[:8]}"
        await KafkaDriver.from_url(url).create_topics(4, 1)
        url += f"?session_timeout_s={session_s}"
        driver = KafkaDriver.from_url(url)
        client = client_with_workflows(driver)
        workers = [await start_worker(url), await start_worker(url)]
        try:
            async with client, Takeovers(driver) as watch:
                for _ in range(40):
                    await client.start_workflow("ticking", 100_000)
                for end, pauses in ((signal.SIGKILL, killed), (signal.SIGTERM, stopped)) * 2:
                    await watch.shared(workers)
                    leaver = workers.pop(0)
                    partitions = watch.of(leaver.pid)
                    began = time.time()
                    leaver.send_signal(end)
                    while not set(partitions) <= set(watch.of(workers[0].pid)):
                        await asyncio.sleep(0.05)
                    pauses.append(max(watch.going[partition] for partition in partitions) / 1000 - began)
                    await leaver.wait()
                    workers.append(await start_worker(url))
        finally:
            for process in workers:
                process.kill()
                await process.wait()
    return [
        Figure(
            "SIGKILL of one of two Kafka workers, to the first event of its runs",
            f"{max(killed):.2f} s",
            f"session time-out {session_s} s",
            "",
            "session time-out + 2 s at most",
            max(killed) <= session_s + 2,
        ),
        Figure("clean stop of one of two, the same", f"{max(stopped):.2f} s", "", "", "at most 1 s", max(stopped) <= 1),
    ]


async def start_worker(url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, str(PROGRAMS), "worker", url)
