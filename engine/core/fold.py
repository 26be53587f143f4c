"""The fold: from the records of one partition, in order, to the state of its runs.

Pure, total and the same for every reader: no I/O, no clock, no randomness, no exception for any content of a record. The fold
accepts a record iff

1. its value has the shape of its type (`events.decode`), and its `v` is not above the format of the claim;
2. its key is its `run_id`;
3. a decision was written under the claim that is current at its offset, and a request is not a repeat; and
4. the rule of its type holds (`counts_if` of each model says it in words): the step has no result yet and the attempt is the
   next one, the wait is open, the run has not ended. For `started` that is `_begin`: the run is unknown, and its id belongs to
   the partition.

Every other record changes nothing. This rule alone makes duplicates, zombies and races harmless.

The fold knows a repeated request by its id, for as long as the partition remembers the id. It knows a repeated request from an
inbox by its place there, for ever: the state keeps the highest place seen of each inbox partition, and a request at or
below that place is void. Routers append requests in the order of the inbox and leave no gaps. So if the place of a request
was seen before, the request itself was appended before, to the same run, and a reader of that run alone finds it there.

A record may owe messages to other runs (`messages`). The state keeps them until a `delivered` under the current claim forgets
them. A message carries its position, the offset of the record that caused it and a number, and the fold treats positions as it
treats places of an inbox: it keeps the highest position seen of each source partition, and a message at or below it is void.
Owners send the messages for one partition in the order of their positions and leave no gaps.

A signal may come before its run. The fold keeps such signals in a run of the phase EXPECTED, for as long as a request is
remembered or until `started` makes it an open run. `Change.run` is None for these signals, so most readers never see them.

The fold does not know the user's code: only replay can tell whether the code asked for a step. Replay needs the run's
`journal`: the deliveries to the code, in the log's order. A run depends only on the claims and its own records, so folding
only those gives the same run; clients read one run this way.

The fold changes state in place, so that each step of a long run costs the same; `snapshot.pack` and `PartitionState.pack`
return values that can be kept and compared.
"""

from __future__ import annotations

import zlib
from copy import copy
from typing import Any, NamedTuple, cast

import orjson

from ..events import CAUSE, PLACE, SHAPES, decode
from ..log import CLAIM_KEY, Record, partition_of
from ..operations import AT_END, EARLY, REFUSALS, START_REFUSED
from ..operations import RULES as OF_OPERATIONS
from ..values.names import valid_run_id
from ..values.same import same_json
from ..values.times import NEVER_MS
from ..values.tuples import maker_of
from .ended import MARGIN_MS, REMEMBER_MS, Ended, fingerprint
from .lifecycle import ENDS, OF_THE_OWNER
from .lifecycle import RULES as OF_RUNS
from .messages import OUTBOX_KEY, Outbox, Owed, Position, parent_of, record_of_message
from .records import FORMAT
from .runs import Runs
from .state import EXPECTED, RunState

DEATHS_MS = 600_000
"""An owner that crashes within this time of its claim may have died of a run that it recovered; a later crash has another cause,
so the count of deaths starts anew."""
_FOR_EVER_MS = 2**64
_RULES = {**OF_RUNS, **OF_OPERATIONS}
"""By event type. A rule gets a run that is open or quarantined: it checks the precondition, changes the run, and returns whether
it accepted the event."""
_OF_DECISIONS = {event_type: rule for event_type, rule in _RULES.items() if SHAPES[event_type].decision}
_DECIDES = frozenset(event_type for event_type, shape in SHAPES.items() if shape.decision and event_type not in OF_THE_OWNER)


