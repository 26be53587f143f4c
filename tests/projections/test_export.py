"""An exported history: every byte of it is checked, and today's code runs over it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, cast

import orjson
import pytest
from eventually import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_serializer
from recording import used_again
from unit.test_fold_properties import BEGINNING, CHOICES, Author, Choice

from stepfold import Client, Context, Retry, RunNotFound, Step
from stepfold.authoring.workflow import Registry
from stepfold.core.fold import PartitionState, fold
from stepfold.core.snapshot import pack
from stepfold.drivers import MemoryDriver
from stepfold.log import CLAIM_KEY, Entry, Log, partition_of
from stepfold.projections import audit
from stepfold.projections.audit import Export, Finding, Replay, Verification, export_run, replay, verify
from stepfold.values.codec import Codec


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def check(data: bytes) -> Verification:
    return verify(io.BytesIO(data))


def problems(data: bytes) -> list[tuple[int, str]]:
    return [(finding.line, finding.problem) for finding in check(data).findings]


async def exported(log: Log, run_id: str) -> tuple[bytes, Export]:
    file = io.BytesIO()
    written = await export_run(log, run_id, file)
    return file.getvalue(), written


def total_of(total: int) -> dict[str, int]:
    return {"total": total}


def workflows(client: Client | Registry, **changes: Any) -> None:
    """The workflows of these tests; `changes` make another day's code of them."""
    registry = client.registry if isinstance(client, Client) else client
    of = Client("memory://")
    tries = count()
    step_ids: list[str] = changes.get("steps", ["reserve", "charge"])
    answer: Callable[[int], Any] = changes.get("answer", total_of)

    def flaky(n: int) -> int:
        if next(tries) % 2 == 0:
            raise ValueError("try again")
        return n

    @of.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> Any:
        total = 0
        for step_id in step_ids:
            total += await step.run(step_id, flaky, ctx.input.data, retry=Retry(3, backoff="1ms"))
        await step.wait_for_signal("approval", signal="approve")
        return answer(total)

    @of.workflow(id="fails")
    async def fails(ctx: Context[None], step: Step) -> None:
        await step.sleep("moment", "1ms")
        raise ValueError(changes.get("message", "no"))

    @of.workflow(id="sleeps")
    async def sleeps(ctx: Context[None], step: Step) -> None:
        await step.sleep("long", changes.get("duration", "10d"))

    for workflow in of.registry:
        if workflow.id not in changes.get("without", ()):
            registry.add(workflow)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """With the runs order-1 (completed), fails-1 (failed), sleeps-1 (cancelled) and sleeps-2 (open)."""
    client = Client("memory://")
    workflows(client)
    async with client:
        async with client.worker():
            completed = await client.start_workflow("order", 21, run_id="order-1")
            failed = await client.start_workflow("fails", run_id="fails-1")
            cancelled = await client.start_workflow("sleeps", run_id="sleeps-1")
            still_open = await client.start_workflow("sleeps", run_id="sleeps-2")

            async def sleep_both() -> bool:
                return [(await run.status()).state for run in (cancelled, still_open)] == ["waiting", "waiting"]

            await eventually(sleep_both)
            await completed.signal("approve", "fïne")
            await cancelled.cancel("enough")
            await asyncio.gather(completed.result(), failed.result(), cancelled.result(), return_exceptions=True)
        yield client


@pytest.fixture
async def order(client: Client) -> bytes:
    return (await exported(client.log, "order-1"))[0]


# Export.


async def test_the_values_are_those_of_the_log_byte_for_byte(client: Client, order: bytes) -> None:
    lines = [orjson.loads(line) for line in lines_of(order)]
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    in_the_log = {record.offset: record for record in await client.log.find(0, ["order-1", CLAIM_KEY])}
    state, accepted = PartitionState(), list[int]()
    for offset, record in in_the_log.items():
        if fold(state, record) is not None and record.key != CLAIM_KEY:
            accepted.append(offset)
    records = lines[1:-1]
    assert [line["offset"] for line in records if line["key"] == "order-1"] == accepted
    for line in records:
        record = in_the_log[line["offset"]]
        assert (line["timestamp"], line["key"], line["value"].encode()) == record[1:]


