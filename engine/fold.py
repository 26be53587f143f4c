"""The fold: from the records of one partition, in order, to the state of its runs.

Pure, total and the same for every reader: no I/O, no clock, no randomness, no exception whatever the record holds. A
record is accepted iff

1. a decision was written under the claim that is current at its offset, and
2. its precondition holds: the step has no result yet and the attempt is the next one, the wait is open, the run is
   unknown (`started`) or not ended.

Everything else changes nothing. That alone makes duplicates, zombies and races harmless.

The fold does not know the user's code: whether a step was wanted is replay's question. What replay needs is the run's
`journal`: what was delivered to the code, in the log's order. A run depends on nothing but the claims and its own
records, so folding only those gives the same run; that is how clients read one run.

State is changed in place (a run of 10,000 steps costs 10,000 times the same); `RunState.pack` and `PartitionState.pack`
give values that can be kept and compared.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator, MutableMapping
from enum import StrEnum
from typing import Any, NamedTuple, cast

import orjson

from .events import FORMAT, SHAPES, decode
from .log import CLAIM_KEY, Record, partition_of
from .packing import Packer

REMEMBER_MS = 24 * 3600 * 1000
"""How long after its end a run's id cannot be used again, by the log's time."""
FORGET_MS = 2 * REMEMBER_MS
"""When it is dropped: who drops it looks at a clock that may be ahead of the log's, and must judge as those who keep it."""


class Kind(StrEnum):
    """What an entry of the journal brings to the code."""

    RESULT = "result"  # (step_id, RESULT, now, result)
    ERROR = "error"  # (step_id, ERROR, now, [attempts, error])
    WOKEN = "woken"  # (step_id, WOKEN, now, None)
    SIGNAL = "signal"  # (step_id, SIGNAL, now, [signal, data, request])
    TIMEOUT = "timeout"  # (step_id, TIMEOUT, now, None)
    CANCEL = "cancel"  # ("", CANCEL, now, reason)


class Delivery(NamedTuple):
    """One entry of the journal. `now`: the run's time, ms."""

    step_id: str
    kind: str
    now: int
    value: Any


_delivery = Delivery._make  # half the price of the constructor, for the most frequent entry


class OpenStep:
    """A step with a failed, lost or announced attempt behind it and no result yet."""

    __slots__ = ("attempts", "error", "failures", "heartbeat", "heartbeat_at", "lost", "next_at", "started")
    kind = "step"

    def __init__(self) -> None:
        self.attempts = 0  # attempts that are over
        self.failures = 0  # of these, how many count against max_attempts
        self.lost = 0  # how many were lost with their worker, in a row, up to now
        self.started = False  # the next attempt was announced (at_most_once)
        self.next_at: int | None = None
        self.error: Any = None
        self.heartbeat: Any = None
        self.heartbeat_at = 0  # `at` of the last one: one that comes again, or late, must not take its place


class OpenSleep:
    """A sleep that has not ended."""

    __slots__ = ("wake_at",)
    kind = "sleep"

    def __init__(self, wake_at: int) -> None:
        self.wake_at = wake_at


class OpenWait:
    """A wait for a signal that has not come."""

    __slots__ = ("signal", "timeout_at")
    kind = "wait"

    def __init__(self, signal: str, timeout_at: int | None) -> None:
        self.signal = signal
        self.timeout_at = timeout_at


Open = OpenStep | OpenSleep | OpenWait
_OPEN: dict[str, Callable[[], Open]] = {"step": OpenStep, "sleep": lambda: OpenSleep(0), "wait": lambda: OpenWait("", None)}


