"""The fold: from the records of one partition, in order, to the state of its runs.

Pure, total and the same for every reader: no I/O, no clock, no randomness, no exception whatever the record holds. A
record is accepted iff

1. a decision was written under the claim that is current at its offset, and
2. its precondition holds: the step has no result yet and the attempt is the next one, the wait is open, the run is
   unknown (`started`) or not ended; and a request is no repeat.

Everything else changes nothing. That alone makes duplicates, zombies and races harmless.

Repeats of requests are known by their id, for as long as it is remembered; and those found in an inbox by their place there,
for ever: the highest place that was seen of each inbox partition is kept, and what is not above it is void. Routers leave no
gaps (what comes after goes into the log after), so what is void for that has been there before, in the stream of the same run,
and a reader of that run alone knows it, too.

A signal may come before its run: it is kept for as long as a request is remembered, with all that is open and under
the phase EXPECTED, until `started` makes a run of it. A reader who does not ask for it never meets one.

The fold does not know the user's code: whether a step was wanted is replay's question. What replay needs is the run's
`journal`: what was delivered to the code, in the log's order. A run depends on nothing but the claims and its own
records, so folding only those gives the same run; that is how clients read one run.

State is changed in place (a run of 10,000 steps costs 10,000 times the same); `snapshot.pack` and `PartitionState.pack`
give values that can be kept and compared.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, cast

import orjson

from ..events import PLACE, SHAPES, decode
from ..log import CLAIM_KEY, Record, partition_of
from ..operations import EARLY
from ..operations import RULES as OF_OPERATIONS
from ..values.names import valid_run_id
from .ended import REMEMBER_MS, Ended, fingerprint
from .lifecycle import ENDS, OF_THE_OWNER
from .lifecycle import RULES as OF_RUNS
from .records import FORMAT
from .runs import Runs
from .state import EXPECTED, RunState

DEATHS_MS = 600_000
"""An owner that was there for longer did not die of what it recovered."""
_FOR_EVER_MS = 2**64
_RULES = {**OF_RUNS, **OF_OPERATIONS}
"""One per event of a run that is open or quarantined: checks the precondition, changes the run, says if it accepted."""
_DECIDES = frozenset(kind for kind, shape in SHAPES.items() if shape.decision and kind not in OF_THE_OWNER)


class PartitionState:
    """What the records of one partition amount to."""

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
        "owner",
        "partition",
        "partitions",
        "refused",
        "runs",
        "sources",
    )

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self.partition = partition
        self.partitions = partitions
        self.offset = 0  # the next record to fold is at this offset or above
        self.claim = -1  # offset of the current claim
        self.owner: str | None = None  # None: nobody, or the last owner left in good order
        self.claimed_at = 0  # the log's time of the current claim
        self.deaths = 0  # owners in a row, each gone soon after its claim, that did not leave in good order
        self.format = FORMAT  # what the owner can judge
        self.needs_format = FORMAT  # above FORMAT: this code must not go on
        self.memory_ms = REMEMBER_MS  # fixed by the first claim: what was forgotten cannot be remembered again
        self.runs = Runs()  # open, quarantined and expected ones
        self.ended = Ended()
        self.open_mark = 0  # exclusive or of the fingerprints of `runs`
        self.sources: dict[str, int] = {}  # inbox partitions -> the highest place of a request that was seen here
        self.refused: list[Refusal] = []  # what the last request led to; no part of the packed value

    def refuse(self, event: dict[str, Any], reason: str) -> None:
        self.refused.append(Refusal(event, reason))

    def kept_for(self, run_id: str, now: int) -> int:
        """How many signals that have come for a run that has not begun are kept at this time."""
        run = self.runs.peek(run_id) if run_id in self.runs else None
        return sum(now < at + self.memory_ms for at, _ in run.input) if run is not None and run.phase == EXPECTED else 0

    def drop(self, run_id: str) -> None:
        """Forget an expected run of which everything is past remembering, with a margin: `Ended.forget` says why."""
        for _, signal in self.runs.peek(run_id).input:
            self.refuse(signal, f"no run {run_id!r} was started while the signal was kept for it")
        self.runs.remove(run_id)
        self.open_mark ^= fingerprint(run_id)

    def pack(self) -> bytes:
        """A value that is equal for equal states."""
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
                [self.runs.snapshot(run_id).decode() for run_id in sorted(self.runs.ids())],
                [[number, chunk.hex()] for number, chunk in self.ended.chunks.items()],
            ]
        )


class Refusal(NamedTuple):
    """A request that is void and no repeat, and why: for whoever asked."""

    event: dict[str, Any]
    reason: str


class Change(NamedTuple):
    """An accepted record: its event, and the run as it is now (None for a claim, and for a signal that came before its run:
    that is kept in `early`)."""

    event: dict[str, Any]
    run: RunState | None
    early: RunState | None = None


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
    if not SHAPES[kind].decision:
        return _request(state, record, event)
    if event["claim"] != state.claim or event["v"] > state.format or event["run_id"] != record.key:
        return None
    run = state.runs.at_hand.get(record.key) or state.runs.get(record.key)
    if run is None or offset < run.folded or run.phase == EXPECTED:
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
        run.suspected = 0
        if run.version is None:
            run.version = event.get("version")
    if run.requests and state.format > 1:
        run.forget(state.memory_ms)
    if run.phase in ENDS:
        run.ended_at = run.now
        del state.runs.at_hand[run.id]
        state.open_mark ^= fingerprint(run.id)
        state.ended.add(run.id, run.now, run.digest)
    return _change((event, run, None))


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
    """What comes from outside: a repeat is void, and a signal for a run to come is kept."""
    state.refused.clear()
    if _was_seen(state, event) or event["v"] > state.format or event["run_id"] != record.key:
        return None
    kind, run = event["type"], state.runs.get(record.key)
    if run is not None and record.offset < run.folded:
        return None
    if run is None or run.phase == EXPECTED:
        return _begin(state, record, event, run) if kind == "started" else _expect(state, record, event, run)
    if kind == "started":
        if "from" in event and not _is_of(run, event):
            state.refuse(event, f"run {run.id!r} exists, of workflow {run.workflow!r}, with another input")
        return None
    memory_ms = state.memory_ms if state.format > 1 else _FOR_EVER_MS
    before = run.now
    run.now = max(before, record.timestamp)
    if run.remembers(event["request"], memory_ms) or not _RULES[kind](run, event):
        run.now = before
        return None
    run.forget(memory_ms)
    run.requests[event["request"]] = run.now
    return Change(event, run)


def _was_seen(state: PartitionState, event: dict[str, Any]) -> bool:
    """Whether a request was found at a place of an inbox that was seen before, or lies before one that was."""
    place = event.get("from")
    if type(place) is not dict or not PLACE.fits(cast(dict[str, Any], place)):
        return False
    source, offset = f"{place['inbox']}/{place['partition']}", cast(int, place["offset"])
    if offset <= state.sources.get(source, offset - 1):
        return state.format > 1
    state.sources[source] = offset
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
        return None
    signals: list[tuple[int, dict[str, Any]]] = []
    if early is not None:
        _expire(state, early, now)
        signals = early.input
        now = max(now, early.now) if signals else now
    run = RunState(run_id, event["workflow"], event.get("version"), event["input"], record.offset, now)
    run.trigger = event.get("trigger")
    run.request = event["request"]
    run.digest = digest
    for at, signal in signals:
        run.requests[signal["request"]] = at
        _RULES[signal["type"]](run, signal)
    if early is None:
        state.open_mark ^= fingerprint(run_id)
    return Change(event, state.runs.add(run))


def _expect(state: PartitionState, record: Record, event: dict[str, Any], run: RunState | None) -> Change | None:
    """A signal for a run that may begin yet is kept; whatever else there is needs a run that has begun."""
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
    """Drop what has come for a run that has not begun, and is past remembering. Readers of format 1 never kept it."""
    now, count = max(now, early.now), 0
    for at, signal in early.input:
        if now < at + state.memory_ms and state.format > 1:
            break
        state.refuse(signal, f"no run {early.id!r} was started while the signal was kept for it")
        count += 1
    del early.input[:count]


def digest_of(started: dict[str, Any]) -> int:
    """32 bits that stand for what a run was asked to do; never 0."""
    asked = orjson.dumps([started["workflow"], started["input"]], option=orjson.OPT_SORT_KEYS)
    return zlib.crc32(asked) or 1


def _is_of(run: RunState, started: dict[str, Any]) -> bool:
    """Whether a run was started like that. Of one that was started from elsewhere its input is compared."""
    if run.digest:
        return run.digest == digest_of(started)
    return run.workflow == started["workflow"] and run.given == started["input"]


def _belongs(state: PartitionState, run_id: str) -> bool:
    return valid_run_id(run_id) and partition_of(run_id, state.partitions) == state.partition
