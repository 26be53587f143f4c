"""Figures next to the ceiling of this machine, measured in the same run: `make bench`, or `python tests/bench sqlite memory`.

The ceiling is the same number of bare appends, each awaited until durable (and read back, on Kafka), and nothing else: 12
for a run of 10 steps. Machines differ and are noisy, so the ratio is what counts; both are printed.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self

import orjson
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from computing import processes
from figures import APPENDS, Figure, client_with_workflows, ended_run, plain_beside_async, runs, serving
from observed import observed
from rich.console import Console
from rich.table import Table
from scale import ended_history, open_runs, sleepers, step_among_others
from takeover import backlog, takeover

from stepfold import Client
from stepfold.core.fold import PartitionState, fold
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import Entry, Record, partition_of

ROUNDS = 3


# -- SQLite


def bare_sqlite(path: Path, transactions: int, batch: int) -> list[float]:
    """The seconds of each transaction of `batch` bare inserts, durable one by one."""
    value = b"x" * 150
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS r (place INTEGER PRIMARY KEY, timestamp INT, key TEXT, value BLOB)")
    key = uuid.uuid4().hex
    took: list[float] = []
    for _ in range(transactions):
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO r (timestamp, key, value) VALUES (0, ?, ?)", [(key, value)] * batch)
        connection.execute("COMMIT")
        took.append(time.perf_counter() - began)
    connection.close()
    return took


async def sqlite_one(folder: Path) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    client = client_with_workflows(SQLiteDriver(folder / "one.db"))
    async with serving(client):
        for _ in range(ROUNDS):
            raw = bare_sqlite(folder / "bare.db", 100 * APPENDS, 1)
            bare += [sum(raw[at : at + APPENDS]) for at in range(0, len(raw), APPENDS)]
            ours += (await runs(client, 100, 1))[1]
        plain = await plain_beside_async(client, "SQLite FULL, one at a time", 0.8, 100, 1, ROUNDS)
    mine, ceiling = statistics.median(ours), statistics.median(bare)
    case = "SQLite FULL, 10 no-op steps, one at a time, p50"
    ratio = f"{mine / ceiling:.2f} x"
    holds = mine <= 1.5 * ceiling
    return [Figure(case, f"{mine * 1000:.2f} ms", f"{ceiling * 1000:.2f} ms", ratio, "at most 1.5 x", holds), plain]


async def sqlite_many(folder: Path) -> list[Figure]:
    ours: list[float] = []
    bare: list[float] = []
    client = client_with_workflows(SQLiteDriver(folder / "many.db"))
    async with serving(client):
        for _ in range(ROUNDS):
            bare.append(64 / APPENDS / statistics.mean(bare_sqlite(folder / "bare.db", 1000, 64)))
            ours.append((await runs(client, 3200, 64))[0])
        plain = await plain_beside_async(client, "SQLite FULL, 64 at a time", 0.75, 1280, 64, ROUNDS)
    return [rate("SQLite FULL, 64 at a time", ours, bare, 0.3), plain]


def rate(case: str, ours: Sequence[float], bare: Sequence[float], wanted: float) -> Figure:
    mine, ceiling = statistics.median(ours), statistics.median(bare)
    return Figure(
        case,
        f"{mine:,.0f} runs/s",
        f"{ceiling:,.0f} runs/s",
        f"{mine / ceiling:.2f} x",
        f"at least {wanted} x",
        mine >= wanted * ceiling,
    )


async def sqlite_long(folder: Path) -> list[Figure]:
    took: dict[int, float] = {}
    driver = SQLiteDriver(folder / "long.db")
    client = client_with_workflows(driver)
    async with serving(client):
        await runs(client, 3, 1)
        for steps in (1_000, 10_000):
            times: list[float] = []
            for _ in range(ROUNDS):
                times.append((await runs_once(client, steps))[0])  # noqa: PERF401  # one after another
            took[steps] = statistics.median(times)
        per_step = await bytes_a_step(client, 5_000)
    bare = statistics.median(bare_sqlite(folder / "bare.db", 2_000, 1)) * 10_002
    growth = took[10_000] / took[1_000]
    return [
        Figure(
            "one run of 10,000 steps on SQLite",
            f"{took[10_000]:.2f} s",
            f"{bare:.2f} s",
            f"{took[10_000] / bare:.2f} x",
            "at most 3 s",
            took[10_000] <= 3,
        ),
        Figure("10,000 steps against 1,000", f"{growth:.1f} x", "", "", "at most 11 x", growth <= 11),
        Figure("memory a step of that run", f"{per_step:,.0f} B", "", "", "below 2 KiB", per_step < 2048),
    ]


async def runs_once(client: Client, steps: int) -> tuple[float, Any]:
    began = time.perf_counter()
    run = await client.start_workflow("steps", steps)
    result = await run.result()
    return time.perf_counter() - began, result


async def bytes_a_step(client: Client, steps: int) -> float:
    """What a run keeps in memory for each of its steps, while it waits for something after them."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    run = await client.start_workflow("holder", steps)
    while (await run.status()).state != "waiting":
        await asyncio.sleep(0.2)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await run.signal("end")
    await run.result()
    return (after - before) / steps