class RunState:
    """One run, as its events tell it."""

    __slots__ = (
        "awaits_worker",
        "cancel_requested",
        "decided",
        "done",
        "ended_at",
        "error",
        "executed",
        "folded",
        "id",
        "idle",
        "input",
        "journal",
        "now",
        "open",
        "phase",
        "reason",
        "requests",
        "result",
        "signals",
        "start",
        "started_at",
        "stored",
        "trigger",
        "version",
        "workflow",
    )

    def __init__(self, run_id: str, workflow: str, version: str | None, input: Any, start: int, now: int) -> None:
        self.id = run_id
        self.workflow = workflow
        self.version = version
        self.input = input
        self.trigger: Any = None
        self.start = start  # offset of `started`
        self.started_at = now
        self.now = now
        self.phase = "open"  # open | quarantined | completed | failed | cancelled
        self.decided = False  # some worker has decided something
        self.awaits_worker = False  # the last owner did not know the workflow
        self.cancel_requested = False
        self.journal: list[Delivery] = []
        self.done: set[str] = set()  # steps, sleeps and waits that are over
        self.open: dict[str, Open] = {}  # those that have begun, in that order
        self.signals: dict[str, list[list[Any]]] = {}  # not yet taken: signal -> [[data, request], ...]
        self.requests: set[str] = set()  # ids of the requests that were accepted
        self.result: Any = None
        self.error: Any = None
        self.reason: str | None = None
        self.ended_at: int | None = None
        # What an owner knows besides; no part of the packed value.
        self.folded = start + 1  # records of this run below this offset are in a snapshot it was made from
        self.idle = False  # its code has run as far as the journal goes and waits only for what is open
        self.executed = -1  # how many entries of the journal its code is known to have seen
        self.stored = -1  # the claim under which a snapshot of it is stored

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def pack(self) -> bytes:
        """A compact value from which `unpack` makes an equal run."""
        return orjson.dumps(
            [
                self.id,
                self.workflow,
                self.version,
                self.input,
                self.trigger,
                self.start,
                self.started_at,
                self.now,
                self.phase,
                self.decided,
                self.awaits_worker,
                self.cancel_requested,
                [tuple(delivery) for delivery in self.journal],
                sorted(self.done - {delivery.step_id for delivery in self.journal}),
                [[step_id, op.kind, *(getattr(op, name) for name in op.__slots__)] for step_id, op in self.open.items()],
                [[name, waiting] for name, waiting in self.signals.items()],
                sorted(self.requests),
                self.result,
                self.error,
                self.reason,
                self.ended_at,
            ]
        )

    @classmethod
    def unpack(cls, data: bytes) -> RunState:
        """The run that was packed. Raises ValueError and the like on anything else."""
        fields = orjson.loads(data)
        run = cls(fields[0], fields[1], fields[2], fields[3], fields[5], fields[6])
        (run.trigger, run.now, run.phase, run.decided, run.awaits_worker, run.cancel_requested) = (fields[4], *fields[7:12])
        run.journal = list(map(_delivery, fields[12]))
        run.done = {delivery.step_id for delivery in run.journal if delivery.step_id}
        run.done.update(fields[13])
        for step_id, kind, *values in fields[14]:
            op = run.open[step_id] = _OPEN[kind]()
            for name, value in zip(op.__slots__, values, strict=True):
                setattr(op, name, value)
        run.signals = dict(fields[15])
        run.requests = set(fields[16])
        (run.result, run.error, run.reason, run.ended_at) = fields[17:21]
        return run


_IDLE = struct.Struct("<?qq")  # whether idle, folded, stored
_BUSY = struct.Struct("<?qqi")  # and executed