class PartitionState:
    """The folded state of one partition."""

    __slots__ = (
        "claim",
        "claimed_at",
        "deaths",
        "ended",
        "format",
        "memory_ms",
        "needs_format",
        "offset",
        "open_mark",
        "outbox",
        "owner",
        "partition",
        "partitions",
        "refused",
        "runs",
        "senders",
        "sources",
    )

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self.partition = partition
        self.partitions = partitions
        self.offset = 0  # the next record to fold is at this offset or above
        self.claim = -1  # offset of the current claim
        self.owner: str | None = None  # None: never owned, or the last owner released the partition
        self.claimed_at = 0  # the log's time of the current claim
        self.deaths = 0  # owners in a row that ended without a release, each but the first within DEATHS_MS of its claim
        self.format = FORMAT  # the newest format that the owner can judge
        self.needs_format = FORMAT  # above FORMAT: this code cannot judge the partition and must stop
        self.memory_ms = REMEMBER_MS  # fixed by the first claim: a longer memory would not bring back ids that were dropped
        self.runs = Runs()  # open, quarantined and expected runs
        self.ended = Ended()
        self.open_mark = 0  # exclusive or of the fingerprints of the ids in `runs`
        self.sources: dict[str, int] = {}  # inbox partition -> the highest place of a request seen here
        self.senders: dict[str, Position] = {}  # source partition -> the highest position of a message seen here
        self.outbox = Outbox()
        self.refused: list[Refusal] = []  # refusals that the last request caused; `pack` leaves them out

    def without_runs(self) -> PartitionState:
        """An equal state but for its runs and refusals; it does not change with this one."""
        twin = copy(self)
        twin.runs, twin.refused = Runs(), []
        twin.ended, twin.sources, twin.senders = self.ended.copied(), dict(self.sources), dict(self.senders)
        twin.outbox = self.outbox.copied()
        return twin

    def refuse(self, event: dict[str, Any], reason: str) -> None:
        """Note a refusal for the sender. Messages have none to tell: the record that refuses one owes the answer itself."""
        if not _is_message(event):
            self.refused.append(Refusal(event, reason))

    def owe(self, offset: int, at: int, drafts: list[dict[str, Any]]) -> None:
        """Put the messages that the record at `offset` causes into the outbox. `at`: the time in that record, ms."""
        for n, draft in enumerate(drafts):
            event = record_of_message(draft, FORMAT, at, self.partition, (offset, n))
            self.outbox.add(partition_of(draft["run_id"], self.partitions), Owed(offset, n, event))

    def kept_for(self, run_id: str, now: int) -> int:
        """The number of signals kept at `now` for a run that has not started."""
        run = self.runs.peek(run_id) if run_id in self.runs else None
        return sum(now < at + self.memory_ms for at, _ in run.input) if run is not None and run.phase == EXPECTED else 0

    def kept_until(self, run: RunState) -> int:
        """When the last signal of an expected run is forgotten, with a margin for a clock that is ahead of the log's; ms."""
        return min(run.input[-1][0] + self.memory_ms + MARGIN_MS, NEVER_MS)

    def drop(self, run_id: str) -> None:
        """Remove an expected run and refuse its signals. The caller waits until `kept_until`."""
        for _, signal in self.runs.peek(run_id).input:
            self.refuse(signal, f"no run {run_id!r} was started while the signal was kept for it")
        self.runs.remove(run_id)
        self.open_mark ^= fingerprint(run_id)

    def pack(self) -> bytes:
        """Bytes that are equal for equal states."""
        return orjson.dumps(
            [
                self.offset,
                self.claim,
                self.owner,
                self.claimed_at,
                self.deaths,
                self.format,
                self.memory_ms,
                sorted(self.sources.items()),
                sorted(self.senders.items()),
                self.outbox.pack().decode(),
                [self.runs.snapshot(run_id).decode() for run_id in sorted(self.runs.ids())],
                [[number, chunk.hex()] for number, chunk in self.ended.chunks.items()],
            ]
        )


class Refusal(NamedTuple):
    """A request that is void but not a repeat, with the reason to tell its sender."""

    event: dict[str, Any]
    reason: str


class Change(NamedTuple):
    """An accepted record: its event and the run after it. `run` is None for a claim, for `delivered`, and for a signal that came
    before its run; `early` is then the expected run that keeps the signal."""

    event: dict[str, Any]
    run: RunState | None
    early: RunState | None = None


_change = maker_of(Change)


