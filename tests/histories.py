"""Histories as tests write them down: records of one partition, folded as they are written.

`Ledger.accepts` and `Ledger.rejects` are the "when" and "then" of the fold's tests; what was written before is the "given".
A `Keeper` reads a ledger as an owner does and keeps checkpoints of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from stepfold.core.fold import Change, PartitionState, fold
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver
from stepfold.events import FORMAT, PLAIN
from stepfold.log import CLAIM_KEY, Entry, Record
from stepfold.marks import mark_of
from stepfold.worker.checkpoint import Checkpoint

START_MS = 1_900_000_000_000
RUN = "order-42"
REQUESTS = {
    "started",
    "signal-received",
    "cancel-requested",
    "callback-completed",
    "callback-failed",
    "callback-heartbeat",
    "child-ended",
    "child-refused",
}


def record(offset: int, key: str, event: Any, timestamp: int = START_MS) -> Record:
    """`event`: a JSON value, or the very bytes."""
    return Record(offset, timestamp, key, event if isinstance(event, bytes) else orjson.dumps(event))


def facts(state: PartitionState) -> Any:
    """What a state says, but for how far it has read."""
    kept = orjson.loads(state.pack())[1:]
    return [*kept, state.needs_format, state.open_mark, len(state.ended)]


class Ledger:
    """One partition. `now_ms` is the log's clock and the writers'; a test moves it. Offsets leave gaps, as a log's may."""

    def __init__(self, *, partition: int = 0, partitions: int = 1, stride: int = 3) -> None:
        self.stride = stride
        self.state = PartitionState(partition, partitions)
        self.records: list[Record] = []
        self.now_ms = START_MS

    def write(self, event: Any, *, key: str) -> Change | None:
        """Append and fold whatever it is."""
        self.records.append(record(self.stride * len(self.records), key, event, self.now_ms))
        return fold(self.state, self.records[-1])

    def event(self, type: str, run_id: str = RUN, **fields: Any) -> dict[str, Any]:
        """An event of a run as its writer would make it now; a decision is under the current claim."""
        base: dict[str, Any] = {"type": type, "v": PLAIN, "run_id": run_id, "at": self.now_ms}
        if type in REQUESTS:
            base["request"] = f"request-{len(self.records)}"
        else:
            base["claim"] = self.state.claim
        return base | fields

    def accepts(self, type: str, run_id: str = RUN, **fields: Any) -> RunState:
        """Write an event that must be accepted; gives its run."""
        change = self.write(self.event(type, run_id, **fields), key=run_id)
        assert change is not None, f"{type} was rejected"
        assert change.run is not None
        return change.run

    def rejects(self, type: str, run_id: str = RUN, **fields: Any) -> None:
        """Write an event that must be rejected, and so change nothing."""
        self.rejects_value(self.event(type, run_id, **fields), key=run_id)

    def rejects_value(self, value: Any, *, key: str = RUN) -> None:
        before = facts(self.state)
        assert self.write(value, key=key) is None, f"{value!r} was accepted"
        assert facts(self.state) == before
        assert self.state.offset == self.records[-1].offset + 1

    def claim(self, owner: str | None = "worker-a", *, prev: int | None = None, v: int = FORMAT, **fields: Any) -> Change | None:
        """Write a claim; it follows the current one unless said otherwise."""
        event = {
            "type": "claim",
            "v": v,
            "at": self.now_ms,
            "prev": self.state.claim if prev is None else prev,
            "owner": owner,
            "nonce": f"nonce-{len(self.records)}",
            **fields,
        }
        return self.write(event, key=CLAIM_KEY)

    def start(self, run_id: str = RUN, **fields: Any) -> RunState:
        """A run that has begun."""
        return self.accepts("started", run_id, **{"workflow": "process-order", "version": "1", "input": {"n": 1}, **fields})

    @property
    def run(self) -> RunState:
        run = self.state.runs.get(RUN)
        assert run is not None
        return run


def owned() -> Ledger:
    """A partition that `worker-a` owns."""
    ledger = Ledger()
    assert ledger.claim() is not None
    return ledger


def begun() -> Ledger:
    """An owned partition in which `order-42` has begun."""
    ledger = owned()
    ledger.start()
    return ledger


class Keeper:
    """One reader of a memory log that holds a ledger's records, with the checkpoints beside it."""

    def __init__(self, log: MemoryDriver) -> None:
        self.log = log
        self.state = PartitionState()
        self.checkpoint = Checkpoint(log, 0, self._is_idle)

    async def load(self) -> PartitionState:
        self.state = await self.checkpoint.load()
        return self.state

    def _is_idle(self, run_id: str) -> bool:
        return self.state.runs.is_idle(run_id)

    def run(self, run_id: str) -> RunState:
        run = self.state.runs.get(run_id)
        assert run is not None
        return run

    def fold(self, records: Iterable[Record]) -> None:
        """Fold those that are new."""
        for each in records:
            if each.offset >= self.state.offset:
                self.checkpoint.touch(each.key, self.state)
                fold(self.state, each)

    async def mark(self) -> None:
        """Note what stands in the log below what was folded; ledgers and logs have clocks of their own."""
        for record in await self.log.reader(0, 0).read(self.state.offset):
            self.checkpoint.last = record
            if record.offset == self.state.claim:
                self.checkpoint.claimed = mark_of(record)

    async def look_again(self) -> None:
        await self.checkpoint.look_again(self.state, self.state.claim)

    async def save(self) -> None:
        """A checkpoint of all that was folded, under the claim that is current there."""
        await self.mark()
        self.checkpoint.begin(self.state, self.state.claim)
        while self.checkpoint.pack_some(self.state):
            pass
        await self.checkpoint.commit()


async def stored(ledger: Ledger, log: MemoryDriver) -> MemoryDriver:
    """`log`, open, with the ledger's records in it, each at its offset."""
    assert ledger.stride == 1
    await log.open()
    _, end = await log.bounds(0)
    for each in ledger.records[end:]:
        await log.append(0, [Entry(each.key, each.value)])
    return log


async def reloaded(ledger: Ledger, log: MemoryDriver) -> PartitionState:
    """What a reader that starts from the checkpoints makes of the ledger."""
    keeper = Keeper(await stored(ledger, log))
    await keeper.load()
    keeper.fold(ledger.records)
    return keeper.state
