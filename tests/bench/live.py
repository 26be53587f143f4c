"""The dashboard while the log grows: `.venv/bin/python tests/bench/live.py [browser|pages|past|feed|dev] [sqlite|kafka]`.

The server is `stepfold serve` in a process of its own, a page is open in Chromium or as a stream, and this process writes records
as a worker would. Figures are of wall-clock time, in ms, and each line ends with the load of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Any

import httpx
from past import Past
from playwright.async_api import async_playwright

from stepfold import Client
from stepfold.client.past import Past as RunPast
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.http.pasts import Pasts
from stepfold.log import Entry, Log
from stepfold.projections import ActionsProjection, Batch, Lag, ProjectionRunner, RunsProjection, StepsProjection

STEPFOLD = Path(sys.executable).parent / "stepfold"
RUNS = 40
CHANGED = """() => { window.changed = {};
  new MutationObserver(() => { for (const row of document.querySelectorAll('tr[data-key]')) {
    const steps = row.querySelector('td[data-label=steps]')?.textContent.trim();
    const key = row.dataset.key + ' ' + steps;
    if (!(key in window.changed)) window.changed[key] = Date.now();
  } }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true}); }"""


def show(title: str, value: str) -> None:
    print(f"{title:70} {value:>30}   load {os.getloadavg()[0]:.1f}", flush=True)


def p(took: Sequence[float], part: float) -> float:
    return sorted(took)[min(int(len(took) * part), len(took) - 1)]


@contextlib.contextmanager
def server(url: str, folder: str) -> Generator[tuple[str, int]]:
    """The address and process id of `stepfold serve`."""
    command = [STEPFOLD, "serve", "--port", "0", "--url", url, "--database", f"sqlite:///{folder}/projections.db"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=folder, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if " at http://" in line:
                    yield line.split(" at ")[1].split()[0].rstrip("."), process.pid
                    return
            raise AssertionError("the server has not started")
        finally:
            process.send_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def log_of(kind: str, folder: str) -> AsyncGenerator[tuple[Log, str]]:
    if kind == "sqlite":
        url = f"sqlite:///{folder}/log.db?partitions=1"
        log = Client(url).log
        await log.open()
        yield log, url
        await log.close()
        return
    with LocalBroker() as broker:
        driver = KafkaDriver(broker.bootstrap, f"bench-{uuid.uuid4().hex[:8]}")
        await driver.create_topics(1, 1)
        await driver.open()
        yield driver, driver.url
        await driver.close()


class Writer:
    """Runs whose steps complete one after another."""

    def __init__(self, log: Log, runs: int) -> None:
        self.past = Past(log)
        self.ids = [f"run-{number:04}" for number in range(runs)]
        self.done = dict.fromkeys(self.ids, 0)

    async def begin(self) -> None:
        await self.past.claim()
        for run_id in self.ids:
            await self.past.write([self.past.started(run_id, "orders", {"customer": run_id})])

    def step(self, run_id: str) -> Entry:
        number = self.done[run_id] = self.done[run_id] + 1
        return self.past.event(run_id, "step-completed", step_id=f"step-{number}", attempt=1, result="ok")

    async def noise(self, rate: int, ids: Sequence[str]) -> None:
        """So many events a second, in batches of 100 ms."""
        due = time.perf_counter()
        while True:
            await self.past.write([self.step(random.choice(ids)) for _ in range(rate // 10)])
            due += 0.1
            await asyncio.sleep(max(0, due - time.perf_counter()))


async def browser(kind: str) -> None:
    """From an event that is appended to its row in the browser."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium")
        with tempfile.TemporaryDirectory() as folder:
            async with log_of(kind, folder) as (log, url):
                writer = Writer(log, RUNS)
                await writer.begin()
                with server(url, folder) as (address, _):
                    await _until_listed(address, RUNS)
                    page = await chromium.new_page()
                    await page.goto(address)
                    await page.evaluate(CHANGED)
                    await asyncio.sleep(2)
                    for rate in (1, 200):
                        beside = asyncio.create_task(writer.noise(200, writer.ids[20:])) if rate > 1 else None
                        at: dict[str, float] = {}
                        for number in range(25):
                            run_id = writer.ids[number % 20]
                            await writer.past.write([writer.step(run_id)])
                            at[f"{run_id} {writer.done[run_id]}"] = time.time() * 1000
                            await asyncio.sleep(1 + random.random() / 5)
                        await asyncio.sleep(2)
                        if beside is not None:
                            beside.cancel()
                        seen: dict[str, float] = await page.evaluate("() => window.changed")
                        took = [max(seen[key] - when, 0) for key, when in at.items() if key in seen]
                        words = f"p50 {statistics.median(took):.0f} p95 {p(took, 0.95):.0f} ms ({len(took)} of {len(at)})"
                        show(f"{kind}: event to row in Chromium, {rate} events/s", words)
        await chromium.close()


