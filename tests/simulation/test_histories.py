"""Old histories go on: one for each format of records, cut off in the middle of everything, which today's engine takes over.

Each line of `histories/format-N.jsonl` is a record as it lay in the one partition of a simulated world: its timestamp, who wrote
it, key and value.
A format that is closed brings a new file; those that are there are never changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import programs
import pytest
from check import Checker
from judge import Run

from stepfold import Client
from stepfold.drivers import MemoryDriver
from stepfold.events import FORMAT
from stepfold.log import Entry, Record
from stepfold.testing import run_virtual, virtual_clock

HISTORIES = sorted((Path(__file__).parent / "histories").glob("format-*.jsonl"))
PATIENCE_S = 3600
WORKER = "today"


class Watched(MemoryDriver):
    """A log whose checker is told of every record before anything that follows from it."""

    def __init__(self, checker: Checker) -> None:
        super().__init__(clock=virtual_clock)
        self.checker = checker
        self._told = 0

    def tell(self, writers: Sequence[str] = ()) -> Checker:
        """Of what has come since; `writers`: who wrote it, if not today's worker."""
        records = self._store.records[self._told :]
        self._told += len(records)
        for record, writer in zip(records, writers or [WORKER] * len(records), strict=True):
            self.checker.appended(0, record, writer)
        return self.checker


class Host:
    """The process that programs run in."""

    name = WORKER
    beating = False

    def __init__(self, log: Watched) -> None:
        self.shared: dict[str, Any] = {}
        self._log = log

    def block(self, seconds: float) -> None: ...

    def die(self, run_id: str, times: int) -> None: ...

    def step_started(self, run_id: str, step_id: str, attempt: int, args: Any, heartbeat: Any) -> None:
        self._log.tell().step_started(WORKER, run_id, step_id, attempt, virtual_clock(), args, heartbeat)

    def step_beat(self, run_id: str, step_id: str, attempt: int, details: Any) -> None: ...

    def step_ended(self, run_id: str, step_id: str, attempt: int, outcome: Any) -> None: ...

    def asked(self, callback_id: str, answers: list[list[Any]]) -> None: ...

    def delivered(self, run_id: str, step_id: str, value: Any, at_ms: int) -> None:
        self._log.tell().delivered(WORKER, run_id, step_id, value, at_ms)


def records(path: Path) -> list[tuple[Record, str]]:
    """With their writers. Offsets are those of the lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (Record(offset, timestamp, key, value.encode(errors="surrogateescape")), writer)
        for offset, (timestamp, writer, key, value) in enumerate(lines)
    ]


def test_there_is_one_for_each_closed_format() -> None:
    """Format 2 still grows: a history of it would have to be changed with it."""
    assert [path.stem for path in HISTORIES] == [f"format-{number + 1}" for number in range(FORMAT - 1)]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_an_old_history_goes_on(path: Path) -> None:
    old = records(path)
    checker = Checker(1, lambda process: 2**62, lambda: 0)
    run_virtual(goes_on(old, checker), start_ms=max(record.timestamp for record, _ in old) + 1)
    runs = checker.judge.partitions[0].runs.values()
    assert len(runs) > 10
    for run in runs:
        check(run)


async def goes_on(old: list[tuple[Record, str]], checker: Checker) -> None:
    """Take the history over and see every run to its end."""
    log = Watched(checker)
    client = Client(driver=log)
    programs.register(client, Host(log), ("1", "2"))
    async with client:
        await log.append(0, [Entry(record.key, record.value) for record, _ in old])
        log.tell([writer for _, writer in old])
        [judged] = checker.judge.partitions
        open_runs = [run for run in judged.runs.values() if run.end is None]
        assert open_runs
        async with client.worker() as worker, asyncio.timeout(PATIENCE_S):
            number = 0
            while any(run.end is None and run.quarantined is None for run in open_runs):
                await asyncio.sleep(1)
                log.tell()
                for run in open_runs:
                    for op in list(run.open.values()):
                        if op.kind == "wait" and run.quarantined is None:
                            number += 1
                            await client.signal_run(run.id, op.signal, orjson.dumps(number), f"signal-{number}")
            await asyncio.sleep(1)
            log.tell()
            for partition, owner in worker.owners.items():
                assert owner.state is not None
                checker.state(WORKER, partition, owner.state)


def check(run: Run) -> None:
    """What came of it is what its program allows."""
    if run.quarantined is not None:
        assert programs.contains(run.input, "drift") or run.quarantined["type"] == "StepInterrupted"
        return
    assert run.end is not None
    if run.end["type"] == "completed":
        signals = {(name, data) for name, of_name in run.sent.items() for data in of_name}
        assert programs.allowed(run.input, run.end["result"], run.id, signals)
    elif run.end["type"] == "failed":
        assert programs.contains(run.input, "fail")