async def test_verified_without_the_log(client: Client, order: bytes, tmp_path: Path) -> None:
    _, written = await exported(client.log, "order-1")
    await export_run(client.log, "order-1", tmp_path / "order.jsonl")
    found = verify(tmp_path / "order.jsonl")
    assert found == Verification([], "order-1", written.records, written.head)
    assert found.ok and found.records >= 8


async def test_the_head_depends_on_the_log_alone(client: Client, order: bytes) -> None:
    again, written = await exported(client.log, "order-1")
    assert lines_of(again)[:-1] == lines_of(order)[:-1]
    assert check(order).head == written.head
    before, _ = await exported(client.log, "sleeps-2")
    await client.run("sleeps-2").cancel()
    after, _ = await exported(client.log, "sleeps-2")
    assert lines_of(after)[: len(lines_of(before)) - 1] == lines_of(before)[:-1], "an open run's export goes on"
    assert len(after) > len(before)


async def test_claims_between_the_records_go_along() -> None:
    author = Author()
    author.write(BEGINNING)
    author.write([("wait", 0, 0), ("claim", 2, 0), ("garbage", 0, 0), ("complete", 0, 0), ("claim", 3, 0), ("repeat", 1, 0)])
    author.write([("complete", 0, 1), ("claim", 1, 0)])
    log = MemoryDriver()
    await log.open()
    for record in author.ledger.records:
        await log.append(0, [Entry(record.key, record.value)])
    data, _ = await exported(log, "a")
    assert check(data).ok
    kinds = [orjson.loads(orjson.loads(line)["value"])["type"] for line in lines_of(data)[1:-1]]
    assert kinds == ["started", "wait-started", "claim", "step-completed", "claim", "step-completed"]
    await log.close()


async def test_of_an_id_that_is_used_again_the_last_run_is_exported() -> None:
    log = await used_again()
    data, _ = await exported(log, "order-42")
    assert check(data).ok
    events = [orjson.loads(orjson.loads(line)["value"]) for line in lines_of(data)[1:-1]]
    assert [event["type"] for event in events] == ["started", "sleep-scheduled"]
    await log.close()


@given(CHOICES)
@settings(max_examples=30, deadline=None)
def test_any_run_of_any_history_is_exported_and_verified(choices: list[Choice]) -> None:
    author = Author()
    author.write(BEGINNING + choices)
    now_ms = 0

    async def export_all() -> None:
        nonlocal now_ms
        log = MemoryDriver(clock=lambda: now_ms)
        await log.open()
        state = PartitionState()
        last: dict[str, bytes] = {}
        for record in author.ledger.records:
            now_ms = record.timestamp
            await log.append(0, [Entry(record.key, record.value)])
        reader = log.reader(0, 0)
        for record in await reader.read(10_000):
            change = fold(state, record)
            if change is not None and change.run is not None:
                last[change.run.id] = pack(change.run)
        for run_id in last:
            data, _ = await exported(log, run_id)
            assert check(data).findings == []
        await log.close()

    asyncio.run(export_all())


async def test_a_run_that_is_not_there(client: Client) -> None:
    with pytest.raises(RunNotFound, match="has no run 'nobody'"):
        await export_run(client.log, "nobody", io.BytesIO())


# Verify.


def test_every_altered_byte_is_found(order: bytes) -> None:
    random = Random(7)
    starts = [0]
    for line in lines_of(order):
        starts.append(starts[-1] + len(line))
    for place in range(len(order)):
        other = random.choice([byte for byte in (order[place] ^ 1, order[place] ^ 32, 0, 10, 255) if byte != order[place]])
        line = next(number for number, start in enumerate(starts) if place < start)
        found = check(order[:place] + bytes([other]) + order[place + 1 :]).findings
        assert found, f"byte {place}"
        assert (found[0].line, found[0].problem) == (line, "altered"), f"byte {place}: {found}"


