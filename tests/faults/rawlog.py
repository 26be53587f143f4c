"""An independent reader of the raw log: judges every record by the published rule and says which promises were broken.

It imports nothing of stepfold on purpose, nor does the judge it relies on. What was promised is checked against three witnesses
besides the log: what the client was told, what the steps did outside (a line for each execution), and what the code returned.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from judge import Judge, Partition, Run
from judged_events import ENDS, Json

MAX_FAILURES = 3
"""How often a step may fail, unless the test says otherwise: the default policy of three attempts."""


CLOCKS_MS = 20
"""An owner waits by what has passed, the log tells the time: two clocks, each rounded, and the second one is corrected."""
ROGUE = "rogue"
"""The workflow of runs that do what no run should: what comes of them is not what is promised, but what comes of the others."""


class Raw(NamedTuple):
    """A record as it lies in the log. `timestamp`: the log's, in ms."""

    partition: int
    offset: int
    timestamp: int
    key: str
    value: bytes


# Reading.


class History(Protocol):
    """The raw log, read again and again from where the last reading ended."""

    partitions: int

    async def news(self) -> Sequence[Raw]:
        """What has come since, partition by partition, each in order."""
        ...


class SQLiteHistory:
    """The view `history` of a log file, through SQLite alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.partitions = 0
        self._next: dict[int, int] = {}

    async def news(self) -> Sequence[Raw]:
        found: list[Raw] = []
        if not self._path.exists():
            return found
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'history'").fetchone():
                return found
            [(self.partitions,)] = connection.execute("SELECT value FROM meta WHERE name = 'partitions'")
            for partition in range(self.partitions):
                rows = connection.execute(
                    "SELECT partition, offset, timestamp, key, value FROM history"
                    " WHERE partition = ? AND offset >= ? ORDER BY offset",
                    (partition, self._next.get(partition, 0)),
                ).fetchall()
                found += [Raw(*row) for row in rows]
                if rows:
                    self._next[partition] = rows[-1][1] + 1
        return found


class KafkaHistory:
    """The topic `<namespace>.history` of `kafka://host:port/namespace`, through a plain consumer."""

    def __init__(self, url: str) -> None:
        bootstrap, _, namespace = url.removeprefix("kafka://").partition("/")
        self._topic = f"{namespace}.history"
        self._consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=100
        )
        self.partitions = 0

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        numbers: set[int] = self._consumer.partitions_for_topic(self._topic) or set()
        if not numbers:  # not among the metadata of a consumer that has subscribed to nothing
            self._consumer.subscribe([self._topic])
            await self._consumer.getmany(timeout_ms=100)
            self._consumer.unsubscribe()
            numbers = self._consumer.partitions_for_topic(self._topic)
        self.partitions = len(numbers)
        self._consumer.assign([TopicPartition(self._topic, number) for number in sorted(numbers)])
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._consumer.stop()

    async def news(self) -> Sequence[Raw]:
        places = self._consumer.assignment()
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(places)
        found: list[Raw] = []
        while any([await self._consumer.position(place) < ends[place] for place in places]):
            for place, records in (await self._consumer.getmany(timeout_ms=200)).items():
                found += [
                    Raw(
                        place.partition,
                        record.offset,
                        record.timestamp,
                        (record.key or b"").decode(errors="replace"),
                        record.value or b"",
                    )
                    for record in records
                ]
        return found


# Judging.


class StepExecution(NamedTuple):
    """A line that a step has left outside, when it ran. `at`: wall clock, ms; `token`: what it returned."""

    run_id: str
    step_id: str
    attempt: int
    pid: int
    at: int
    token: str


@dataclass
class Counts:
    """What was seen. `void`: records that the rule rejects, by reason; `repeats`: decisions of the owner that change nothing."""

    records: int = 0
    accepted: int = 0
    claims: int = 0
    takeovers: int = 0
    runs: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])
    rogues: Counter[str] = field(default_factory=Counter[str])
    results: int = 0
    failures: int = 0
    lost: int = 0
    signals: int = 0
    executions: int = 0
    executed_again: int = 0
    executed_by_fenced: int = 0
    void: Counter[str] = field(default_factory=Counter[str])

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class Result(NamedTuple):
    """An accepted result of a step."""

    value: Any
    attempt: int
    partition: int
    offset: int
    timestamp: int


DEATHS = ("WorkflowInterrupted", "StepInterrupted")
"""The types of errors for which a run is quarantined because workers died in it."""


class Audit:
    """Judges records as they come; `violations` are promises broken, in words."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.violations: list[str] = []
        self.runs: dict[str, Run] = {}
        self._results: dict[str, dict[str, Result]] = {}  # by run and step
        self._judge: Judge | None = None

    @property
    def partitions(self) -> dict[int, Partition]:
        """Those of which anything was seen."""
        known = self._judge.partitions if self._judge is not None else []
        return {partition.number: partition for partition in known if partition.next_offset}

    def follow(self, records: Iterable[Raw], partitions: int) -> None:
        """Judge what comes next."""
        for record in records:
            if self._judge is None:
                self._judge = Judge(partitions)
            self.counts.records += 1
            partition = self._judge.partitions[record.partition]
            if record.offset < partition.next_offset:
                self._broken(record, "its offset does not rise")
            before = partition.claims[-1].owner if partition.claims else None
            void, event, run = self._judge.judge(*record)
            if void is not None:
                self.counts.void[void] += 1
                continue
            self.counts.accepted += 1
            assert event is not None
            if run is None:
                self.counts.claims += 1
                self.counts.takeovers += before is not None and event["owner"] is not None and before != event["owner"]
            else:
                self._note(record, run, event)

    def _broken(self, record: Raw, what: str) -> None:
        where = f"partition {record.partition} offset {record.offset} ({record.key})"
        self.violations.append(f"{where}: {what}: {record.value[:300]!r}")

    @staticmethod
    def _kills(run: Run) -> bool:
        """Whether this run may end its worker, by its code or by a step."""
        return run.workflow == ROGUE or (run.workflow == "journey" and run.input.get("poison") is not None)

    def _note(self, record: Raw, run: Run, event: Json) -> None:
        """Count what was accepted, and hold it against the clock."""
        kind = event["type"]
        if kind == "started":
            self.counts.runs += 1
            self.runs[run.id] = run
            self._results[run.id] = {}
        elif kind == "step-completed":
            self.counts.results += 1
            step_id = event["step_id"]
            if step_id in self._results[run.id]:
                self._broken(record, "a completed step has another result")
            result = Result(event["result"], event["attempt"], record.partition, record.offset, record.timestamp)
            self._results[run.id][step_id] = result
        elif kind == "step-failed":
            self.counts.failures += 1
        elif kind == "attempt-lost":
            self.counts.lost += 1
        elif kind == "signal-received":
            self.counts.signals += 1
        elif kind in ENDS:
            (self.counts.rogues if run.workflow == ROGUE else self.counts.ends)[kind] += 1
        elif kind == "quarantined" and not self._kills(run) and event["error"]["type"] in DEATHS:
            self._broken(record, "a run is put aside for what others have done")
        if record.timestamp < run.due - CLOCKS_MS:
            self._broken(record, f"it was due at {run.due}, and the log says {record.timestamp}")

    def owners(self) -> set[int]:
        """The process ids of those that own partitions."""
        last = (partition.claims[-1] for partition in self.partitions.values() if partition.claims)
        return {pid_of(claim.owner) for claim in last if claim.owner is not None}

    def results(self, run_id: str) -> set[str]:
        """The steps of a run that have completed."""
        return set(self._results[run_id])

    # Promises.

    def unfinished(self, run_ids: Iterable[str]) -> list[str]:
        """Those of the runs that have not ended."""
        return [run_id for run_id in run_ids if (run := self.runs.get(run_id)) is None or run.end is None]

    def check_runs(self, acknowledged: Iterable[str], told: Mapping[str, Json], max_failures: Mapping[str, int] = {}) -> None:
        """`acknowledged`: runs whose start a caller was told to be durable. `told`: by run, what a caller was told of its end.

        `max_failures`: by step id, where it is not the default policy.
        """
        for run_id in acknowledged:
            if run_id not in self.runs:
                self.violations.append(f"run {run_id}: its start was acknowledged and is not in the log")
            elif self.runs[run_id].end is None:
                self.violations.append(f"run {run_id}: it has not ended; open: {self.runs[run_id].open}")
        for run_id, end in told.items():
            run = self.runs.get(run_id)
            in_log = run.end if run is not None else None
            if in_log is None or in_log["type"] != end["type"] or in_log.get("result") != end.get("result"):
                self.violations.append(f"run {run_id}: a caller was told {end}, the log says {in_log}")
        for run in self.runs.values():
            for step_id, failures in run.failures.items():
                allowed = max_failures.get(step_id.partition("#")[0], MAX_FAILURES)
                if failures > allowed:
                    self.violations.append(f"run {run.id}: step {step_id} failed {failures} times, {allowed} are allowed")

    def check_returned(self) -> None:
        """Runs of the workload return all results and signals that their code was given: these are those of the log."""
        for run in self.runs.values():
            if run.end is None or run.end["type"] != "completed" or run.workflow == ROGUE:
                continue
            returned = run.end["result"]
            recorded = {step_id: result.value for step_id, result in self._results[run.id].items()}
            if returned["results"] != recorded:
                self.violations.append(f"run {run.id}: its code was given {returned['results']}, the log holds {recorded}")
            taken = [data for _, data, _ in run.given.values()]
            sent = [data for of_name in run.sent.values() for data in of_name]
            if returned["signals"] != taken or taken != sent[: len(taken)]:
                self.violations.append(f"run {run.id}: sent {sent}, taken {taken}, its code saw {returned['signals']}")

    def check_executions(self, executions: Iterable[StepExecution]) -> None:
        """No step ran again once its result was in the log, and no result is there that no execution gave."""
        by_step: dict[tuple[str, str], list[StepExecution]] = {}
        for execution in executions:
            self.counts.executions += 1
            by_step.setdefault((execution.run_id, execution.step_id), []).append(execution)
        for run in self.runs.values():
            for step_id, result in self._results[run.id].items() if run.workflow != ROGUE else ():
                ran = by_step.get((run.id, step_id), [])
                self.counts.executed_again += len(ran) - 1
                if not any(one.attempt == result.attempt and one.token == result.value for one in ran):
                    self.violations.append(f"run {run.id} step {step_id}: no execution gave {result}; there were {ran}")
                for one in ran:
                    if one.attempt > result.attempt:
                        self.violations.append(f"run {run.id} step {step_id}: {one} is beyond the accepted {result}")
                    elif one.at > result.timestamp:
                        self._late(one, result)

    def _late(self, execution: StepExecution, result: Result) -> None:
        """Only a worker that was fenced before the result, and did not know it yet, may have begun after it."""
        claims = self.partitions[result.partition].claims
        owners = [claim for claim in claims if claim.owner is not None and pid_of(claim.owner) == execution.pid]
        at_result = max((claim for claim in claims if claim.offset < result.offset), key=lambda claim: claim.offset)
        knew = at_result in owners or any(result.offset < claim.offset and claim.timestamp < execution.at for claim in owners)
        if knew or not owners:
            self.violations.append(f"run {execution.run_id} step {execution.step_id}: {execution} ran after the result {result}")
        else:
            self.counts.executed_by_fenced += 1

    def conclude(self) -> Counts:
        """The counts. Raises AssertionError that lists what was broken."""
        assert not self.violations, f"{len(self.violations)} violations\n" + "\n".join(self.violations[:20])
        return self.counts


def pid_of(owner: str) -> int:
    """Workers are called `host-pid-id`."""
    return int(owner.rsplit("-", 2)[1])