class Runs(MutableMapping[str, RunState]):
    """Runs by id. Those whose code is not in memory may be put away, packed: some 250 bytes each with all that there is to it.

    What is asked for is unpacked and stays so, except by `peek` and `snapshot`.
    """

    __slots__ = ("_packed", "_packer", "at_hand")

    def __init__(self) -> None:
        self.at_hand: dict[str, RunState] = {}
        self._packed: dict[str, bytes] = {}
        self._packer: Packer | None = None

    def __len__(self) -> int:
        return len(self.at_hand) + len(self._packed)

    def __iter__(self) -> Iterator[str]:
        yield from self.at_hand
        yield from self._packed

    def __contains__(self, run_id: object) -> bool:
        return run_id in self.at_hand or run_id in self._packed

    def __getitem__(self, run_id: str) -> RunState:
        run = self.at_hand.get(run_id)
        if run is None:
            run = self.peek(run_id)
            del self._packed[run_id]
            self.at_hand[run_id] = run
        return run

    def get(self, run_id: str, default: Any = None) -> Any:
        run = self.at_hand.get(run_id)
        return run if run is not None else self[run_id] if run_id in self._packed else default

    def __setitem__(self, run_id: str, run: RunState) -> None:
        self._packed.pop(run_id, None)
        self.at_hand[run_id] = run

    def __delitem__(self, run_id: str) -> None:
        if self._packed.pop(run_id, None) is None:
            del self.at_hand[run_id]

    def put_away(self, run_id: str) -> None:
        """Pack a run whose state nobody holds."""
        run = self.at_hand.pop(run_id)
        self.put(run_id, run.workflow, run.pack(), run.folded, run.stored, None if run.idle else run.executed)

    def put(self, run_id: str, workflow: str, snapshot: bytes, folded: int, stored: int, executed: int | None = None) -> None:
        """Take a run as its snapshot: an idle one, or one whose code has seen as much as `executed` says."""
        if self._packer is None:
            self._packer = Packer()
        head = _IDLE.pack(True, folded, stored) if executed is None else _BUSY.pack(False, folded, stored, executed)
        self._packed[run_id] = head + self._packer.pack(workflow, run_id, snapshot)

    def peek(self, run_id: str) -> RunState:
        """The run; one that is packed stays so, and what is given is a copy. Raises KeyError."""
        run = self.at_hand.get(run_id)
        if run is not None:
            return run
        packed = self._packed[run_id]
        run = RunState.unpack(self._snapshot(run_id, packed))
        run.id = run_id  # one string, whoever keeps it
        run.idle, run.folded, run.stored = _IDLE.unpack_from(packed)
        if run.idle:
            run.executed = len(run.journal) if run.decided else -1
        else:
            *_, run.executed = _BUSY.unpack_from(packed)
        return run

    def snapshot(self, run_id: str) -> bytes:
        """What `RunState.pack` gives. Raises KeyError."""
        packed = self._packed.get(run_id)
        return self.at_hand[run_id].pack() if packed is None else self._snapshot(run_id, packed)

    def mark_stored(self, run_id: str, claim: int) -> None:
        """Note under which claim its snapshot is stored. Raises KeyError."""
        packed = self._packed.get(run_id)
        if packed is None:
            self.at_hand[run_id].stored = claim
        else:
            idle, folded, _ = _IDLE.unpack_from(packed)
            self._packed[run_id] = _IDLE.pack(idle, folded, claim) + packed[_IDLE.size :]

    def is_idle(self, run_id: str) -> bool:
        """What is known of a run's code without having it in memory. Raises KeyError."""
        packed = self._packed.get(run_id)
        return self.at_hand[run_id].idle if packed is None else bool(packed[0])

    def _snapshot(self, run_id: str, packed: bytes) -> bytes:
        assert self._packer is not None
        head = _IDLE if packed[0] else _BUSY
        return self._packer.unpack(run_id, packed[head.size :])


def fingerprint(run_id: str) -> int:
    """128 bits that stand for a run id."""
    return int.from_bytes(hashlib.blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=16).digest())


