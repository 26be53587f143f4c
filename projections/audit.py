"""A run's history as a file: exported from the log, verified without it, replayed with today's code.

The file has one JSON object per line. Each line begins with its number and the hash of the line before, and ends in the
SHA-256 of its own bytes before `,"sha256"`:

    {"n":1,"prev":"000…","kind":"stepfold-export","format":1,"log_id":…,"partitions":4,"partition":2,"run_id":…,"claim":17,…}
    {"n":2,"prev":"5be…","offset":18,"timestamp":…,"key":"order-42","value":"{\\"type\\":\\"started\\",…}","sha256":"c01…"}
    …
    {"n":9,"prev":"77a…","kind":"end","records":7,"log":"sqlite:///orders.db","exported_at":…,"sha256":"e4f…"}

The records are the accepted ones of the run and the claims between them, so that the fold can judge them again; the header
holds the claim and the format that were current before. `value` is the record's value, byte for byte. All lines except the last
depend on the log alone: the head (the hash before the last line) is the same in every export of an ended run. With the head from
another place, a reader can detect a file that was forged as a whole.

Reading needs no log and no worker, and accepts any bytes without raising.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import orjson

from stepfold.authoring.workflow import Registry, Workflow
from stepfold.client.client import Client
from stepfold.client.local import LocalReplay
from stepfold.client.view import RunHistory, RunView, state_for
from stepfold.core.ended import REMEMBER_MS
from stepfold.core.fold import PartitionState
from stepfold.core.state import RunState
from stepfold.errors import ErrorInfo, NonDeterminism, disagreement
from stepfold.log import CLAIM_KEY, Log, Record
from stepfold.replay.execution import Execution, Outcome
from stepfold.worker.interrupts import from_keyboard
from stepfold.worker.watchdog import Stuck, Watchdog

FORMAT = 1
_BEGINNING = "0" * 64
_MARK = b',"sha256":"'
_TAIL_BYTES = len(_MARK) + 64 + len(b'"}\n')
_LINE = re.compile(rb'\{"n":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})",')
_TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n')

_PORTION_BYTES = 2**20
_LONGEST_LINE_BYTES = 2**26
"""The most bytes of a line: it holds one record of the log, of a few MB at most. A file (or device) without a line end within
this many bytes is not an export."""

_INT64 = -(2**62), 2**62
"""Offsets and times of every log lie in this range."""

FilePath = str | os.PathLike[str]


# -- export


class Export(NamedTuple):
    """The result of an export. `head`: the hash of the last record's line; `records`: their number."""

    records: int
    head: str


async def export_run(log: Log, run_id: str, file: FilePath | BinaryIO) -> Export:
    """Write the history of a run up to now. If the run id was used again, it is that of the last run.

    Raises RunNotFound, LogUnavailable, and OSError if the file cannot be written.
    """
    view = RunView(run_id, state_for(log, run_id))
    state, partition = view.state, view.state.partition
    before = state.claim, state.format, state.memory_ms
    kept: list[Record] = []
    between: list[Record] = []  # since the run's last record: claims, and signals for the next run of this id
    # index of the first such signal in `between`, and claim, format and memory before it
    early: tuple[int, tuple[int, int, int]] | None = None
    for record in await log.find(partition, (run_id, CLAIM_KEY)):
        run, current = view.run, (state.claim, state.format, state.memory_ms)
        change = view.take(record)
        if change is None:
            continue
        if change.run is None:
            if change.early is not None and early is None:
                early = len(between), current
            between.append(record)
            continue
        if change.run is not run:
            start, before = early or (len(between), current)
            kept, between, early = [], between[start:], None
        kept += [*between, record]
        between.clear()
    view.found(log)
    chain = _Chain()
    chain.add(
        kind="stepfold-export",
        format=FORMAT,
        log_id=log.id,
        partitions=log.partitions,
        partition=partition,
        run_id=run_id,
        claim=before[0],
        record_format=before[1],
        memory_ms=before[2],
    )
    for record in kept:
        chain.add(offset=record.offset, timestamp=record.timestamp, key=record.key, value=record.value.decode())
    head = chain.head
    chain.add(kind="end", records=len(kept), log=log.name, exported_at=log.now())
    await asyncio.to_thread(chain.write, file)
    return Export(len(kept), head)