def test_a_line_that_is_missing_moved_repeated_or_cut_off_is_named(order: bytes) -> None:
    lines = lines_of(order)
    for number in range(1, len(lines)):
        without = lines[: number - 1] + lines[number:]
        assert problems(b"".join(without))[0] == (number, "missing")
    assert problems(b"".join(lines[:3] + lines[5:])) == [(4, "missing")]
    assert "2 of the export" in check(b"".join(lines[:3] + lines[5:])).findings[0].message
    swapped = [*lines[:3], lines[4], lines[3], *lines[5:]]
    assert problems(b"".join(swapped)) == [(4, "moved"), (5, "moved")]
    assert problems(b"".join([*lines[:4], lines[2], *lines[4:]])) == [(5, "moved")]
    for end in range(1, len(order)):
        assert not check(order[:end]).ok
    assert problems(b"".join(lines[:-1])) == [(len(lines), "missing")]
    assert problems(order + b"more\n") == [(len(lines) + 1, "altered")]
    assert problems(order + b"more") == [(len(lines) + 1, "altered")]
    assert problems(order + lines[-1]) == [(len(lines) + 1, "moved")]
    added = forged([*lines, lines[2]], len(lines) + 1, lambda fields: fields.update(n=len(lines) + 1), hash_on=True)
    added = forged(lines_of(added), len(lines), dict, hash_on=True)
    assert problems(added) == [(len(lines) + 1, "altered")]
    assert problems(b"") == [(0, "missing")]


def forged(lines: list[bytes], number: int, change: Callable[[dict[str, Any]], object], *, hash_on: bool) -> bytes:
    """An export with one line changed and hashed again, and all after it as well with `hash_on`."""
    from hashlib import sha256

    made = list[bytes]()
    prev = ""
    for place, line in enumerate(lines, 1):
        if place < number or (place > number and not hash_on):
            made.append(line)
            continue
        fields = orjson.loads(line)
        fields.pop("sha256")
        if place == number:
            change(fields)
        else:
            fields["prev"] = prev
        body = orjson.dumps(fields)[:-1]
        prev = sha256(body).hexdigest()
        made.append(b'%b,"sha256":"%b"}\n' % (body, prev.encode()))
    return b"".join(made)


def test_a_line_altered_together_with_its_hash_does_not_fit_the_next(order: bytes) -> None:
    lines = lines_of(order)
    for number in range(2, len(lines)):
        data = forged(lines, number, lambda fields: fields.update(timestamp=1), hash_on=False)
        assert problems(data) == [(number, "altered")]


def test_what_is_forged_to_its_end_has_another_head_and_must_still_obey_the_rule(order: bytes) -> None:
    lines = lines_of(order)

    def raise_attempt(fields: dict[str, Any]) -> None:
        event = orjson.loads(fields["value"])
        event["attempt"] += 1
        fields["value"] = orjson.dumps(event).decode()

    number = next(number for number, line in enumerate(lines, 1) if b"step-failed" in line)
    data = forged(lines, number, raise_attempt, hash_on=True)
    assert problems(data) == [(number, "rejected")]
    sly = forged(lines, 2, lambda fields: fields.update(timestamp=1), hash_on=True)
    assert check(sly).ok and check(sly).head != check(order).head
    changes: list[tuple[int, dict[str, Any], tuple[int, str]]] = [
        (1, {"format": 2}, (1, "altered")),
        (1, {"partitions": 0}, (1, "altered")),
        (1, {"run_id": "order-2"}, (2, "rejected")),
        (1, {"claim": -7}, (3, "rejected")),
        (2, {"offset": "first"}, (2, "altered")),
        (2, {"value": None}, (2, "altered")),
        (len(lines), {"records": 3}, (len(lines), "altered")),
    ]
    for number, change, expected in changes:
        assert problems(forged(lines, number, lambda fields, change=change: fields.update(change), hash_on=True))[0] == expected
    assert problems(forged(lines, 1, lambda fields: fields.update(prev="1" * 64), hash_on=True)) == [(1, "altered")]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.jsonl"):
        [finding] = verify(path).findings
        assert (finding.line, finding.problem) == (0, "unreadable")
        assert replay(path, Registry()).outcome == "damaged"


class Endless(io.BytesIO):
    """What begins like this and goes on for ever, as `/dev/zero` does."""

    def __init__(self, begin: bytes, then: bytes) -> None:
        super().__init__(begin)
        self.then = then
        self.given = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None and size > 0, "all of it would never end"
        found = super().read(size) or (self.then * size)[:size]
        self.given += len(found)
        return found


