"""An independent reader of the raw log: judges every record by the published rule and says which promises were broken.

It imports nothing of stepfold on purpose. The rule is written here a second time, from its description: a record is accepted
iff it was written under the claim that is current at its offset, and its precondition holds. So a mistake in the engine's fold
cannot hide itself. What was promised is checked against three witnesses besides the log: what the client was told, what the
steps did outside (a line for each execution), and what the code returned.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, cast

from aiokafka import AIOKafkaConsumer, TopicPartition

ENDS = ("completed", "failed", "cancelled")
REQUESTS = ("started", "signal-received", "cancel-requested")
FORMAT = 1
DAY_MS = 24 * 3600 * 1000
MAX_FAILURES = 3
"""How often a step may fail, unless the test says otherwise: the default policy of three attempts."""

Json = dict[str, Any]


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


@dataclass
class Open:
    """A step, sleep or wait that has begun and is not over."""

    kind: str
    attempts: int = 0  # of a step: attempts that are over
    failures: int = 0
    lost: int = 0  # in a row
    announced: bool = False
    next_at: int | None = None
    wake_at: int = 0
    signal: str = ""
    timeout_at: int | None = None


class Result(NamedTuple):
    """An accepted result of a step."""

    value: Any
    attempt: int
    partition: int
    offset: int
    timestamp: int


@dataclass
class Run:
    """What the accepted records say of one run."""

    id: str
    partition: int
    input: Any
    started_at: int
    open: dict[str, Open] = field(default_factory=dict[str, Open])
    over: set[str] = field(default_factory=set[str])
    results: dict[str, Result] = field(default_factory=dict[str, Result])
    failures: Counter[str] = field(default_factory=Counter[str])
    lost: Counter[str] = field(default_factory=Counter[str])
    sent: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])  # data of the signals, in order
    waiting: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])  # of these, not yet taken
    given: dict[str, tuple[str, Any]] = field(default_factory=dict[str, tuple[str, Any]])  # by wait: signal and data
    requests: set[str] = field(default_factory=set[str])
    due: int = 0  # when what was just accepted might happen at the earliest
    cancelled: bool = False
    unserved: bool = False
    quarantined: Json | None = None
    end: Json | None = None
    ended_at: int = 0


class Ownership(NamedTuple):
    """An accepted claim; `owner` None: the partition was given up."""

    offset: int
    timestamp: int
    owner: str | None


@dataclass
class Partition:
    """What the accepted records say of one partition."""

    next_offset: int = 0
    now: int = 0
    claims: list[Ownership] = field(default_factory=list[Ownership])
    format: int = FORMAT

    @property
    def claim(self) -> int:
        return self.claims[-1].offset if self.claims else -1


class Execution(NamedTuple):
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


class Audit:
    """Judges records as they come; `violations` are promises broken, in words."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.violations: list[str] = []
        self.runs: dict[str, Run] = {}
        self.partitions: dict[int, Partition] = {}

    def follow(self, records: Iterable[Raw], partitions: int) -> None:
        """Judge what comes next."""
        for record in records:
            partition = self.partitions.setdefault(record.partition, Partition())
            self.counts.records += 1
            if record.offset < partition.next_offset:
                self._broken(record, "its offset does not rise")
            partition.next_offset = record.offset + 1
            partition.now = max(partition.now, record.timestamp)
            reason = self._judge(record, partition, partitions)
            if reason is None:
                self.counts.accepted += 1
            else:
                self.counts.void[reason] += 1

    def _broken(self, record: Raw, what: str) -> None:
        where = f"partition {record.partition} offset {record.offset} ({record.key})"
        self.violations.append(f"{where}: {what}: {record.value[:300]!r}")

    def _judge(self, record: Raw, partition: Partition, partitions: int) -> str | None:
        """None: accepted. Else why not."""
        try:
            event: Any = json.loads(record.value)
        except ValueError:
            return "no event"
        match event:
            case {"type": "claim", "v": int(version), "prev": int(prev), "owner": str() | None as owner, "nonce": str()}:
                return self._claim(record, partition, version, prev, owner)
            case {"type": str(kind), "v": int(version), "run_id": str(run_id), "at": int()}:
                pass
            case _:
                return "no event"
        event = cast(Json, event)
        if version > partition.format:
            return "newer format"
        if run_id != record.key:
            return "another run's key"
        if kind not in REQUESTS and event.get("claim") != partition.claim:
            return "stale claim"
        run = self.runs.get(run_id)
        if kind == "started":
            return self._start(record, event, partitions)
        if run is None:
            return "unknown run"
        if run.end is not None:
            return f"ended run: {kind}"
        accepts = _RULES.get(kind)
        if accepts is None:
            return "no event"
        if not accepts(run, event):
            return f"precondition: {kind}"
        self._note(record, run, event)
        return None

    def _claim(self, record: Raw, partition: Partition, version: int, prev: int, owner: str | None) -> str | None:
        if record.key != "@claim" or prev != partition.claim:
            return "stale claim: claim"
        self.counts.claims += 1
        before = partition.claims[-1].owner if partition.claims else None
        self.counts.takeovers += before is not None and owner is not None and before != owner
        partition.claims.append(Ownership(record.offset, record.timestamp, owner))
        partition.format = version
        return None

    def _start(self, record: Raw, event: Json, partitions: int) -> str | None:
        if zlib.crc32(record.key.encode("utf-8", "surrogatepass")) % partitions != record.partition:
            return "another partition's run"
        known = self.runs.get(record.key)
        if known is not None and (known.end is None or record.timestamp < known.ended_at + DAY_MS):
            return "known run"
        run = self.runs[record.key] = Run(record.key, record.partition, event.get("input"), record.timestamp)
        run.requests.add(event["request"])
        self.counts.runs += 1
        return None

    def _note(self, record: Raw, run: Run, event: Json) -> None:
        """Count what was accepted, and hold it against the clock."""
        kind = event["type"]
        step_id = event.get("step_id", "")
        if kind == "step-completed":
            self.counts.results += 1
            if step_id in run.results:
                self._broken(record, "a completed step has another result")
            run.results[step_id] = Result(event["result"], event["attempt"], record.partition, record.offset, record.timestamp)
        elif kind == "step-failed":
            self.counts.failures += 1
            run.failures[step_id] += 1
        elif kind == "attempt-lost":
            self.counts.lost += 1
            run.lost[step_id] += 1
        elif kind == "signal-received":
            self.counts.signals += 1
        elif kind in ENDS:
            run.end = event
            run.ended_at = record.timestamp
            self.counts.ends[kind] += 1
        run.unserved = kind == "workflow-unknown" or (run.unserved and kind in REQUESTS)
        if record.timestamp < run.due:
            self._broken(record, f"it was due at {run.due}, and the log says {record.timestamp}")
        run.due = 0

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
            if run.end is None or run.end["type"] != "completed":
                continue
            returned = run.end["result"]
            recorded = {step_id: result.value for step_id, result in run.results.items()}
            if returned["results"] != recorded:
                self.violations.append(f"run {run.id}: its code was given {returned['results']}, the log holds {recorded}")
            taken = [data for _, data in run.given.values()]
            sent = [data for of_name in run.sent.values() for data in of_name]
            if returned["signals"] != taken or taken != sent[: len(taken)]:
                self.violations.append(f"run {run.id}: sent {sent}, taken {taken}, its code saw {returned['signals']}")

    def check_executions(self, executions: Iterable[Execution]) -> None:
        """No step ran again once its result was in the log, and no result is there that no execution gave."""
        by_step: dict[tuple[str, str], list[Execution]] = {}
        for execution in executions:
            self.counts.executions += 1
            by_step.setdefault((execution.run_id, execution.step_id), []).append(execution)
        for run in self.runs.values():
            for step_id, result in run.results.items():
                ran = by_step.get((run.id, step_id), [])
                self.counts.executed_again += len(ran) - 1
                if not any(one.attempt == result.attempt and one.token == result.value for one in ran):
                    self.violations.append(f"run {run.id} step {step_id}: no execution gave {result}; there were {ran}")
                for one in ran:
                    if one.attempt > result.attempt:
                        self.violations.append(f"run {run.id} step {step_id}: {one} is beyond the accepted {result}")
                    elif one.at > result.timestamp:
                        self._late(one, result)

    def _late(self, execution: Execution, result: Result) -> None:
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