def fold(state: PartitionState, record: Record) -> Change | None:
    """Fold one record into `state`. Returns the change, or None if the record is not accepted.

    Skips records below `state.offset`, which are folded already. A record that is not accepted changes nothing but what was seen
    of inboxes and of other partitions; a message that starts a run under a taken id owes the answer.
    """
    offset = record.offset
    if offset < state.offset:
        return None
    state.offset = offset + 1
    event = decode(record.value)
    if event is None:
        return None
    event_type = event["type"]
    rule = _OF_DECISIONS.get(event_type)
    if rule is None:
        if event_type == "claim":
            return _claim(state, record, event)
        return _request(state, record, event) if event_type != "delivered" else _delivered(state, record, event)
    if event["claim"] != state.claim or event["v"] > state.format or event["run_id"] != record.key:
        return None
    run = state.runs.unpacked.get(record.key) or state.runs.get(record.key)
    if run is None or offset < run.folded or run.phase == EXPECTED:
        return None
    before = run.now
    if record.timestamp > before:
        run.now = record.timestamp
    if not rule(run, event):
        run.now = before
        return None
    if event_type in _DECIDES:
        run.decided = True
        run.awaits_worker = False
        run.suspected = 0
        if run.version is None:
            run.version = event.get("version")
    if run.requests and state.format > 1:
        run.forget(state.memory_ms)
    if run.phase in ENDS:
        run.ended_at = run.now
        del state.runs.unpacked[run.id]  # `get` has unpacked the run, so it is there
        if state.runs.notes:
            state.runs.notes.pop(run.id, None)
        state.open_mark ^= fingerprint(run.id)
        state.ended.add(run.id, run.now, run.digest)
        for tell in AT_END:
            tell(run)
    if run.owed is not None:
        _owe(state, record, event, run)
    return _change((event, run, None))


def _owe(state: PartitionState, record: Record, event: dict[str, Any], run: RunState) -> None:
    drafts, run.owed = run.owed or [], None
    state.owe(record.offset, event["at"], drafts)


def _delivered(state: PartitionState, record: Record, event: dict[str, Any]) -> Change | None:
    if record.key != OUTBOX_KEY or event["claim"] != state.claim or event["v"] > state.format:
        return None
    state.outbox.deliver(event["through"])
    return Change(event, None)


def _claim(state: PartitionState, record: Record, event: dict[str, Any]) -> Change | None:
    if event["prev"] != state.claim or record.key != CLAIM_KEY:
        return None
    if state.claim < 0:
        memory_ms = event.get("memory_ms")
        if type(memory_ms) is int and memory_ms >= 0 and event["v"] > 1:
            state.memory_ms = memory_ms
    if state.owner is None or event["owner"] is None:
        state.deaths = 0
    elif state.owner != event["owner"]:
        state.deaths = state.deaths + 1 if record.timestamp < state.claimed_at + DEATHS_MS else 1
    state.claimed_at = record.timestamp
    state.claim = record.offset
    state.owner = event["owner"]
    state.format = event["v"]
    state.needs_format = max(FORMAT, event["v"])
    return Change(event, None)


def _request(state: PartitionState, record: Record, event: dict[str, Any]) -> Change | None:
    """Fold a request. A repeat is void; a signal may come before its run."""
    state.refused.clear()
    if _was_seen(state, event) or event["v"] > state.format or event["run_id"] != record.key:
        return None
    event_type, run = event["type"], state.runs.get(record.key)
    if run is not None and record.offset < run.folded:
        return None
    if run is None or run.phase == EXPECTED:
        return _begin(state, record, event, run) if event_type == "started" else _expect(state, record, event, run)
    if event_type == "started":
        if "from" in event and not _is_of(run, event):
            state.refuse(event, f"run {run.id!r} exists, of workflow {run.workflow!r}, with another input")
        if event["request"] != run.request:
            _refuse_start(state, record, event)
        return None
    memory_ms = state.memory_ms if state.format > 1 else _FOR_EVER_MS
    before = run.now
    run.now = max(before, record.timestamp)
    repeated = run.remembers(event["request"], memory_ms)
    if repeated or not _RULES[event_type](run, event):
        run.now = before
        if not repeated and event_type in REFUSALS and "from" in event:
            state.refuse(event, REFUSALS[event_type])
        return None
    run.forget(memory_ms)
    run.requests[event["request"]] = run.now
    if run.owed is not None:
        _owe(state, record, event, run)
    return Change(event, run)


def _refuse_start(state: PartitionState, record: Record, event: dict[str, Any]) -> None:
    """A start is void because another one has its id: if it is a message, tell the operation that sent it."""
    parent = parent_of(event)
    if parent is not None and not parent.detached and _is_message(event):
        state.owe(record.offset, event["at"], [tell(parent, record.key) for tell in START_REFUSED])


def _is_message(event: dict[str, Any]) -> bool:
    position = event.get("cause")
    return type(position) is dict and CAUSE.fits(cast(dict[str, Any], position))