async def _until_listed(address: str, runs: int) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        while (await client.get(f"{address}/v1/runs/count")).json()["count"] < runs:
            await asyncio.sleep(0.1)


def _used(pid: int) -> tuple[float, float]:
    """The CPU time of a process in seconds, and its memory in MB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


PAGES, SECONDS = 200, 20


async def pages(kind: str) -> None:
    """Many open pages, 100 events/s: 150 lists with 15 filters, and 50 runs."""
    with tempfile.TemporaryDirectory() as folder:
        async with log_of(kind, folder) as (log, url):
            writer = Writer(log, 100)
            await writer.begin()
            with server(url, folder) as (address, pid):
                await _until_listed(address, 100)
                times: dict[int, float] = {}
                behind: list[float] = []
                fragments = 0

                async def one(number: int, client: httpx.AsyncClient) -> None:
                    nonlocal fragments
                    path = f"/?q=run-00{number % 15:02}" if number % 15 else "/"
                    path = f"/runs/{writer.ids[number % 50]}" if number % 4 == 3 else path
                    known = 0
                    async with client.stream("GET", address + path, headers={"Accept": "text/event-stream"}) as answer:
                        async for chunk in answer.aiter_raw():
                            fragments += chunk.count(b"retry:")
                            found = re.findall(rb"log position 0:(\d+)", chunk)
                            if found:
                                shown = int(found[-1])
                                if known in times and number % 4 != 3:  # a run has its own pace
                                    behind.append((time.perf_counter() - times[known]) * 1000)
                                known = shown

                async def append() -> None:
                    due = time.perf_counter()
                    while True:
                        await writer.past.write([writer.step(random.choice(writer.ids))])
                        times[(await log.bounds(0))[1] - 1] = time.perf_counter()
                        due += 0.01
                        await asyncio.sleep(max(0, due - time.perf_counter()))

                limits = httpx.Limits(max_connections=None)
                async with httpx.AsyncClient(timeout=60, limits=limits) as client, asyncio.TaskGroup() as tasks:
                    made = [tasks.create_task(one(number, client)) for number in range(PAGES)]
                    await asyncio.sleep(8)
                    made.append(tasks.create_task(append()))
                    await asyncio.sleep(3)
                    behind.clear()
                    fragments = 0
                    (cpu, _), began, events = _used(pid), time.perf_counter(), len(times)
                    await asyncio.sleep(SECONDS)
                    took = time.perf_counter() - began
                    rate = (len(times) - events) / took
                    cores, memory = (_used(pid)[0] - cpu) / took, _used(pid)[1]
                    for task in made:
                        task.cancel()
                words = f"{cores:.2f} cores, {memory:.0f} MB, behind p99 {p(behind, 0.99):.0f}, at most {max(behind):.0f} ms"
                show(f"{kind}: {PAGES} open pages, {rate:.0f} events/s, {fragments / took:.0f} fragments/s", words)


async def past(kind: str) -> None:
    """A run of 1,000 events as it was in its middle; on Kafka in a partition of 300,000 records."""
    with tempfile.TemporaryDirectory() as folder:
        async with log_of(kind, folder) as (log, _):
            writer = Writer(log, 1)
            await writer.begin()
            if kind == "kafka":
                others = [f"other-{number}" for number in range(1000)]
                for begin in range(0, 300_000, 5000):
                    await log.append(
                        0, [Entry(others[number % 1000], b'{"type":"none"}') for number in range(begin, begin + 5000)]
                    )
            for _ in range(10):
                await writer.past.write([writer.step(writer.ids[0]) for _ in range(100)])
            known = Pasts(log)
            offsets = [record.offset for record in (await known.read(writer.ids[0])).records]
            for title in ("cold", "warm"):
                took: list[float] = []
                for _ in range(30):
                    if title == "cold":
                        known = Pasts(log)
                    began = time.perf_counter()
                    found: RunPast = await known.read(writer.ids[0])
                    found.at(random.choice(offsets[10:]), log).story(0, 200)
                    took.append((time.perf_counter() - began) * 1000)
                show(f"{kind}: ?at= of 1,000 events, {title}", f"p50 {statistics.median(took):.1f} p95 {p(took, 0.95):.1f} ms")


class _Noting(StepsProjection):
    """The tables of steps, which also notes the times of the log's records."""

    def __init__(self) -> None:
        self.noted: list[int] = []

    def gather(self, batch: Batch) -> Any:
        gathered = super().gather(batch)
        take, noted = gathered.take, self.noted

        def noting(change: Any) -> None:
            noted.append(change.timestamp)
            take(change)

        gathered.take = noting
        return gathered


