# pyright: reportPrivateUsage=false
# What is fuzzed is what the engine calls, not only what users may.
"""Everything that reads bytes it did not write, and what it may do with them.

A target takes bytes and raises what breaks the rule: whatever the input, nothing stops, nothing is raised but what is
documented, and what comes next is served. What a target picks beside its input it picks by the input alone, so that an input
is enough to repeat it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any, NamedTuple, cast

import cramjam
import orjson
from aiokafka.record.util import calc_crc32c
from histories import Ledger, facts
from kafka_batches import COMMIT, TRANSACTIONAL, batch, marker, record
from pydantic import BaseModel
from unit.test_fold_properties import BEGINNING, Author

from stepfold import Client, Context, Step
from stepfold.cli.problems import Problem
from stepfold.cli.run import json_of
from stepfold.cli.target import load
from stepfold.client.requests import checked_run_id, started
from stepfold.client.status import run_state, status_json, waiting_words
from stepfold.client.waiting import sentence, waits
from stepfold.core.fold import Change, PartitionState, fold
from stepfold.core.snapshot import pack, unpack
from stepfold.drivers import MemoryDriver, open_driver
from stepfold.drivers.kafka import driver as kafka_driver
from stepfold.drivers.kafka import records as kafka_records
from stepfold.errors import ConfigError, ErrorInfo, StepfoldError
from stepfold.events import decode, parse
from stepfold.log import CLAIM_KEY, Entry, InboxRecord, Record
from stepfold.marks import mark_of
from stepfold.operations.callback import CallbackId
from stepfold.projections import audit, runs
from stepfold.projections.base import RunSoFar
from stepfold.values.duration import duration_ms
from stepfold.values.times import utc
from stepfold.worker.checkpoint import Checkpoint
from stepfold.worker.inbox import Refused
from stepfold.worker.router import Router
from stepfold.worker.watchdog import Watch


class Target(NamedTuple):
    """`corpus`: valid inputs. `run`: takes one, and raises AssertionError, or whatever should not have been raised."""

    name: str
    corpus: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], None]


class Input(BaseModel):
    name: str
    amounts: list[int] = []
    more: dict[str, Any] | None = None


def _client() -> Client:
    client = Client(driver=MemoryDriver())

    @client.workflow(id="w")
    async def w(ctx: Context[Any], step: Step) -> Any:
        await step.run("a", lambda: 1)
        await step.sleep("nap", "1s")
        await step.callback("asked", timeout="1d")
        return await step.wait_for_signal("go", signal="go")

    @client.workflow(id="typed")
    async def typed(ctx: Context[Input], step: Step) -> str:
        return ctx.input.name

    return client


CLIENT = _client()


# Records of the history.


@cache
def _history() -> list[Record]:
    """Two open runs with one of each that can be open, one that has ended, and two claims."""
    author = Author()
    author.write(BEGINNING)
    ledger = author.ledger
    ledger.start("one")
    ledger.start("two")
    error = {"type": "E", "message": "no"}
    ledger.accepts("step-failed", "one", step_id="a", attempt=1, error=error, next_at=ledger.now_ms, heartbeat=[1])
    ledger.accepts("sleep-scheduled", "one", step_id="nap", wake_at=ledger.now_ms + 1000)
    ledger.accepts("wait-started", "two", step_id="go", signal="go", timeout_at=ledger.now_ms + 1000)
    ledger.accepts("signal-received", "two", signal="other", data={"n": 1})
    ledger.accepts("callback-created", "two", v=2, step_id="asked", nonce="n", timeout_at=ledger.now_ms + 1000, heartbeat_ms=9)
    ledger.accepts("published", "two", v=2, key="done", value=0.5, seq=1)
    ledger.start("three")
    ledger.accepts("step-completed", "three", step_id="a", attempt=1, result=[1, "x", None])
    ledger.accepts("completed", "three", result={"n": 1})
    ledger.claim("worker-b")
    return ledger.records


@cache
def _values() -> list[bytes]:
    ledger = Ledger(stride=1)
    fields: dict[str, dict[str, Any]] = {
        "step-completed": {"step_id": "a", "attempt": 2, "result": {"deep": [[1]]}, "queued_at": 1, "began_at": 2},
        "step-failed": {
            "step_id": "a",
            "attempt": 2,
            "error": {"type": "E", "message": "m", "traceback": "t"},
            "next_at": None,
            "began_at": 2**63,
            "at_line": "a.py:1",
        },
        "step-heartbeat": {"step_id": "a", "attempt": 2, "details": 7},
        "attempt-started": {"step_id": "a", "attempt": 2, "input": [[1]], "input_note": "cut"},
        "attempt-lost": {"step_id": "a", "attempt": 2},
        "step-cancelled": {"step_id": "a"},
        "sleep-scheduled": {"step_id": "b", "wake_at": 7, "at_line": "a.py:1"},
        "sleep-completed": {"step_id": "nap"},
        "wait-started": {"step_id": "c", "signal": "s", "timeout_at": 9},
        "wait-timed-out": {"step_id": "go"},
        "callback-created": {"step_id": "d", "nonce": "m", "timeout_at": None, "heartbeat_ms": 1},
        "callback-completed": {"step_id": "asked", "nonce": "n", "data": [1]},
        "callback-failed": {"step_id": "asked", "nonce": "n", "error": {"type": "E", "message": "m"}},
        "callback-heartbeat": {"step_id": "asked", "nonce": "n"},
        "callback-timed-out": {"step_id": "asked", "kind": "heartbeat"},
        "published": {"key": "done", "value": {"n": [1]}, "seq": 2},
        "workflow-unknown": {"version": "2"},
        "quarantined": {"error": {"type": "E", "message": "m"}},
        "resumed": {},
        "completed": {"result": None},
        "failed": {"error": {"type": "E", "message": "m", "step_id": "a"}},
        "cancelled": {"reason": "why"},
        "signal-received": {"signal": "go", "data": 1, "by": "me", "why": "so"},
        "cancel-requested": {"reason": None, "by": "me"},
        "started": {"workflow": "w", "version": None, "input": {"n": 1}, "trigger": {"a": 1}},
    }
    claim = _history()[-1].offset
    made = [
        ledger.event(kind, run_id, **of_kind) | ({"claim": claim} if "request" not in ledger.event(kind) else {})
        for kind, of_kind in fields.items()
        for run_id in ("one", "two", "new")
    ]
    claims = [{"type": "claim", "v": v, "at": 1, "prev": claim, "owner": o, "nonce": "n"} for v, o in ((1, None), (2, "w"))]
    return [orjson.dumps(event) for event in (*made, *claims)]


TIMES = (0, 1, -1, 1_900_000_000_000, 2**62, 2**63 - 1, -(2**63))


def run_record(data: bytes) -> None:
    """Fold it into a history, look at what came of it in every way, and fold what comes next."""
    random = Random(zlib.crc32(data))
    state = PartitionState()
    for known in _history():
        fold(state, known)
    event = decode(data)
    key = (
        event.get("run_id", CLAIM_KEY)
        if event is not None and random.random() < 0.9
        else random.choice(("one", "@claim", "\ud800"))
    )
    assert isinstance(key, str), "the fold was given a key that no log has"
    timestamp = random.choice(TIMES) if random.random() < 0.2 else 1_900_000_000_500
    change = fold(state, Record(state.offset, timestamp, key, data))
    if change is not None:
        _look(state, change, timestamp)
    next_claim = {"type": "claim", "v": 2, "at": 1, "prev": state.claim, "owner": "next", "nonce": "n"}
    assert fold(state, Record(state.offset, timestamp, CLAIM_KEY, orjson.dumps(next_claim))) is not None, "no claim can follow"
    entry = started("a-new-one", "w", None, b"1", request="r", at=1)
    assert fold(state, Record(state.offset, timestamp, *entry)) is not None, "no start can follow"
    for packed in [state.runs.snapshot(run_id) for run_id in state.runs.ids()]:
        assert pack(unpack(packed)) == packed


def _look(state: PartitionState, change: Change, timestamp: int) -> None:
    parse(change.event, state.offset - 1, timestamp)
    if change.run is None:
        return
    run_state(change.run, True)
    waiting_words(change.run, True)
    status_json(change.run, False)
    for wait in waits(change.run, True):
        sentence(wait, utc(timestamp))
    for op in change.run.open.values():
        _ = op.due_at, op.words("s")
    so_far = RunSoFar(change.run, state)
    runs._changing(so_far)
    _ = so_far.started_at, so_far.updated_at, so_far.ended_at, so_far.error, so_far.waiting_on
    if "error" in change.event:
        str(ErrorInfo.from_json(change.event["error"]))


# What foreign producers write: the batch, and what the inbox makes of its records.


@cache
def _batches() -> list[bytes]:
    plain = [
        record(0, b"one", _values()[0], [(b"ce_type", b"stepfold.start"), (b"ce_id", None)]),
        record(1, None, None),
        record(2, b"", b"", [(b"\xff", b"1")]),
    ]
    payload = b"".join(plain)
    return [
        batch(plain),
        batch(plain, base=2**40, attributes=TRANSACTIONAL, producer=7) + marker(2**40 + 3, COMMIT, 7),
        batch(plain, attributes=1, payload=gzip.compress(payload, 1)),
        batch(plain, attributes=2, payload=bytes(cramjam.snappy.compress_raw(payload))),
        batch(plain, attributes=3, payload=bytes(cramjam.lz4.compress(payload))),
        batch(plain, attributes=4, payload=bytes(cramjam.zstd.compress(payload))),
        batch(plain, attributes=1, payload=gzip.compress(b"\0" * 3_000_000)),
        kafka_records.encode(1, b"k", b"v", [("a", b"1"), ("b", None)]),
        batch([record(n, b"k%d" % n, b"{}") for n in range(20)]) + batch([record()], base=20),
    ]


def run_batch(data: bytes) -> None:
    """Decode it; what it gives is a record of the history, and one of the inbox, as well."""
    random = Random(zlib.crc32(data))
    if len(data) > 21 and random.random() < 0.7:  # or nothing behind the checksum would ever be looked at
        data = data[:17] + calc_crc32c(data[21:]).to_bytes(4, "big") + data[21:]
    aborted = random.choice((None, (), [(7, 0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found, after = kafka_records.decode(data, 0, kafka_records.raw, aborted)
        except kafka_records.Damaged as error:
            found, after = [error.raw], error.raw.offset
    assert isinstance(after, int)
    for raw in found[:50]:
        _fold_one(kafka_driver._record(raw))
        run_inbox_record(InboxRecord(f"shop.inbox/3/{raw.offset}", *raw[1:]))


def _fold_one(found: Record) -> None:
    state = PartitionState()
    change = fold(state, found)
    if change is not None:
        parse(change.event, found.offset, found.timestamp)


def _router() -> Router:
    return Router(CLIENT.log, cast(Any, None), CLIENT.registry, 900_000, Watch())


ROUTER = _router()


def run_inbox_record(given: InboxRecord) -> None:
    """It is refused with a reason that can be written, or becomes a record that the fold takes or leaves."""
    try:
        entry = ROUTER._entry(given)
    except Refused as refusal:
        str(refusal).encode("utf-8", "replace")
        return
    assert decode(entry.value) is not None, f"what was made of it is no event: {entry.value!r}"
    _fold_one(Record(0, max(-(2**63), min(given.timestamp, 2**63 - 1)), *entry))


@cache
def _inbox() -> list[bytes]:
    requests: list[dict[str, Any]] = [
        {"type": "start", "workflow": "typed", "run_id": "r", "data": {"name": "a", "amounts": [1, 2]}},
        {"type": "start", "workflow": "w", "version": "1", "data": None, "reply_to": "topic"},
        {"type": "signal", "run_id": "one", "signal": "go", "data": [1]},
        {"type": "cancel", "run_id": "one", "reason": "no"},
        {"type": "callback", "id": str(CallbackId("two", "asked", "n")), "data": [1]},
        {"type": "callback", "id": str(CallbackId("two", "asked", "n")), "error": {"type": "E", "message": "m"}},
        {"type": "callback", "id": str(CallbackId("two", "asked", "n")), "heartbeat": True},
        {"type": "event", "event": "e", "id": "x", "data": {}},
    ]
    values = [orjson.dumps(request) for request in requests]
    event = {"specversion": "1.0", "type": "stepfold.start", "source": "/s", "id": "7", "data": requests[0]}
    structured = orjson.dumps(event)
    encoded = orjson.dumps({**event, "data": None, "data_base64": "eyJ3b3JrZmxvdyI6InciLCJ0eXBlIjoic3RhcnQifQ=="})
    names = (
        b"ce_specversion\x011.0",
        b"ce_type\x01stepfold.signal",
        b"ce_source\x01/s",
        b"ce_id\x019",
        b"content-type\x01text/json",
    )
    headers = b"\x02".join(names)
    return [
        *(b"\n" + value for value in values),
        *(b"content-type\x01application/cloudevents+json; charset=utf-8\n" + value for value in (structured, encoded)),
        b"\n" + structured,
        *(headers + b"\n" + value for value in values),
    ]


def run_inbox(data: bytes) -> None:
    head, _, value = data.partition(b"\n")
    pairs = [one.partition(b"\x01") for one in head.split(b"\x02") if one]
    headers = tuple((name.decode("utf-8", "surrogateescape"), content if mark else None) for name, mark, content in pairs)
    key = None if len(data) % 3 else head
    run_inbox_record(InboxRecord("shop.inbox/3/1742", len(data) - 50, key, value or None, headers))


# Checkpoints.


LOOP = asyncio.new_event_loop()


@cache
def _stored() -> tuple[tuple[str, bytes], ...]:
    async def store() -> dict[str, bytes]:
        log = await _memory()
        keeper = Checkpoint(log, 0, lambda run_id: run_id == "two")
        state = await keeper.load()
        for one in await log.reader(0, 0).read(1000):
            keeper.touch(one.key, state)
            keeper.last = one
            change = fold(state, one)
            if change is not None and change.run is None:
                keeper.claimed = mark_of(one)
        await _save(keeper, state)
        return {
            key: value for portion in [one async for one in log.checkpoint_load(0)] for key, value in portion.items() if value
        }

    return tuple(LOOP.run_until_complete(store()).items())


async def _memory() -> MemoryDriver:
    log = MemoryDriver(clock=lambda: 1_900_000_000_000, log_id="the-log")
    await log.open()
    await log.append(0, [Entry(one.key, one.value) for one in _history()])
    return log


async def _save(keeper: Checkpoint, state: PartitionState) -> None:
    keeper.begin(state, state.claim)
    while keeper.pack_some(state):
        pass
    await keeper.commit()


@cache
def _truth() -> Any:
    async def read() -> Any:
        state = PartitionState()
        for one in await (await _memory()).reader(0, 0).read(1000):
            fold(state, one)
        return facts(state)

    return LOOP.run_until_complete(read())


def run_checkpoint(data: bytes) -> None:
    """One item beside others that are whole: what is loaded and folded on is the truth, and the next owner stores anew."""
    key_bytes, _, value = data.partition(b"\0")
    key = key_bytes.decode("utf-8", "replace")
    stored, truth = dict(_stored()), _truth()

    async def read() -> None:
        log = await _memory()
        await log.checkpoint_put(0, {**stored, key: value or None})
        keeper = Checkpoint(log, 0, lambda run_id: False)
        state = await keeper.load()
        for one in await log.reader(0, state.offset).read(1000):
            keeper.touch(one.key, state)
            keeper.last = one
            fold(state, one)
        if not key.endswith("/m"):  # a marker is believed if it fits together
            assert facts(state) == truth, "what was loaded is not what the log says"
        await keeper.look_again(state, state.claim)
        await _save(keeper, state)
        again = await Checkpoint(log, 0, lambda run_id: False).load()
        assert again.offset <= state.offset
        await log.close()

    try:
        LOOP.run_until_complete(read())
    except ConfigError:
        assert key.endswith("/m"), "only a marker can say that the log is without its beginning"


# Exports.


_SUM = re.compile(rb',"sha256":"[^"]*"\}$')


@cache
def _exports() -> list[bytes]:
    async def export() -> list[bytes]:
        log = await _memory()
        files: list[bytes] = []
        for run_id in ("one", "two", "three"):
            file = io.BytesIO()
            await audit.export_run(log, run_id, file)
            files.append(file.getvalue())
        return files

    return LOOP.run_until_complete(export())


def run_export(data: bytes) -> None:
    """Verified and replayed, as it is or with hashes that are made to fit, as a forger would."""
    if zlib.crc32(data) % 2:
        lines: list[bytes] = []
        before = "0" * 64
        for line in data.split(b"\n"):
            body = re.sub(rb'"prev":"[^"]*"', b'"prev":"%b"' % before.encode(), _SUM.sub(b"", line), count=1)
            before = hashlib.sha256(body).hexdigest()
            lines.append(body + b',"sha256":"' + before.encode() + b'"}' if body else b"")
        data = b"\n".join(lines)
    found = audit.verify(io.BytesIO(data))
    assert len(found.findings) <= data.count(b"\n") + 3
    assert all(finding.message for finding in found.findings)
    replayed = audit.replay(io.BytesIO(data), CLIENT)
    assert found.ok or replayed.outcome == "damaged", f"{found.findings} and {replayed}"


# Texts that people and programs give.


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def run_url(data: bytes) -> None:
    try:
        open_driver(_text(data))
    except ConfigError as error:
        str(error).encode("utf-8", "replace")


def run_app(data: bytes) -> None:
    try:
        load(_text(data))
    except Problem as problem:
        str(problem)


def run_duration(data: bytes) -> None:
    try:
        assert 0 <= duration_ms(_text(data)) <= 1000 * 366 * 86_400_000
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    assert len(said) < 400


def run_id(data: bytes) -> None:
    try:
        entry = started(checked_run_id(_text(data)), "w", None, b"1", request="r", at=1)
    except (ConfigError, ValueError):
        return
    assert fold(PartitionState(), Record(0, 1, *entry)) is not None, "an id that is accepted is one that the fold accepts"


def run_data(data: bytes) -> None:
    """`--data`, checked against the workflow's model."""
    text = _text(data)
    if text.startswith(("@", "-")):  # a file, whichever it is
        return
    try:
        value = json_of(text)
        for workflow in ("w", "typed"):
            found = CLIENT.registry.find(workflow, None)
            assert found is not None
            with contextlib.suppress(StepfoldError):
                found.encode_input(value)
    except Problem:
        pass