@pytest.mark.parametrize("then", [b"\0", b"no line of ours\n", b"\n"])
def test_of_what_never_ends_no_more_is_read_than_shows_that_it_is_no_export(then: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_LONGEST_LINE_BYTES", 3_000_000)
    file = Endless(b"", then)
    [finding] = verify(file).findings
    assert (finding.line, finding.problem) == (1, "unreadable")
    assert replay(Endless(b"", then), Registry()).outcome == "damaged"
    assert file.given < 6_000_000


async def test_an_export_with_a_line_that_never_ends(order: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_LONGEST_LINE_BYTES", 3_000_000)
    [finding] = verify(Endless(order, b"\0")).findings
    assert finding.problem == "unreadable"
    assert f"line {len(lines_of(order)) + 1} is longer" in finding.message


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b'{"n":1,"prev":"', b"0" * 64, b'"', b',"sha256":"', b"}\n"])).map(b"".join)
)
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_fail(data: bytes) -> None:
    assert not check(data).ok
    assert replay(io.BytesIO(data), Registry()).outcome == "damaged"


# Replay.


def again(data: bytes, **changes: Any) -> Replay:
    registry = Registry()
    workflows(registry, **changes)
    return replay(io.BytesIO(data), registry)


@pytest.mark.parametrize("run_id", ["order-1", "fails-1", "sleeps-1", "sleeps-2"])
async def test_the_same_code_agrees(client: Client, run_id: str) -> None:
    data, _ = await exported(client.log, run_id)
    found = again(data)
    assert (found.outcome, found.run_id, found.ok) == ("agrees", run_id, True), found
    assert replay(io.BytesIO(data), client) == found


def test_another_result_is_told(order: bytes) -> None:
    def one_more(total: int) -> dict[str, int]:
        return {"total": total + 1}

    def as_float(total: int) -> dict[str, float]:
        return {"total": float(total)}

    def unspeakable(total: int) -> object:
        return object()

    found = again(order, answer=one_more)
    assert (found.outcome, found.expected, found.found) == ("differs", 'completed {"total":42}', 'completed {"total":43}')
    assert found.line == len(lines_of(order)) - 1
    assert again(order, answer=as_float).found == 'completed {"total":42.0}'
    assert again(order, answer=unspeakable).found.startswith("failed ValueInvalid")


async def test_another_error_is_told(client: Client) -> None:
    data, _ = await exported(client.log, "fails-1")
    found = again(data, message="yes")
    assert (found.outcome, found.expected, found.found) == ("differs", "failed ValueError: no", "failed ValueError: yes")


def test_the_first_divergence_is_told_with_its_place(order: bytes) -> None:
    found = again(order, steps=["reserve", "bill"])
    assert found.outcome == "diverges"
    assert found.expected == "step.run 'charge'"
    assert found.found.startswith("step.run 'bill' at ")
    [source] = found.source
    file, _, number = source.rpartition(":")
    assert file == __file__
    assert "step.run(step_id, flaky" in Path(file).read_text().splitlines()[int(number) - 1]
    lines = lines_of(order)
    assert (
        found.line is not None and b'step_id\\":\\"charge' in lines[found.line - 1] and b"step-completed" in lines[found.line - 1]
    )

    more = again(order, steps=["reserve", "charge", "ship"])
    assert (more.outcome, more.expected) == ("diverges", "a wait for a signal 'approval'")
    assert "step.run 'ship'" in more.found


async def test_code_that_does_not_come_to_the_end_diverges(client: Client) -> None:
    data, _ = await exported(client.log, "fails-1")

    registry = Registry()
    other = Client("memory://")

    @other.workflow(id="fails")
    async def fails(ctx: Context[None], step: Step) -> None:
        await step.sleep("moment", "1ms")
        await step.sleep("another", "1ms")

    for workflow in other.registry:
        registry.add(workflow)
    found = replay(io.BytesIO(data), registry)
    assert (found.outcome, found.expected) == ("diverges", "the run is failed")
    assert found.found.startswith("the code waits for a sleep 'another' at ")
    assert len(found.source) == 1


class Unwritten(BaseModel):
    number: int = 1

    @field_serializer("number")
    def written(self, number: int) -> int:
        raise SystemExit("in the user's type")


def unwritten(total: int) -> Unwritten:
    return Unwritten()


def test_an_end_that_cannot_be_written_is_another_one(order: bytes) -> None:
    registry = Registry()
    workflows(registry, answer=unwritten)
    found = registry.find("order", None)
    assert found is not None
    found.output = Codec(Unwritten, "the result")
    replayed = replay(io.BytesIO(order), registry)
    assert replayed.outcome == "differs" and "in the user's type" in replayed.found, replayed