# -- fold and restart


async def fold_rate(folder: Path) -> Figure:
    records: list[Record] = []
    driver = SQLiteDriver(folder / "fold.db", partitions=1)
    await driver.open()
    claim = Entry("@claim", orjson.dumps({"type": "claim", "v": 1, "at": 0, "prev": -1, "owner": "bench", "nonce": "n"}))
    await driver.append(0, [claim])
    for _ in range(100):
        entries = [entry for _ in range(100) for entry in ended_run(uuid.uuid4().hex, 0, driver.now())]
        await driver.append(0, entries)
    rates: list[float] = []
    with_reading: list[float] = []
    for _ in range(ROUNDS):
        state = PartitionState()
        reader = driver.reader(0, 0)
        records.clear()
        began = time.perf_counter()
        while batch := await reader.read(5000):
            records += batch
        read_s = time.perf_counter() - began
        began = time.perf_counter()
        accepted = sum(fold(state, record) is not None for record in records)
        fold_s = time.perf_counter() - began
        assert accepted == len(records)
        rates.append(len(records) / fold_s)
        with_reading.append(len(records) / (read_s + fold_s))
    await driver.close()
    mine = statistics.median(rates)
    return Figure(
        "fold from the log",
        f"{mine:,.0f} events/s ({statistics.median(with_reading):,.0f} with reading SQLite)",
        "",
        "",
        "at least 200,000/s",
        mine >= 200_000,
    )


async def restart(folder: Path) -> Figure:
    path = folder / "restart.db"
    driver = SQLiteDriver(path)
    client = client_with_workflows(driver)
    async with client, client.worker() as worker:
        while not worker.owners or not worker.caught_up:
            await asyncio.sleep(0.01)
        for _ in range(840):
            ids = [uuid.uuid4().hex for _ in range(100)]
            by_partition: dict[int, list[Entry]] = {}
            for run_id in ids:
                partition = partition_of(run_id, driver.partitions)
                by_partition.setdefault(partition, []).extend(ended_run(run_id, worker.owners[partition].claim, driver.now()))
            await asyncio.gather(*(driver.append(partition, entries) for partition, entries in by_partition.items()))
        waiting = [await client.start_workflow("sleeper", None) for _ in range(1000)]
        while (await waiting[-1].status()).state != "waiting":
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
    times: list[float] = []
    for _ in range(ROUNDS):
        again = client_with_workflows(SQLiteDriver(path))
        began = time.perf_counter()
        async with serving(again) as worker:
            times.append(time.perf_counter() - began)
            assert sum(len(owner.state.runs) for owner in worker.owners.values() if owner.state is not None) == 1000
    mine = statistics.median(times)
    return Figure(
        "restart: 1,000 open runs after 1,000,000 events of ended ones", f"{mine:.2f} s", "", "", "at most 3 s", mine <= 3
    )


# -- memory


async def memory_rate(_folder: Path) -> list[Figure]:
    rates: list[float] = []
    for _ in range(ROUNDS):
        client = client_with_workflows(MemoryDriver())
        async with serving(client):
            per_second, _ = await runs(client, 64, 16, steps=1000)
            rates.append(per_second * 1000)
    mine = statistics.median(rates)
    client = client_with_workflows(MemoryDriver())
    async with serving(client):
        many = await plain_beside_async(client, "memory driver, 64 at a time", 0.75, 3200, 64, ROUNDS)
        one = await plain_beside_async(client, "memory driver, one at a time", 0.6, 500, 1, ROUNDS)
    return [Figure("memory driver", f"{mine:,.0f} steps/s", "", "", "at least 30,000/s", mine >= 30_000), many, one]


# -- Kafka