class Ended:
    """The ids of ended runs, remembered for `REMEMBER_MS`: fingerprints with the time of the end.

    Kept in chunks of bytes in the order of the ends, so that a checkpoint writes only the chunk that grows: a time to count
    from, then the entries. An index says in which chunks to look for an id. A chunk that was taken back is not indexed at
    once, so that a restart does not wait for that: each question indexes some, and searches those that are left.
    """

    BASE = struct.Struct(">q")
    ENTRY = struct.Struct(">12sI")
    SPAN_MS = 2**32  # of an entry's time; a chunk counts from half of it before its first one, for the log's time may step back
    CHUNK_ENTRIES = 4096
    BUCKETS = 4096
    HINT_BYTES = 8  # of a mark's 12: the search in a bucket is a search for these
    PLACE_BYTES = HINT_BYTES + 4

    def __init__(self) -> None:
        self.chunks: dict[int, bytearray] = {}
        self._index: dict[int, bytearray] = {}  # bucket -> places: a hint and the number of the chunk
        self._unindexed: list[int] = []

    def __len__(self) -> int:
        return sum((len(chunk) - self.BASE.size) // self.ENTRY.size for chunk in self.chunks.values())

    def add(self, run_id: str, ended_at: int) -> None:
        mark = self._mark(run_id)
        last = next(reversed(self.chunks), 0)
        since = ended_at - self._base(last) if self.chunks else -1
        if not 0 <= since < self.SPAN_MS or len(self.chunks[last]) >= self.BASE.size + self.CHUNK_ENTRIES * self.ENTRY.size:
            last += bool(self.chunks)
            since = self.SPAN_MS // 2
            self.chunks[last] = bytearray(self.BASE.pack(ended_at - since))
        self.chunks[last].extend(self.ENTRY.pack(mark, since))
        if not self._unindexed or self._unindexed[-1] != last:
            self._note(mark, last)

    def remembers(self, run_id: str, now: int) -> bool:
        """Whether the run ended less than `REMEMBER_MS` before `now`."""
        if not self.chunks:
            return False
        for number in self._unindexed[: 1 + len(self._unindexed) // 64]:
            self._unindexed.remove(number)
            for mark, _ in self._entries(number):
                self._note(mark, number)
        mark = self._mark(run_id)
        hint = mark[: self.HINT_BYTES]
        bucket = self._index.get(self._bucket(mark), b"")
        places = _aligned(bucket, hint, self.PLACE_BYTES)
        numbers = [int.from_bytes(bucket[at + self.HINT_BYTES : at + self.PLACE_BYTES]) for at in places]
        for number in (*numbers, *self._unindexed):
            chunk = self.chunks[number]
            for at in _aligned(chunk, mark, self.ENTRY.size, self.BASE.size):
                _, since = self.ENTRY.unpack_from(chunk, at)
                if now < self._base(number) + since + REMEMBER_MS:
                    return True
        return False

    def forget(self, now: int) -> list[int]:
        """Drop the chunks of which every entry is past remembering, with a margin; gives their numbers. The growing one stays."""
        dropped: list[int] = []
        for number in list(self.chunks)[:-1]:
            entries = list(self._entries(number))
            if self._base(number) + max(since for _, since in entries) + FORGET_MS > now:
                break
            if number in self._unindexed:
                self._unindexed.remove(number)
            else:
                for mark, _ in entries:
                    bucket = self._index[self._bucket(mark)]
                    at = next(_aligned(bucket, self._place(mark, number), self.PLACE_BYTES))
                    del bucket[at : at + self.PLACE_BYTES]
            del self.chunks[number]
            dropped.append(number)
        return dropped

    def load(self, number: int, chunk: bytes | memoryview) -> None:
        """Take back a chunk; chunks come in the order of their numbers."""
        self.chunks[number] = bytearray(chunk)
        self._unindexed.append(number)

    def _base(self, number: int) -> int:
        return int(self.BASE.unpack_from(self.chunks[number])[0])

    def _entries(self, number: int) -> Iterator[tuple[bytes, int]]:
        return cast("Iterator[tuple[bytes, int]]", self.ENTRY.iter_unpack(memoryview(self.chunks[number])[self.BASE.size :]))

    def _mark(self, run_id: str) -> bytes:
        return fingerprint(run_id).to_bytes(16)[:12]

    def _bucket(self, mark: bytes) -> int:
        return int.from_bytes(mark[-2:]) % self.BUCKETS

    def _place(self, mark: bytes, number: int) -> bytes:
        return mark[: self.HINT_BYTES] + number.to_bytes(self.PLACE_BYTES - self.HINT_BYTES)

    def _note(self, mark: bytes, number: int) -> None:
        self._index.setdefault(self._bucket(mark), bytearray()).extend(self._place(mark, number))


def _aligned(data: bytes | bytearray, wanted: bytes, step: int, start: int = 0) -> Iterator[int]:
    """Where `wanted` stands in `data`, at multiples of `step` from `start` on."""
    at = data.find(wanted, start)
    while at >= 0:
        if (at - start) % step == 0:
            yield at
        at = data.find(wanted, at + 1)


class PartitionState:
    """What the records of one partition amount to."""

    __slots__ = ("claim", "ended", "format", "needs_format", "offset", "open_mark", "owner", "partition", "partitions", "runs")

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self.partition = partition
        self.partitions = partitions
        self.offset = 0  # the next record to fold is at this offset or above
        self.claim = -1  # offset of the current claim
        self.owner: str | None = None  # None: nobody, or the last owner left in good order
        self.format = FORMAT  # what the owner can judge
        self.needs_format = FORMAT  # above FORMAT: this code must not go on
        self.runs = Runs()  # open and quarantined ones
        self.ended = Ended()
        self.open_mark = 0  # exclusive or of the fingerprints of `runs`

    def pack(self) -> bytes:
        """A value that is equal for equal states."""
        return orjson.dumps(
            [
                self.offset,
                self.claim,
                self.owner,
                self.format,
                [self.runs.snapshot(run_id).decode() for run_id in sorted(self.runs)],
                [[number, chunk.hex()] for number, chunk in self.ended.chunks.items()],
            ]
        )


class Change(NamedTuple):
    """An accepted record: its event, and the run as it is now (None for a claim)."""

    event: dict[str, Any]
    run: RunState | None


_change = Change._make


def fold(state: PartitionState, record: Record) -> Change | None:
    """Fold one record into `state`. Gives what changed, or None where the record is not accepted.

    Records below `state.offset` have been folded before and are passed over.
    """
    offset = record.offset
    if offset < state.offset:
        return None
    state.offset = offset + 1
    event = decode(record.value)
    if event is None:
        return None
    kind = event["type"]
    if kind == "claim":
        return _claim(state, record, event)
    if event["v"] > state.format or event["run_id"] != record.key:
        return None
    if SHAPES[kind].decision and event["claim"] != state.claim:
        return None
    run = state.runs.at_hand.get(record.key) or state.runs.get(record.key)
    if run is None:
        return _started(state, record, event) if kind == "started" else None
    if offset < run.folded:
        return None
    before = run.now
    if record.timestamp > before:
        run.now = record.timestamp
    if not _RULES[kind](run, event):
        run.now = before
        return None
    if kind in _DECIDES:
        run.decided = True
        run.awaits_worker = False
        if run.version is None:
            run.version = event.get("version")
    if run.phase in _ENDED:
        run.ended_at = run.now
        del state.runs.at_hand[run.id]
        state.open_mark ^= fingerprint(run.id)
        state.ended.add(run.id, run.now)
    return _change((event, run))


def _claim(state: PartitionState, record: Record, event: dict[str, Any]) -> Change | None:
    if event["prev"] != state.claim or record.key != CLAIM_KEY:
        return None
    state.claim = record.offset
    state.owner = event["owner"]
    state.format = event["v"]
    state.needs_format = max(FORMAT, event["v"])
    return Change(event, None)


def _started(state: PartitionState, record: Record, event: dict[str, Any]) -> Change | None:
    run_id = record.key
    if not valid_run_id(run_id) or partition_of(run_id, state.partitions) != state.partition:
        return None
    if state.ended.remembers(run_id, record.timestamp):
        return None
    run = RunState(run_id, event["workflow"], event.get("version"), event["input"], record.offset, record.timestamp)
    run.trigger = event.get("trigger")
    run.requests.add(event["request"])
    state.runs.at_hand[run_id] = run
    state.open_mark ^= fingerprint(run_id)
    return Change(event, run)


_RUN_ID = re.compile(r"(?!@)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")


def valid_run_id(run_id: str) -> bool:
    """1 to 200 printable characters, not beginning with "@".

    Not `str.isprintable`: that depends on the Unicode version of this Python, and every reader must decide the same.
    """
    return _RUN_ID.fullmatch(run_id) is not None


# One rule per event of a run that is open or quarantined: checks the precondition, changes the run, says if it accepted.


def _deliver(run: RunState, step_id: str, kind: Kind, value: Any) -> None:
    run.journal.append(Delivery(step_id, kind.value, run.now, value))
    if step_id:
        run.done.add(step_id)


def _attempt(run: RunState, event: dict[str, Any]) -> OpenStep | None:
    """The open step whose next attempt the event speaks of; a step without a past is opened."""
    step_id = event["step_id"]
    found = run.open.get(step_id)
    if found is None:
        if step_id in run.done or not step_id or event["attempt"] != 1:
            return None
        found = run.open[step_id] = OpenStep()
        return found
    if not isinstance(found, OpenStep) or event["attempt"] != found.attempts + 1:
        return None
    return found


def _step_completed(run: RunState, event: dict[str, Any]) -> bool:
    step_id = event["step_id"]
    if step_id not in run.open:
        if step_id in run.done or not step_id or event["attempt"] != 1:
            return False
    elif _attempt(run, event) is None:
        return False
    else:
        del run.open[step_id]
    run.journal.append(_delivery((step_id, "result", run.now, event["result"])))
    run.done.add(step_id)
    return True


def _step_failed(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None:
        return False
    step.attempts += 1
    step.failures += 1
    step.lost = 0
    step.started = False
    step.error = event["error"]
    step.next_at = event["next_at"]
    if event.get("heartbeat") is not None:
        step.heartbeat = event["heartbeat"]
    if step.next_at is None:
        del run.open[event["step_id"]]
        _deliver(run, event["step_id"], Kind.ERROR, [step.attempts, step.error])
    return True


def _attempt_started(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None or step.started:
        return False
    step.started = True
    step.next_at = None
    return True


def _attempt_lost(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None:
        return False
    step.attempts += 1
    step.lost += 1
    step.started = False
    step.next_at = None
    return True


def _step_heartbeat(run: RunState, event: dict[str, Any]) -> bool:
    step = _attempt(run, event)
    if step is None or event["at"] <= step.heartbeat_at:
        return False
    step.heartbeat = event["details"]
    step.heartbeat_at = event["at"]
    step.next_at = None
    return True


def _new(run: RunState, step_id: str) -> bool:
    return bool(step_id) and step_id not in run.open and step_id not in run.done


def _sleep_scheduled(run: RunState, event: dict[str, Any]) -> bool:
    if not _new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = OpenSleep(event["wake_at"])
    return True


def _sleep_completed(run: RunState, event: dict[str, Any]) -> bool:
    sleep = run.open.get(event["step_id"])
    if not isinstance(sleep, OpenSleep) or event["at"] < sleep.wake_at:
        return False
    del run.open[event["step_id"]]
    _deliver(run, event["step_id"], Kind.WOKEN, None)
    return True


def _wait_started(run: RunState, event: dict[str, Any]) -> bool:
    if not _new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = OpenWait(event["signal"], event["timeout_at"])
    _match(run, event["signal"])
    return True


def _wait_timed_out(run: RunState, event: dict[str, Any]) -> bool:
    wait = run.open.get(event["step_id"])
    if not isinstance(wait, OpenWait) or wait.timeout_at is None or event["at"] < wait.timeout_at:
        return False
    del run.open[event["step_id"]]
    _deliver(run, event["step_id"], Kind.TIMEOUT, None)
    return True


def _step_cancelled(run: RunState, event: dict[str, Any]) -> bool:
    step_id = event["step_id"]
    if run.open.pop(step_id, None) is not None:
        run.done.add(step_id)
        return True
    given = next((d for d in reversed(run.journal) if d.step_id == step_id and d.kind == "signal"), None)
    if given is None or f"@returned/{step_id}" in run.done:
        return False
    run.done.add(f"@returned/{step_id}")
    name, data, request = given.value
    run.signals.setdefault(name, []).insert(0, [data, request])
    _match(run, name)
    return True


def _signal_received(run: RunState, event: dict[str, Any]) -> bool:
    if event["request"] in run.requests:
        return False
    run.requests.add(event["request"])
    run.signals.setdefault(event["signal"], []).append([event["data"], event["request"]])
    _match(run, event["signal"])
    return True


def _match(run: RunState, name: str) -> None:
    """Give the oldest signal of this name to the oldest wait for it."""
    waiting = run.signals.get(name)
    if not waiting:
        return
    for step_id, wait in run.open.items():
        if isinstance(wait, OpenWait) and wait.signal == name:
            data, request = waiting.pop(0)
            if not waiting:
                del run.signals[name]
            del run.open[step_id]
            _deliver(run, step_id, Kind.SIGNAL, [name, data, request])
            return


def _cancel_requested(run: RunState, event: dict[str, Any]) -> bool:
    if run.cancel_requested or event["request"] in run.requests:
        return False
    run.requests.add(event["request"])
    run.cancel_requested = True
    run.reason = event.get("reason")
    _deliver(run, "", Kind.CANCEL, run.reason)
    return True


def _workflow_unknown(run: RunState, event: dict[str, Any]) -> bool:
    if run.awaits_worker:
        return False
    run.awaits_worker = True
    return True


def _quarantined(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "quarantined"
    run.error = event["error"]
    return True


def _resumed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "quarantined":
        return False
    run.phase = "open"
    run.error = None
    for step in run.open.values():
        if isinstance(step, OpenStep):
            step.lost = 0
    return True


def _completed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "completed"
    run.result = event["result"]
    return True


def _failed(run: RunState, event: dict[str, Any]) -> bool:
    if run.phase != "open":
        return False
    run.phase = "failed"
    run.error = event["error"]
    return True


def _cancelled(run: RunState, event: dict[str, Any]) -> bool:
    if not run.cancel_requested:
        return False
    run.phase = "cancelled"
    return True


def _repeated(run: RunState, event: dict[str, Any]) -> bool:
    return False


_RULES: dict[str, Callable[[RunState, dict[str, Any]], bool]] = {
    "started": _repeated,
    "signal-received": _signal_received,
    "cancel-requested": _cancel_requested,
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
    "workflow-unknown": _workflow_unknown,
    "quarantined": _quarantined,
    "resumed": _resumed,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
}
_ENDED = frozenset({"completed", "failed", "cancelled"})
_DECIDES = frozenset(kind for kind, shape in SHAPES.items() if shape.decision and kind != "workflow-unknown")