def test_without_the_workflow(order: bytes) -> None:
    found = again(order, without=["order"])
    assert (found.outcome, found.message[:42]) == ("unknown", "no workflow 'order' version '1' is registe")


def test_an_altered_file_is_not_replayed(order: bytes) -> None:
    found = again(order.replace(b"started", b"strated"))
    assert (found.outcome, found.line) == ("damaged", 2)


async def test_a_quarantined_run_that_was_cancelled_agrees_with_mended_code() -> None:
    """Its code never came to the end, so there is no end to compare."""
    log = MemoryDriver()
    await log.open()
    base = {"v": 1, "run_id": "sleeps-9", "at": 1}
    decision = {**base, "claim": 0}
    error = {"type": "NonDeterminism", "message": "other steps"}
    events: list[dict[str, Any]] = [
        {**base, "type": "started", "request": "r", "workflow": "sleeps", "version": "1", "input": None},
        {**decision, "type": "sleep-scheduled", "step_id": "long", "wake_at": 5},
        {**decision, "type": "quarantined", "error": error},
        {**base, "type": "cancel-requested", "request": "c"},
        {**decision, "type": "cancelled", "reason": None},
    ]
    claim = {"type": "claim", "v": 1, "at": 1, "prev": -1, "owner": "worker", "nonce": "n"}
    await log.append(0, [Entry(CLAIM_KEY, orjson.dumps(claim)), *(Entry("sleeps-9", orjson.dumps(event)) for event in events)])
    data, _ = await exported(log, "sleeps-9")
    assert again(data).outcome == "agrees"
    await log.close()


async def test_what_the_driver_adds_needs_a_connection() -> None:
    client = Client("memory://")

    @client.workflow(id="extended")
    async def extended(ctx: Context[None], step: Step) -> str:
        await step.run("one", lambda: 1)
        return str(ctx.ext.namespace)

    log = MemoryDriver()
    await log.open()
    assert partition_of("extended-1", 1) == 0
    base = {"v": 1, "run_id": "extended-1", "at": 1}
    claim = {"type": "claim", "v": 1, "at": 1, "prev": -1, "owner": "worker", "nonce": "n"}
    start = {**base, "type": "started", "request": "r", "workflow": "extended", "version": "1", "input": None}
    one = {**base, "claim": 0, "type": "step-completed", "step_id": "one", "attempt": 1, "result": 1}
    end = {**base, "claim": 0, "type": "completed", "result": "shop"}
    await log.append(
        0, [Entry(CLAIM_KEY, orjson.dumps(claim)), *(Entry("extended-1", orjson.dumps(e)) for e in (start, one, end))]
    )
    data, _ = await exported(log, "extended-1")
    found = replay(io.BytesIO(data), client.registry)
    assert found.outcome == "differs"
    assert "replay with a client, inside `async with client:`" in found.found
    await log.close()


def test_findings_are_plain_values() -> None:
    assert check(b"x").findings == [
        Finding(1, "unreadable", "this is not an export of a run: no line begins like a line of an export")
    ]
    assert check(b'{"n":1,"prev":"' + b"0" * 64 + b'","x":1}\n').findings[0] == Finding(
        1, "altered", "line 1 was altered: its bytes are not those that its hash was made of"
    )


def test_a_file_that_is_no_export_is_not_called_altered(order: bytes) -> None:
    for data in (b'{"a": 1}\n' * 50, b"\x00\n\n", order.replace(b'{"n":', b'{ "n": ')):
        [finding] = check(data).findings
        assert finding.problem == "unreadable" and "not an export" in finding.message
    assert check(b"").findings[0].message == "the file is empty"


def test_a_file_that_was_opened_as_a_text_is_no_error() -> None:
    [finding] = verify(cast(Any, io.StringIO("{}"))).findings
    assert "opened as a text" in finding.message


@pytest.mark.parametrize("number", [2**63, -(2**63), 2**63 - 1])
def test_numbers_that_no_log_has(order: bytes, number: int) -> None:
    lines = lines_of(order)
    for name in ("offset", "timestamp"):
        data = forged(lines, 2, lambda fields, name=name: fields.update({name: number}), hash_on=True)
        assert not check(data).ok