class BareLoop:
    """Closed loops over the plain aiokafka client: append, and go on when the record was read back."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self.producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=262_144)
        self.consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=500, fetch_min_bytes=1
        )
        self.topic = topic
        self.partitions = partitions
        self.waiting: dict[bytes, asyncio.Future[None]] = {}
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.producer.start()
        await self.consumer.start()
        places = [TopicPartition(self.topic, partition) for partition in range(self.partitions)]
        self.consumer.assign(places)
        await self.consumer.seek_to_end(*places)
        for place in places:
            await self.consumer.position(place)
        self.task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.consumer.stop()
        await self.producer.stop()

    async def _read(self) -> None:
        while True:
            for records in (await self.consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    future = self.waiting.pop(record.key, None)
                    if future is not None and not future.done():
                        future.set_result(None)

    async def append(self, partition: int, value: bytes) -> None:
        key = uuid.uuid4().bytes
        future = self.waiting[key] = asyncio.get_running_loop().create_future()
        await (await self.producer.send(self.topic, value, key=key, partition=partition))
        await future

    async def runs(self, count: int, at_a_time: int) -> tuple[float, list[float]]:
        """Runs of 12 appends per second, and the seconds of each append."""
        value = b"x" * 150
        took: list[float] = []

        async def some(number: int) -> None:
            for _ in range(count // at_a_time):
                for _ in range(APPENDS):
                    began = time.perf_counter()
                    await self.append(number % self.partitions, value)
                    took.append(time.perf_counter() - began)

        await self.append(0, value)
        began = time.perf_counter()
        await asyncio.gather(*(some(number) for number in range(at_a_time)))
        return len(took) / APPENDS / (time.perf_counter() - began), took


async def kafka(_folder: Path) -> list[Figure]:
    with LocalBroker() as broker:
        many: list[float] = []
        many_bare: list[float] = []
        one: list[float] = []
        one_bare: list[float] = []
        namespace = f"bench-{uuid.uuid4().hex[:8]}"
        driver = KafkaDriver(broker.bootstrap, namespace)
        bare = KafkaDriver(broker.bootstrap, f"{namespace}-bare")
        await driver.create_topics(4, 1)
        await bare.create_topics(4, 1)
        for _ in range(ROUNDS):
            async with BareLoop(broker.bootstrap, f"{namespace}-bare.history", 4) as loop:
                one_bare += (await loop.runs(50, 1))[1]
                many_bare.append((await loop.runs(1280, 64))[0])
            client = client_with_workflows(driver)
            async with serving(client):
                one += [took / APPENDS for took in (await runs(client, 50, 1))[1]]
                many.append((await runs(client, 1280, 64))[0])
        client = client_with_workflows(driver)
        async with serving(client):
            plain = await plain_beside_async(client, "Kafka, 4 partitions, 64 at a time", 0.75, 1280, 64, ROUNDS)
    mine, ceiling = statistics.median(one), statistics.median(one_bare)
    return [
        rate("Kafka, 4 partitions, 64 at a time", many, many_bare, 0.6),
        plain,
        Figure(
            "Kafka, one at a time, p50 per step",
            f"{mine * 1000:.2f} ms",
            f"{ceiling * 1000:.2f} ms",
            f"{mine / ceiling:.2f} x",
            "at most 1.0 x ack + read back",
            mine <= ceiling,
        ),
    ]


CASES: dict[str, Callable[[Path], Coroutine[Any, Any, Figure | list[Figure]]]] = {
    "sqlite-one": sqlite_one,
    "sqlite-many": sqlite_many,
    "kafka": kafka,
    "memory": memory_rate,
    "sqlite-long": sqlite_long,
    "fold": fold_rate,
    "restart": restart,
    "open-runs": open_runs,
    "ended-history": ended_history,
    "sleepers": sleepers,
    "step-among-others": step_among_others,
    "takeover": takeover,
    "backlog": backlog,
    "processes": processes,
    "observed": observed,
}

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ON_BOTH_LOOPS = ("sqlite-one", "sqlite-many", "kafka", "memory")


def main(wanted: Sequence[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [name for name in CASES if not wanted or any(name.startswith(word) for word in wanted)]
    if not chosen:
        console.print(f"no such case; there are {', '.join(CASES)}")
        raise SystemExit(2)
    table = Table("case", "loop", "measured", "ceiling", "ratio", "to reach", "", title=f"Python {sys.version.split()[0]}")
    for name in chosen:
        for loop, new_loop in LOOPS.items() if name in ON_BOTH_LOOPS else [("asyncio", LOOPS["asyncio"])]:
            console.print(f"[dim]{name} on {loop} …[/]")
            with (
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
                asyncio.Runner(loop_factory=new_loop) as runner,
            ):
                found = runner.run(CASES[name](Path(folder)))
            for case, *told, holds in found if isinstance(found, list) else [found]:
                table.add_row(case, loop, *told, "holds" if holds else "falls short")
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
