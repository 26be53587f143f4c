"""This engine beside the one of another commit: `make bench AGAINST=v0.1.0`, or `python tests/bench/against.py COMMIT [ROW …]`.

Each row is a process of its own that does the same with either engine, in turns; what counts is the CPU time of the best of
each, so other load on the machine matters little. At least 0.97 x of the speed of before is wanted of each row. An engine is
measured by the rows of its own commit, which know where its modules are: a row that does other work since then says nothing.
"""

from __future__ import annotations

import asyncio
import gc
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from figures import client_with_workflows, ended_run, runs, serving
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from stepfold import Client, Context, Step
from stepfold.authoring.step import StepPorts
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.drivers.kafka import KafkaDriver
from stepfold.log import CLAIM_KEY, Record
from stepfold.replay.execution import Execution

ROUNDS = 6
WANTED = 0.97
ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "drivers", "projections")
BENCH = "tests/bench"


@contextmanager
def measured() -> Generator[None]:
    """Prints the CPU seconds of what is inside."""
    gc.collect()
    began = time.process_time()
    yield
    print(time.process_time() - began)


def history(count: int) -> list[Record]:
    """Runs that have been and gone, in one partition."""
    claim = {"type": "claim", "v": 1, "at": 0, "prev": -1, "owner": "a", "nonce": "n"}
    records = [Record(0, 0, CLAIM_KEY, orjson.dumps(claim))]
    for number in range(count):
        for entry in ended_run(f"run-{number}", 0, number):
            records.append(Record(len(records), number, *entry))
    return records


async def folding() -> None:
    records = history(12_000)
    state = PartitionState()
    with measured():
        for record in records:
            fold(state, record)


async def replaying() -> None:
    """The code of one run over a long journal."""
    steps = 40_000
    records = history(0)
    records += (Record(n, n, *entry) for n, entry in enumerate(ended_run("long", 0, 1, steps)[:-1], 1))
    state = PartitionState()
    run: RunState | None = None
    for record in records:
        change = fold(state, record)
        run = change.run if change is not None else None
    assert run is not None and len(run.journal) == steps
    client = Client("memory://")

    @client.workflow(id="steps")
    async def body(ctx: Context[int], step: Step) -> None:
        for _ in range(ctx.input.data):
            await step.run("step", asyncio.sleep, 0)

    async def send_signal(*_: object) -> None: ...

    ports = StepPorts(lambda step: None, send_signal)
    with measured():
        execution = Execution(run, lambda execution: body.start(execution, ports, lambda run_id: None))
        execution.advance()
        assert execution.outcome is not None
    execution.close()


async def in_memory() -> None:
    client = client_with_workflows(MemoryDriver())
    async with serving(client):
        await runs(client, 200, 64)
        with measured():
            await runs(client, 3_200, 64)


async def one_at_a_time() -> None:
    client = client_with_workflows(MemoryDriver())
    async with serving(client):
        await runs(client, 50, 1)
        with measured():
            await runs(client, 2_000, 1)


async def on_sqlite() -> None:
    with tempfile.TemporaryDirectory() as folder:
        client = client_with_workflows(SQLiteDriver(f"{folder}/log.db", durability="normal"))
        async with serving(client):
            await runs(client, 200, 64)
            with measured():
                await runs(client, 2_560, 64)


async def on_kafka() -> None:
    driver = KafkaDriver(os.environ["STEPFOLD_BENCH_KAFKA"], f"bench-{time.time_ns()}")
    await driver.create_topics(4, 1)
    client = client_with_workflows(driver)
    async with serving(client):
        await runs(client, 128, 64)
        with measured():
            await runs(client, 1_280, 64)


class Item(BaseModel):
    name: str
    price: float
    tags: list[str]


class Basket(BaseModel):
    number: int
    items: list[Item]


BASKET = Basket(number=7, items=[Item(name=f"item {n}", price=n / 4, tags=["a", "b"]) for n in range(3)])


def results(value: Any, annotation: Any, *, by_value: bool) -> Callable[[], Coroutine[Any, Any, None]]:
    """Steps that return a value; by value: that are also given it."""

    async def measure() -> None:
        client = Client(driver=MemoryDriver())

        async def made() -> Any:
            return value

        async def passed_on(given: Any) -> Any:
            return given

        made.__annotations__["return"] = passed_on.__annotations__["return"] = annotation

        @client.workflow(id="results")
        async def body(ctx: Context[int], step: Step) -> None:
            given = value
            for _ in range(ctx.input.data):
                given = await (step.run("fill", passed_on, given) if by_value else step.run("fill", made))

        async def some(count: int) -> None:
            for _ in range(count):
                await (await client.start_workflow(body, 20)).result()

        async with serving(client):
            await some(20)
            with measured():
                await asyncio.gather(*(some(50) for _ in range(16)))

    return measure