TARGETS = [
    Target("record", _values, run_record),
    Target("batch", _batches, run_batch),
    Target("inbox", _inbox, run_inbox),
    Target("checkpoint", lambda: [key.encode() + b"\0" + value for key, value in _stored()], run_checkpoint),
    Target("export", _exports, run_export),
    Target(
        "url",
        lambda: [
            *(b"memory://", b"memory://name", b"sqlite:///orders.db?durability=normal&partitions=4", b"sqlite:////a/b%20c.db"),
            *(b"kafka://a:9092,b:1/shop?session_timeout_s=10&patience_s=30", b"kafka://[::1]:9092/x", b"kafka://u:p@h:1/n"),
        ],
        run_url,
    ),
    Target(
        "app", lambda: [b"orders:client", b"a.b.c:d", b"shop.py:client", b"./x/shop.py", b"a:b:c", b":", b"json:dumps"], run_app
    ),
    Target("duration", lambda: [b"1d2h", b"90s", b"250ms", b"1.5h", b"0s", b"3w", b"1h30m15s"], run_duration),
    Target("id", lambda: [b"order-42", "заказ/7 #2".encode(), b"a" * 200, "👩‍👩‍👧".encode()], run_id),
    Target("data", lambda: [b'{"name":"a","amounts":[1,2],"more":{"a":[1.5,null]}}', b'"text"', b"17", b"[[],{}]"], run_data),
]