# One rule per event of a run that has not ended: checks the precondition, changes the run, says whether it holds.


def _is_new(run: Run, step_id: str) -> bool:
    return step_id != "" and step_id not in run.open and step_id not in run.over


def _next_attempt(run: Run, event: Json) -> Open | None:
    """The step, if this is about its next attempt. A step is open from the first thing that is recorded of it."""
    step_id = event["step_id"]
    step = run.open.get(step_id)
    if step is None and _is_new(run, step_id):
        step = Open("step")
    if step is None or step.kind != "step" or event["attempt"] != step.attempts + 1:
        return None
    run.open[step_id] = step
    return step


def _end_of_op(run: Run, step_id: str) -> None:
    del run.open[step_id]
    run.over.add(step_id)


def _step_completed(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    run.due = step.next_at or 0
    _end_of_op(run, event["step_id"])
    return True


def _step_failed(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    run.due = step.next_at or 0
    step.attempts += 1
    step.failures += 1
    step.lost = 0
    step.announced = False
    step.next_at = event["next_at"]
    if step.next_at is None:
        _end_of_op(run, event["step_id"])
    return True


def _attempt_started(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None or step.announced:
        return False
    step.announced = True
    return True


def _attempt_lost(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    step.attempts += 1
    step.lost += 1
    step.announced = False
    step.next_at = None
    return True


def _step_heartbeat(run: Run, event: Json) -> bool:
    return _next_attempt(run, event) is not None


def _step_cancelled(run: Run, event: Json) -> bool:
    step_id = event["step_id"]
    if step_id in run.open:
        _end_of_op(run, step_id)
        return True
    if step_id not in run.given:
        return False
    name, data = run.given.pop(step_id)
    run.waiting.setdefault(name, []).insert(0, data)
    _give(run, name)
    return True


def _sleep_scheduled(run: Run, event: Json) -> bool:
    if not _is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = Open("sleep", wake_at=event["wake_at"])
    return True


def _sleep_completed(run: Run, event: Json) -> bool:
    sleep = run.open.get(event["step_id"])
    if sleep is None or sleep.kind != "sleep" or event["at"] < sleep.wake_at:
        return False
    run.due = sleep.wake_at
    _end_of_op(run, event["step_id"])
    return True


def _wait_started(run: Run, event: Json) -> bool:
    if not _is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = Open("wait", signal=event["signal"], timeout_at=event["timeout_at"])
    _give(run, event["signal"])
    return True


def _wait_timed_out(run: Run, event: Json) -> bool:
    wait = run.open.get(event["step_id"])
    if wait is None or wait.kind != "wait" or wait.timeout_at is None or event["at"] < wait.timeout_at:
        return False
    run.due = wait.timeout_at
    _end_of_op(run, event["step_id"])
    return True


def _signal_received(run: Run, event: Json) -> bool:
    if event["request"] in run.requests:
        return False
    run.requests.add(event["request"])
    run.sent.setdefault(event["signal"], []).append(event["data"])
    run.waiting.setdefault(event["signal"], []).append(event["data"])
    _give(run, event["signal"])
    return True


def _give(run: Run, name: str) -> None:
    """The oldest signal to the oldest wait."""
    waits = [step_id for step_id, op in run.open.items() if op.kind == "wait" and op.signal == name]
    if waits and run.waiting.get(name):
        run.given[waits[0]] = name, run.waiting[name].pop(0)
        _end_of_op(run, waits[0])


def _cancel_requested(run: Run, event: Json) -> bool:
    if run.cancelled or event["request"] in run.requests:
        return False
    run.requests.add(event["request"])
    run.cancelled = True
    return True


def _quarantined(run: Run, event: Json) -> bool:
    if run.quarantined is not None:
        return False
    run.quarantined = event["error"]
    return True


def _resumed(run: Run, event: Json) -> bool:
    if run.quarantined is None:
        return False
    run.quarantined = None
    for op in run.open.values():
        op.lost = 0
    return True


_RULES: dict[str, Callable[[Run, Json], bool]] = {
    "step-completed": _step_completed,
    "step-failed": _step_failed,
    "attempt-started": _attempt_started,
    "attempt-lost": _attempt_lost,
    "step-heartbeat": _step_heartbeat,
    "step-cancelled": _step_cancelled,
    "sleep-scheduled": _sleep_scheduled,
    "sleep-completed": _sleep_completed,
    "wait-started": _wait_started,
    "wait-timed-out": _wait_timed_out,
    "signal-received": _signal_received,
    "cancel-requested": _cancel_requested,
    "workflow-unknown": lambda run, event: not run.unserved,
    "quarantined": _quarantined,
    "resumed": _resumed,
    "completed": lambda run, event: run.quarantined is None,
    "failed": lambda run, event: run.quarantined is None,
    "cancelled": lambda run, event: run.cancelled,
}