class _Chain:
    """Lines, each with the hash of the line before."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.head = _BEGINNING

    def add(self, **fields: Any) -> None:
        body = orjson.dumps({"n": len(self.lines) + 1, "prev": self.head, **fields})[:-1]
        self.head = hashlib.sha256(body).hexdigest()
        self.lines.append(b'%b%b%b"}\n' % (body, _MARK, self.head.encode()))

    def write(self, file: FilePath | BinaryIO) -> None:
        if isinstance(file, str | os.PathLike):
            Path(file).write_bytes(b"".join(self.lines))
        else:
            file.writelines(self.lines)


# -- verify

Problem = Literal["unreadable", "altered", "missing", "moved", "rejected"]


class Finding(NamedTuple):
    """A problem and its line, counted from 1; 0 stands for the whole file. "rejected": the fold does not accept that line's
    record."""

    line: int
    problem: Problem
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: whether a file is unchanged since its export. `head`: the hash of the last record's line;
    `records`: their number.

    `history`: the run that the records describe; None if something is wrong.
    """

    findings: list[Finding]
    run_id: str | None
    records: int
    head: str | None
    history: RunHistory | None = field(default=None, compare=False, repr=False)

    @property
    def ok(self) -> bool:
        """Whether no problem was found. Only a comparison of the head can show that nobody has forged the whole file."""
        return not self.findings


def verify(file: FilePath | BinaryIO) -> Verification:
    """Check every byte of an export, and that the fold accepts its records. Raises nothing, whatever the file holds."""
    history = _read(file)
    header = history.header
    return Verification(
        history.findings,
        header.run_id if header is not None else None,
        len(history.records),
        history.records[-1].hash if history.records else None,
        None if history.findings else history.told,
    )


class _Line(NamedTuple):
    number: int
    n: int
    prev: str
    hash: str
    fields: dict[str, Any]


class _Header(NamedTuple):
    run_id: str
    partitions: int
    partition: int
    claim: int
    record_format: int
    memory_ms: int


class _Record(NamedTuple):
    number: int
    hash: str
    record: Record