async def waiting() -> None:
    """Sleeps that end at once and signals that are there."""
    client = Client(driver=MemoryDriver())

    @client.workflow(id="waits")
    async def body(ctx: Context[int], step: Step) -> None:
        for _ in range(ctx.input.data):
            await step.sleep("nap", 0)
            await step.wait_for_signal("go", signal="go", timeout="1h")

    async def some(count: int) -> None:
        for _ in range(count):
            run = await client.start_workflow(body, 5)
            for _ in range(5):
                await run.signal("go")
            await run.result()

    async with serving(client):
        await some(5)
        with measured():
            await asyncio.gather(*(some(20) for _ in range(16)))


async def recovering() -> None:
    """A worker that takes over runs that sleep."""
    sleepers = 10_000
    with tempfile.TemporaryDirectory() as folder:
        log = SQLiteDriver(f"{folder}/log.db", durability="normal")
        client = client_with_workflows(log)
        async with serving(client):
            for _ in range(sleepers // 500):
                await asyncio.gather(*(client.start_workflow("sleeper") for _ in range(500)))
            while sum([(await log.bounds(partition))[1] for partition in range(log.partitions)]) < 3 * sleepers:
                await asyncio.sleep(0.05)
        client = client_with_workflows(SQLiteDriver(f"{folder}/log.db", durability="normal"))
        with measured():
            async with serving(client):
                pass


ROWS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "fold": folding,
    "replay": replaying,
    "memory, 64 at a time": in_memory,
    "memory, one at a time": one_at_a_time,
    "SQLite, 64 at a time": on_sqlite,
    "Kafka, 64 at a time": on_kafka,
    "typed results": results(BASKET, Basket, by_value=False),
    "plain results": results(BASKET.model_dump(), Any, by_value=False),
    "typed results and arguments": results(BASKET, Basket, by_value=True),
    "plain results and arguments": results(BASKET.model_dump(), Any, by_value=True),
    "sleeps and signals": waiting,
    "recovery of 10,000 sleepers": recovering,
}


def unpack(commit: str | None, folder: Path) -> Path:
    """The package of a commit, or of the working tree, as it is imported."""
    if commit is None:
        for name in FOLDERS:
            (folder / name).symlink_to(ROOT / name)
        package = folder / "package" / "stepfold"
        package.mkdir(parents=True)
        for path in (ROOT / "engine").iterdir():
            (package / path.name).symlink_to(path)
        for name in FOLDERS[1:]:
            (package / name).symlink_to(ROOT / name)
        (folder / BENCH).parent.mkdir()
        (folder / BENCH).symlink_to(ROOT / BENCH)
        return folder / "package"
    data = subprocess.run(["git", "archive", commit, *FOLDERS, BENCH], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "package").mkdir()
    (folder / "package/stepfold").symlink_to(folder / "engine")
    for name in FOLDERS[1:]:
        (folder / "engine" / name).symlink_to(folder / name)
    return folder / "package"


def seconds(package: Path, row: str) -> float:
    here = package.parent / BENCH
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(here)]), "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(here / "against.py"), "--row", row]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main(commit: str, wanted: list[str]) -> int:
    from stepfold.drivers.broker import LocalBroker

    console = Console(width=None if sys.stdout.isatty() else 120)
    chosen = [row for row in ROWS if not wanted or any(row.startswith(word) for word in wanted)]
    table = Table("CPU time", commit, "now", "speed", f"at least {WANTED} x", title=f"Python {sys.version.split()[0]}")
    short = 0
    with tempfile.TemporaryDirectory() as name, LocalBroker() as broker:
        os.environ["STEPFOLD_BENCH_KAFKA"] = broker.bootstrap
        engines: list[Path] = []
        for label, which in (("before", commit), ("now", None)):
            folder = Path(name) / label
            folder.mkdir()
            engines.append(unpack(which, folder))
        for row in chosen:
            console.print(f"[dim]{row} …[/]")
            took = [[seconds(engine, row) for engine in engines] for _ in range(ROUNDS)]
            before, now = (min(each) for each in zip(*took, strict=True))
            short += before / now < WANTED
            verdict = "holds" if before / now >= WANTED else "falls short"
            table.add_row(row, f"{before:.3f} s", f"{now:.3f} s", f"{before / now:.2f} x", verdict)
    console.print(table)
    return short


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        asyncio.run(ROWS[sys.argv[2]]())
    elif len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    else:
        sys.exit(min(main(sys.argv[1], sys.argv[2:]), 1))
