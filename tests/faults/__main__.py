"""`make torture MINUTES=30`: the storm of test_kills, for hours if need be. `python tests/faults --help` says what may be chosen.

Each log has its minutes, in rounds of a hundred kills, each on a fresh log with a seed of its own: about 60 kills a minute on a
machine with two cores. At every fiftieth the Kafka broker is killed, too, and started again, if it is our own. On Kafka a backlog
of up to 100,000 starts comes last. What a round that broke a promise has left behind is kept and named, and the command fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

from backlog import drain
from fleet import Fleet
from rawlog import Audit, Counts, History, KafkaHistory, SQLiteHistory
from storm import ON_KAFKA, ON_SQLITE, Weather, storm

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver

KILLS_PER_ROUND = 100
TELL_EVERY_S = 5.0


class Progress:
    """What has happened on one log, over all rounds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds = self.kills = self.pauses = self.sent_home = self.restarts = 0
        self.counts = Counts()
        self.broken: list[str] = []  # by round that failed, where its evidence is
        self._began = self._told = time.monotonic()

    def line(self, fleet: Fleet, audit: Audit) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return (
            f"{self.name:6} {minutes:3}:{seconds:02}  {self.kills + fleet.kills:5} kills  {self.pauses + fleet.pauses:4} pauses"
            f"  {self.sent_home + fleet.sent_home:4} sent home  {self.restarts:3} restarts"
            f"  {self.counts.runs + audit.counts.runs:6} runs  {self.counts.records + audit.counts.records:8} records"
            f"  {len(self.broken) + len(audit.violations)} violations"
        )

    def tell(self, fleet: Fleet, audit: Audit) -> None:
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            print(self.line(fleet, audit), flush=True)

    def add(self, fleet: Fleet, counts: Counts | None) -> None:
        self.rounds += 1
        self.kills += fleet.kills
        self.pauses += fleet.pauses
        self.sent_home += fleet.sent_home
        if counts is not None:
            self.counts += counts

    def verdict(self) -> str:
        words = f"{len(self.broken)} ROUNDS BROKE A PROMISE" if self.broken else "every promise held"
        evidence = "".join(f"\n    evidence: {folder}" for folder in self.broken)
        return (
            f"{self.name}: {words}. {self.rounds} rounds, {self.kills} kills, {self.pauses} pauses, {self.sent_home} sent home, "
            f"{self.restarts} restarts of the log\n"
            f"    {self.counts}{evidence}"
        )


@asynccontextmanager
async def on_sqlite(folder: Path) -> AsyncGenerator[tuple[str, History]]:
    """The URL of a fresh log, and its raw history."""
    yield f"sqlite:///{folder}/log.db", SQLiteHistory(folder / "log.db")


@asynccontextmanager
async def on_kafka(bootstrap: str, session_timeout_s: float = 1) -> AsyncGenerator[tuple[str, History]]:
    url = f"kafka://{bootstrap}/torture-{uuid4().hex[:12]}"
    await KafkaDriver.from_url(url).create_topics(4, 1)
    async with KafkaHistory(url) as history:
        yield f"{url}?session_timeout_s={session_timeout_s:g}", history


async def rounds(
    name: str,
    fresh: Callable[[Path], AbstractAsyncContextManager[tuple[str, History]]],
    weather: Weather,
    minutes: float,
    seeds: random.Random,
    broker: LocalBroker | None = None,
) -> Progress:
    """Storms on fresh logs until the minutes are over. A `broker` is killed and started again now and then."""
    progress = Progress(name)

    async def restart() -> None:
        assert broker is not None
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        progress.restarts += 1

    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        folder = Path(tempfile.mkdtemp(prefix=f"stepfold-torture-{name}-"))
        seed = seeds.randrange(1_000_000)
        counts = None
        async with fresh(folder) as (url, history):
            fleet = Fleet(url, folder, seed)
            try:
                with fleet:
                    counts = await storm(
                        fleet,
                        history,
                        weather,
                        lambda fleet=fleet: fleet.kills >= KILLS_PER_ROUND or time.monotonic() > until,
                        lambda audit, fleet=fleet: progress.tell(fleet, audit),
                        None if broker is None else restart,
                    )
            except AssertionError as error:
                (folder / "violations").write_text(str(error))
                print(f"seed {seed}: {error}", flush=True)
                progress.broken.append(str(folder))
            else:
                shutil.rmtree(folder)
        progress.add(fleet, counts)
    return progress


async def backlog(bootstrap: str, starts: int) -> str | None:
    """Says how it went; returns where the evidence is, if a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix="stepfold-torture-backlog-"))
    print(f"backlog of {starts} starts", flush=True)
    try:
        async with on_kafka(bootstrap, session_timeout_s=10) as (url, history):
            with Fleet(url, folder, seed=0) as fleet:
                in_s, peak_bytes, counts = await drain(fleet, history, starts)
    except AssertionError as error:
        (folder / "violations").write_text(str(error))
        print(f"backlog: A PROMISE WAS BROKEN: {error}\n    evidence: {folder}")
        return str(folder)
    print(f"backlog: every promise held. {starts / in_s:.0f} runs/s, at most {peak_bytes / 1e6:.0f} MB a worker\n    {counts}")
    shutil.rmtree(folder)
    return None


async def torture(logs: list[str], minutes: float, seed: int) -> bool:
    """Whether every promise held."""
    seeds = random.Random(seed)
    print(f"seed {seed}, {minutes:g} minutes on each of {', '.join(logs)}", flush=True)
    done: list[Progress] = []
    broken_backlog = None
    if "sqlite" in logs:
        done.append(await rounds("sqlite", on_sqlite, ON_SQLITE, minutes, seeds))
    if "kafka" in logs:
        given = os.environ.get("STEPFOLD_TEST_KAFKA")
        with nullcontext() if given else LocalBroker(say=print) as broker:
            bootstrap = given if broker is None else broker.bootstrap
            done.append(await rounds("kafka", lambda folder: on_kafka(str(bootstrap)), ON_KAFKA, minutes, seeds, broker))
            broken_backlog = await backlog(str(bootstrap), min(100_000, int(10_000 * minutes)))
    for progress in done:
        print(progress.verdict())
    return broken_backlog is None and not any(progress.broken for progress in done)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make torture", description="Workers die at random until the minutes are over.")
    parser.add_argument("logs", nargs="*", choices=["sqlite", "kafka", []], metavar="sqlite|kafka", help="both unless said")
    parser.add_argument("--minutes", type=float, default=10, help="on each log")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    sys.exit(0 if asyncio.run(torture(options.logs or ["sqlite", "kafka"], options.minutes, options.seed)) else 1)


if __name__ == "__main__":
    main()