class _History:
    """An export that was read."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.header: _Header | None = None
        self.records: list[_Record] = []
        self.told: RunHistory | None = None
        self.delivered_by: list[int] = []  # for each entry of the run's journal: the line that delivered it
        self.stood_still = False  # the run was quarantined when it ended

    def find(self, line: int, problem: Problem, message: str) -> None:
        self.findings.append(Finding(line, problem, message))


def _read(file: FilePath | BinaryIO) -> _History:
    history = _History()
    try:
        if isinstance(file, str | os.PathLike):
            with Path(file).open("rb") as opened:
                raw = _raw_lines(opened)
        else:
            raw = _raw_lines(file)
    except (OSError, ValueError) as error:
        history.find(0, "unreadable", f"the file cannot be read: {error}")
        return history
    if raw is None:
        history.find(1, "unreadable", "this is not an export of a run: no line begins like a line of an export")
        return history
    lines = [_line(number, text + b"\n") for number, text in enumerate(raw[:-1], 1)]
    if raw[-1]:
        lines.append(None)  # the last line has no line end
    _check_chain(history, lines)
    _check_frame(history, lines)
    if not history.findings:
        _fold(history)
    return history


def _raw_lines(file: BinaryIO) -> list[bytes] | None:
    """The lines of a file; None if it is not an export, after reading only enough of it to see that.

    Raises OSError, and ValueError for a line without an end.
    """
    lines = [b""]
    is_export = False
    size, rest = 0, bytearray()  # the last line so far
    while portion := file.read(_PORTION_BYTES):
        if not isinstance(portion, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # a caller may have opened it as text
            raise ValueError("it was opened as a text; open it as bytes")
        size += len(portion)
        first, *others = portion.split(b"\n")
        rest += first
        if others:
            lines[-1] = bytes(rest)
            lines += others
            rest = bytearray(others[-1])
        if not is_export and size > _LONGEST_LINE_BYTES:
            is_export = any(map(_LINE.match, lines))
            if not is_export:
                return None
        if len(rest) > _LONGEST_LINE_BYTES:
            raise ValueError(f"line {len(lines)} is longer than {_LONGEST_LINE_BYTES:,} bytes, and so than any line of an export")
    lines[-1] = bytes(rest)
    return lines if is_export or size == 0 or any(map(_LINE.match, lines)) else None


def _line(number: int, text: bytes) -> _Line | None:
    """Parse a line; None if its bytes do not match its hash."""
    start, tail = _LINE.match(text), _TAIL.fullmatch(text[-_TAIL_BYTES:])
    if start is None or tail is None or hashlib.sha256(text[:-_TAIL_BYTES]).hexdigest().encode() != tail[1]:
        return None
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return _Line(number, int(start[1]), start[2].decode(), tail[1].decode(), fields)


def _check_chain(history: _History, lines: Sequence[_Line | None]) -> None:
    present = sorted(line.n for line in lines if line is not None)
    expected = 1
    before: _Line | None = None
    for number, line in enumerate(lines, 1):
        if line is None:
            history.find(number, "altered", f"line {number} was altered: its bytes are not those that its hash was made of")
            expected += 1
        elif line.n < expected:
            history.find(number, "moved", f"line {number} is line {line.n} of the export: it was moved here or repeated")
        else:
            # lines from between the two that are later in the file
            here = bisect_left(present, line.n) - bisect_left(present, expected)
            gone = line.n - expected - here
            if gone:
                history.find(number, "missing", f"missing before line {number}: {gone} of the export's lines")
            elif here:
                history.find(number, "moved", f"line {number} is line {line.n} of the export: it was moved")
            elif before is not None and before.n == line.n - 1 and line.prev != before.hash:
                history.find(
                    number - 1,
                    "altered",
                    f"line {number - 1} was altered together with its hash: line {number} follows another",
                )
            elif line.n == 1 and line.prev != _BEGINNING:
                history.find(number, "altered", f"line {number} does not begin an export")
            expected = line.n + 1
        before = line


def _check_frame(history: _History, lines: Sequence[_Line | None]) -> None:
    """Check header, records and closing line, as far as they are intact."""
    if not lines:
        history.find(0, "missing", "the file is empty")
        return
    first, closing = lines[0], None
    if first is not None and first.n == 1:
        history.header = _header(first.fields)
        if history.header is None:
            history.find(1, "altered", "line 1 is not the header of an export that this version of stepfold knows")
    for line in lines[1:]:
        if line is None:
            continue
        if line.fields.get("kind") == "end":
            closing = line
            break
        record = _record(line.fields)
        if record is None:
            history.find(line.number, "altered", f"line {line.number} is intact, but is not a record of an export")
        else:
            history.records.append(_Record(line.number, line.hash, record))
    if closing is None:
        if lines[-1] is not None:
            history.find(len(lines) + 1, "missing", "the closing line is missing: the end of the export was cut off")
    elif not history.findings and closing.number < len(lines):
        history.find(closing.number + 1, "altered", f"line {closing.number + 1} was added: it follows the closing line")
    elif not history.findings and closing.fields.get("records") != len(history.records):
        history.find(closing.number, "altered", "the closing line counts another number of records")


def _header(fields: dict[str, Any]) -> _Header | None:
    if fields.get("kind") != "stepfold-export" or fields.get("format") != FORMAT or type(fields.get("run_id")) is not str:
        return None
    numbers = [fields.get(name) for name in ("partitions", "partition", "claim", "record_format")]
    numbers.append(fields.get("memory_ms", REMEMBER_MS))  # older exports have the default
    if any(type(number) is not int or not _INT64[0] <= number <= _INT64[1] for number in numbers):
        return None
    if cast(int, numbers[0]) < 1:
        return None
    return _Header(fields["run_id"], *cast(list[int], numbers))


def _record(fields: dict[str, Any]) -> Record | None:
    offset, timestamp, key, value = (fields.get(name) for name in ("offset", "timestamp", "key", "value"))
    if not (type(offset) is int and type(timestamp) is int and type(key) is str and type(value) is str):
        return None
    if not all(_INT64[0] <= number <= _INT64[1] for number in (offset, timestamp)):
        return None
    return Record(offset, timestamp, key, value.encode())


def _fold(history: _History) -> None:
    header = history.header
    assert header is not None
    state = PartitionState(header.partition, header.partitions)
    state.claim, state.format, state.memory_ms = header.claim, header.record_format, header.memory_ms
    told = history.told = RunHistory(header.run_id, state)
    for number, _, record in history.records:
        run = told.run
        history.stood_still = run is not None and run.phase == "quarantined"
        change = told.take(record)
        if change is None or (change.run is not None and (change.run.id != header.run_id or run not in (None, change.run))):
            history.find(
                number,
                "rejected",
                f"the record in line {number} (offset {record.offset}) is not accepted after those before it",
            )
            return
        if change.run is not None:
            history.delivered_by += [number] * (len(change.run.journal) - len(history.delivered_by))
    if told.run is None:
        history.find(0, "missing", "the export holds no record of its run")


# -- replay


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of a replay of a history with today's code.

    outcome   "agrees"      the code does what the history holds, and ends the same way if it has ended
              "differs"     it does what the history holds, but ends in another way: `expected`, `found`
              "diverges"    it asks for other steps: `expected`, `found`, and `source`, the lines (`file:line`) that asked
              "unknown"     no workflow of this id and version is registered
              "damaged"     the file is not an intact export (see `verify`)
    line      the line of the file where code and history first differ
    message   the result in words
    """

    outcome: Literal["agrees", "differs", "diverges", "unknown", "damaged"]
    message: str
    run_id: str | None = None
    expected: str = ""
    found: str = ""
    source: tuple[str, ...] = ()
    line: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the outcome is "agrees"."""
        return self.outcome == "agrees"


def replay(file: FilePath | BinaryIO, workflows: Client | Registry) -> Replay:
    """Run the registered workflow's code over an exported history; executes no step and writes nothing.

    The client must be connected only if the code uses `ctx.ext`. Raises only errors that end a process.
    """
    history = _read(file)
    run = None if history.told is None else history.told.run
    if run is None or history.findings:
        finding = history.findings[0]
        return Replay("damaged", f"the file is not an intact export: {finding.message}", line=finding.line or None)
    registry = workflows.registry if isinstance(workflows, Client) else workflows
    workflow = registry.find(run.workflow, run.version)
    if workflow is None:
        version = f" version {run.version!r}" if run.version is not None else ""
        return Replay(
            "unknown", f"no workflow {run.workflow!r}{version} is registered; import the code that registers it", run.id
        )
    log = workflows.log if isinstance(workflows, Client) else None
    with LocalReplay(run, workflow, log, Watchdog()) as local:
        execution = local.execution
        try:
            return local.watched(partial(_replayed, history, run, workflow, execution))
        except NonDeterminism as stuck:
            return _diverging(stuck, history, run, execution)


def _replayed(history: _History, run: RunState, workflow: Workflow[Any, Any], execution: Execution) -> Replay:
    try:
        execution.advance()
        return _compare(history, run, workflow, execution)
    except NonDeterminism as error:
        return _diverging(error, history, run, execution)
    except BaseException as error:  # a replay reports any error
        if issubclass(type(error), Stuck) or from_keyboard(error):
            raise
        found = str(ErrorInfo.of(error))
        message = f"the code of run {run.id!r} could not be replayed: {found}"
        return Replay("diverges", message, run.id, "a run of the code", found, (), _where(history, execution))


def _diverging(error: NonDeterminism, history: _History, run: RunState, execution: Execution) -> Replay:
    said = disagreement(error)
    where = _where(history, execution)
    return Replay("diverges", said["message"], run.id, said["expected"], said["found"], tuple(said["source"]), where)


def _where(history: _History, execution: Execution) -> int | None:
    if execution.position == 0:
        return history.records[0].number
    return history.delivered_by[execution.position - 1]


def _compare(history: _History, run: RunState, workflow: Workflow[Any, Any], execution: Execution) -> Replay:
    """Compare how code and history end, once the code has done everything that the history holds."""
    agrees = Replay("agrees", f"today's code does what the history of run {run.id!r} holds, and it is {run.phase}", run.id)
    if not run.ended or (run.phase == "cancelled" and history.stood_still):
        return agrees
    last = history.records[-1].number
    if execution.outcome is None:
        ops = list(execution.ops.values())
        found = f"the code waits for {', '.join(map(str, ops[:5])) or 'nothing that is durable'}"
        source = tuple(f"{op.source[0].co_filename}:{op.source[1]}" for op in ops if op.source is not None)
        message = f"run {run.id!r}: the history holds that it is {run.phase}, but {found}"
        return Replay("diverges", message, run.id, f"the run is {run.phase}", found, source, last)
    expected, found = _recorded(run), execution.inside(_ended, workflow, execution.outcome)
    if expected == found or (expected[0] == "PayloadTooLarge" and found[0] == "completed"):
        return agrees
    words, found_words = (" ".join(end)[:1000] for end in (expected, found))
    return Replay(
        "differs", f"run {run.id!r} ended as {words}; today's code ends as {found_words}", run.id, words, found_words, (), last
    )


def _recorded(run: RunState) -> tuple[str, str]:
    if run.phase == "completed":
        return "completed", _canonical(run.result)
    if run.phase == "failed":
        error = ErrorInfo.from_json(run.error)
        return ("PayloadTooLarge", "") if error.type == "PayloadTooLarge" else ("failed", f"{error.type}: {error.message}")
    return "cancelled", ""


def _ended(workflow: Workflow[Any, Any], outcome: Outcome) -> tuple[str, str]:
    error = outcome.error
    if outcome.phase == "completed":
        try:
            return "completed", _canonical(orjson.loads(workflow.encode_result(outcome.value)))
        except BaseException as unencodable:  # as for the owner: the run has failed
            if issubclass(type(unencodable), Stuck) or from_keyboard(unencodable):
                raise
            error = unencodable
    if error is None:
        return "cancelled", ""
    info = ErrorInfo.of(error)
    return "failed", f"{info.type}: {info.message}"


def _canonical(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