async def feed(_kind: str) -> None:
    """The tables that all servers keep: how many events a second, and how far behind a steady writer."""
    with tempfile.TemporaryDirectory() as folder:
        async with log_of("sqlite", folder) as (log, _url):
            source = Writer(log, 4000)
            await source.past.claim()
            for begin in range(0, 4000, 100):
                ids = source.ids[begin : begin + 100]
                await source.past.write([source.past.started(run_id, "orders", {"customer": run_id}) for run_id in ids])
                for _ in range(10):
                    await source.past.write([source.step(run_id) for run_id in ids])
                await source.past.write([source.past.event(run_id, "completed", result="ok") for run_id in ids])
            began, cpu = time.perf_counter(), time.process_time()
            async with ProjectionRunner(
                log, [RunsProjection(), StepsProjection(), ActionsProjection()], database=f"sqlite:///{folder}/t.db"
            ) as runner:
                await runner.catch_up()
                took, busy = time.perf_counter() - began, time.process_time() - cpu
            show("feed from SQLite with all tables", f"{48_000 / took:,.0f} events/s ({48_000 / busy:,.0f} of CPU time)")
        rate = int(os.environ.get("RATE", "10000"))
        late: list[float] = []
        async with log_of("sqlite", tempfile.mkdtemp(dir=folder)) as (log, url):
            noting = _Noting()

            def applied(lag: Lag) -> None:
                if lag.projection == noting.name:
                    now = time.time() * 1000
                    late.extend(now - at for at in noting.noted)
                    noting.noted.clear()

            async with ProjectionRunner(
                log, [RunsProjection(), noting, ActionsProjection()], database=f"sqlite:///{folder}/u.db", on_progress=applied
            ):
                writing = await asyncio.create_subprocess_exec(sys.executable, __file__, "write", url, str(rate))
                await asyncio.sleep(15)
                writing.terminate()
                await writing.wait()
        show(
            f"lag behind a writer of {len(late) / 14:,.0f} events/s",
            f"p50 {statistics.median(late):.0f} p99 {p(late, 0.99):.0f} ms",
        )


async def write(url: str, rate: str) -> None:
    """A worker's records, at a steady rate."""
    log = Client(url).log
    await log.open()
    writer = Writer(log, 0)
    await writer.past.claim()
    due, turn = time.perf_counter(), 0
    while True:
        turn += 1
        ids = [f"run-{turn}-{nth}" for nth in range(int(rate) // 1200)]
        for run_id in ids:
            writer.done[run_id] = 0
        for made in ("started", *["step"] * 10, "completed"):
            if made == "step":
                entries = [writer.step(run_id) for run_id in ids]
            elif made == "started":
                entries = [writer.past.started(run_id, "orders", {"customer": run_id}) for run_id in ids]
            else:
                entries = [writer.past.event(run_id, "completed", result="ok") for run_id in ids]
            await writer.past.write(entries)
            due += 0.01 / 12
            if (left_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)


SHOP = """
from stepfold import Client, Context, Step

client = Client("sqlite:///log.db")

@client.workflow(id="ten")
async def ten(ctx: Context[int], step: Step) -> int:
    for number in range(10):
        await step.run(f"step-{number}", lambda: number)
    return 1
"""


async def dev(_kind: str) -> None:
    """Runs a second of the worker that `stepfold dev` starts, with a page open and without, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shop.py").write_text(SHOP)
        client = Client(f"sqlite:///{folder}/log.db")
        command = [STEPFOLD, "dev", "shop:client", "--port", "8377", "--url", f"sqlite:///{folder}/log.db"]
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rates: dict[bool, list[float]] = {True: [], False: []}
        try:
            async with client, httpx.AsyncClient(timeout=60) as http:
                await (await client.start_workflow("ten", 1)).result()
                for turn in range(8):
                    opened = None if turn % 2 == 0 else asyncio.create_task(_open(http, "http://127.0.0.1:8377/"))
                    await asyncio.sleep(0.5)
                    rates[opened is not None].append(await _rate(client, 400))
                    if opened is not None:
                        opened.cancel()
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
        without, beside = statistics.median(rates[False]), statistics.median(rates[True])
        show("dev: runs/s without a page, with one", f"{without:.0f}, {beside:.0f}: {beside / without:.2f} x")


async def _open(http: httpx.AsyncClient, address: str) -> None:
    async with http.stream("GET", address, headers={"Accept": "text/event-stream"}) as answer:
        async for _ in answer.aiter_raw():
            pass


async def _rate(client: Client, count: int) -> float:
    began = time.perf_counter()
    places = asyncio.Semaphore(64)

    async def one() -> None:
        async with places:
            await (await client.start_workflow("ten", 1)).result()

    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    name, *more = sys.argv[1:]
    asyncio.run(
        {"browser": browser, "pages": pages, "past": past, "feed": feed, "dev": dev, "write": write}[name](*(more or ["sqlite"]))
    )