def _was_seen(state: PartitionState, event: dict[str, Any]) -> bool:
    """Whether a request's place in an inbox, or the position of a message, or a later one, was seen before. Notes it."""
    if "cause" in event and _is_message(event):
        return _has_come(state, event["cause"])
    place = event.get("from")
    if type(place) is not dict or not PLACE.fits(cast(dict[str, Any], place)):
        return False
    source, offset = f"{place['inbox']}/{place['partition']}", cast(int, place["offset"])
    if offset <= state.sources.get(source, offset - 1):
        return state.format > 1
    state.sources[source] = offset
    return False


def _has_come(state: PartitionState, cause: dict[str, Any]) -> bool:
    source, position = f"{cause['partition']}", (cause["offset"], cause["n"])
    last = state.senders.get(source)
    if last is not None and position <= last:
        return state.format > 1
    state.senders[source] = position
    return False


def _begin(state: PartitionState, record: Record, event: dict[str, Any], early: RunState | None) -> Change | None:
    run_id, now = record.key, record.timestamp
    if not _belongs(state, run_id):
        return None
    digest = digest_of(event) if "from" in event else 0
    ended = state.ended.find(run_id, now, state.memory_ms)
    if ended is not None:
        if digest not in (0, ended):
            state.refuse(event, f"a run {run_id!r} has ended, of another workflow or input")
        _refuse_start(state, record, event)
        return None
    signals: list[tuple[int, dict[str, Any]]] = []
    if early is not None:
        _expire(state, early, now)
        signals = early.input
        now = max(now, early.now) if signals else now
    run = RunState(run_id, event["workflow"], event.get("version"), event["input"], record.offset, now)
    run.trigger = event.get("trigger")
    if "traceparent" in event:
        run.traced(event["traceparent"], event.get("tracestate"))
    run.request = event["request"]
    run.parent = parent_of(event)
    run.digest = digest
    for at, signal in signals:
        run.requests[signal["request"]] = at
        _RULES[signal["type"]](run, signal)
    if early is None:
        state.open_mark ^= fingerprint(run_id)
    return Change(event, state.runs.add(run))


def _expect(state: PartitionState, record: Record, event: dict[str, Any], run: RunState | None) -> Change | None:
    """Keep a signal for a run that has not started, and refuse every other request for such a run."""
    run_id, request, now = record.key, event["request"], record.timestamp
    if not _belongs(state, run_id):
        return None
    if state.ended.find(run_id, now, state.memory_ms) is not None:
        state.refuse(event, f"run {run_id!r} has ended")
        return None
    if event["type"] not in EARLY or state.format < 2:
        state.refuse(event, f"there is no run {run_id!r}")
        return None
    if run is None:
        state.open_mark ^= fingerprint(run_id)
    else:
        before, run.now = run.now, max(run.now, now)
        if run.remembers(request, state.memory_ms):
            run.now = before
            return None
        _expire(state, run, now)
        run.forget(state.memory_ms)
    if run is None or not run.input:
        run = state.runs.add(RunState(run_id, "", None, [], record.offset, now))
        run.phase = EXPECTED
    run.requests[request] = run.now
    run.input.append([run.now, event])
    return Change(event, None, run)


def _expire(state: PartitionState, early: RunState, now: int) -> None:
    """Refuse and drop the signals of an expected run that are past the memory; under format 1 all: its readers keep none."""
    now, count = max(now, early.now), 0
    for at, signal in early.input:
        if now < at + state.memory_ms and state.format > 1:
            break
        state.refuse(signal, f"no run {early.id!r} was started while the signal was kept for it")
        count += 1
    del early.input[:count]


def digest_of(started: dict[str, Any]) -> int:
    """A digest of a start's workflow and input, of 32 bits; never 0."""
    asked = orjson.dumps([started["workflow"], started["input"]], option=orjson.OPT_SORT_KEYS)
    return zlib.crc32(asked) or 1


def _is_of(run: RunState, started: dict[str, Any]) -> bool:
    """Whether `started` asks for the run's workflow and input. A run that no inbox started has no digest: compare its input."""
    if run.digest:
        return run.digest == digest_of(started)
    return run.workflow == started["workflow"] and same_json(run.start_input, started["input"])


def _belongs(state: PartitionState, run_id: str) -> bool:
    return valid_run_id(run_id) and partition_of(run_id, state.partitions) == state.partition
