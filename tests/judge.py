"""The rule of the history, written a second time from its description: what every record of a partition amounts to.

It imports nothing of stepfold on purpose, so that a mistake in the engine's fold cannot hide itself. A record is accepted iff
it was written under the claim that is current at its offset and its precondition holds; requests are under no claim. The
checkers of the fault tests and of the simulator stand on it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from judged_events import ENDS, PLACE_SHAPE, REQUESTS, Json, fits, parse
from judged_messages import Outbox, is_message, parent_of, refusal, start_of
from judged_messages import digest as derived

FORMAT = 2
DAY_MS = 24 * 3600 * 1000
MAX_KEYS = 100
_RUN_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")


class Open:
    """A step, sleep, wait, callback or condition that has begun and is not over."""

    __slots__ = (
        "announced",
        "attempts",
        "beat_at",
        "child",
        "error",
        "failures",
        "heartbeat",
        "heartbeat_at",
        "heartbeat_ms",
        "kind",
        "lost",
        "next_at",
        "nonce",
        "on_parent_close",
        "polls",
        "shielded",
        "signal",
        "state",
        "stopped",
        "timeout_at",
        "wake_at",
        "workflow",
    )

    def __init__(self, kind: str, *, wake_at: int = 0, signal: str = "", timeout_at: int | None = None) -> None:
        self.kind = kind
        self.attempts = 0  # of a step or condition: attempts that are over
        self.failures = 0
        self.lost = 0  # in a row
        self.announced = False
        self.next_at: int | None = None
        self.error: Json | None = None
        self.heartbeat: Any = None
        self.heartbeat_at = 0
        self.wake_at = wake_at
        self.signal = signal
        self.timeout_at = timeout_at
        self.polls = 0  # of a condition: checks that gave a state
        self.state: Any = None
        self.child = self.workflow = self.on_parent_close = ""
        self.shielded = False
        self.stopped = False  # of a child: it was told to end
        self.nonce = ""
        self.heartbeat_ms: int | None = None
        self.beat_at = 0  # of a callback: the run's time at its creation, or at the last heartbeat

    def ends_at(self, kind: str) -> int | None:
        """Of a callback: when it may time out, for want of an answer ("timeout") or of a "heartbeat"."""
        if kind == "timeout":
            return self.timeout_at
        return None if self.heartbeat_ms is None else self.beat_at + self.heartbeat_ms

    def __repr__(self) -> str:
        shown = {name: value for name in self.__slots__ if (value := getattr(self, name))}
        return f"<{shown.pop('kind')} {shown}>"


class Entry(NamedTuple):
    """What the code of a run was given. `now`: the run's time, ms."""

    step_id: str
    kind: str
    now: int
    value: Any


class Run:
    """What the accepted records say of one run."""

    def __init__(self, run_id: str, partition: int, offset: int, timestamp: int, event: Json) -> None:
        self.id = run_id
        self.partition = partition
        self.start = self.changed_at = offset
        self.started_at = self.now = timestamp
        self.workflow: str = event["workflow"]
        self.version: str | None = event.get("version")
        self.input: Any = event["input"]
        self.request: str = event["request"]
        self.parent = parent_of(event)
        self.owes: list[Json] = []  # because of the record that is being judged
        self.requests: dict[str, int] = {}  # of the others: the run's time when each was accepted, while it is remembered
        self.journal: list[Entry] = []
        self.by_step: dict[str, Entry] = {}
        self.open: dict[str, Open] = {}
        self.over: set[str] = set()
        self.returned: set[str] = set()  # waits whose signal was given back
        self.failures: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.sent: dict[str, list[Any]] = {}  # by name: data of the signals, in order
        self.waiting: dict[str, list[list[Any]]] = {}  # of these, not yet taken: [data, request]
        self.given: dict[str, list[Any]] = {}  # by wait: [name, data, request]
        self.published: dict[str, list[Any]] = {}  # by key: the number of the last value, the value, and the run's time of it
        self.due = 0  # when what was just accepted might happen at the earliest
        self.cancelled = False
        self.reason: str | None = None
        self.decided = False
        self.unserved = False
        self.suspected = 0
        self.suspecting = -1  # the claim of the last announcement that counted
        self.last_error: Json | None = None
        self.quarantined: Json | None = None
        self.end: Json | None = None
        self.ended_at = 0

    def __repr__(self) -> str:
        return f"<run {self.id!r}: {len(self.journal)} given, open {self.open}, end {self.end}>"


class Early:
    """Signals that came for a run that has not begun."""

    def __init__(self, offset: int) -> None:
        self.changed_at = offset
        self.now = 0
        self.signals: list[list[Any]] = []  # [time, event]

    def unexpired(self, now: int, memory_ms: int) -> list[list[Any]]:
        return [[at, event] for at, event in self.signals if now < at + memory_ms]


class Ownership(NamedTuple):
    """An accepted claim; `owner` None: the partition was given up."""

    offset: int
    timestamp: int
    owner: str | None


class Partition:
    """What the accepted records say of one partition."""

    def __init__(self, number: int, partitions: int = 1) -> None:
        self.number = number
        self.outbox = Outbox(number, partitions)
        self.next_offset = 0
        self.claims: list[Ownership] = []
        self.claim = -1
        self.format = FORMAT
        self.memory_ms = DAY_MS
        self.latest = 0  # the highest timestamp
        self.runs: dict[str, Run] = {}  # of those that had one id, the last
        self.early: dict[str, Early] = {}
        self.sources: dict[str, int] = {}  # by inbox and its partition: the highest place that a request gave


class Judged(NamedTuple):
    """`void`: why the record changes nothing; None: it is accepted. `run`: the run as it is now, if there is one."""

    void: str | None
    event: Json | None = None
    run: Run | None = None


_NO_EVENT = Judged("no event")


class Judge:
    """Judges the records of a history as they come, in the order of each partition."""

    def __init__(self, partitions: int) -> None:
        self.partitions = [Partition(number, partitions) for number in range(partitions)]

    def judge(self, number: int, offset: int, timestamp: int, key: str, value: bytes) -> Judged:
        """Judge the next record of a partition. `timestamp`: the log's, in ms."""
        partition = self.partitions[number]
        partition.next_offset = offset + 1
        partition.latest = max(partition.latest, timestamp)
        event = parse(value)
        if event is None:
            return _NO_EVENT
        kind: str = event["type"]
        if kind == "claim":
            return self._claim(partition, offset, timestamp, key, event)
        if kind == "delivered":
            return self._delivered(partition, key, event)
        request = kind in REQUESTS
        seen = request and self._was_seen(partition, event)
        if event["v"] > partition.format:
            return Judged("newer format", event)
        if event["run_id"] != key:
            return Judged("another run's key", event)
        run = partition.runs.get(key)
        if not request and event["claim"] != partition.claim:
            return Judged("stale claim", event, run)
        if seen:
            return Judged("seen in the inbox before", event, run)
        if kind == "started":
            return self._start(partition, run, offset, timestamp, key, event)
        remembered = run is not None and (run.end is None or timestamp < run.ended_at + partition.memory_ms)
        if kind == "signal-received" and not remembered and partition.format > 1:
            return self._early(partition, offset, timestamp, key, event)
        if run is None:
            return Judged("unknown run", event)
        if run.end is not None:
            return Judged(f"ended run: {kind}", event, run)
        before = run.now
        if timestamp > before:
            run.now = timestamp
        run.due = 0
        memory_ms = partition.memory_ms if partition.format > 1 else 2**70
        kept = {request: at for request, at in run.requests.items() if run.now < at + memory_ms}
        repeated = request and (event["request"] == run.request or event["request"] in kept)
        if repeated or not _RULES[kind](run, event):
            run.now = before
            return Judged(f"{'repeated' if repeated else 'precondition'}: {kind}", event, run)
        run.changed_at = offset
        run.requests = {**kept, event["request"]: run.now} if request else kept
        if not request and kind not in ("workflow-unknown", "code-suspected", "code-cleared"):
            run.decided = True
            run.unserved = False
            run.suspected = 0
            if run.version is None:
                run.version = event.get("version")
        if kind in ENDS:
            run.end = event
            run.ended_at = run.now
            run.last_error = event.get("error", run.last_error)
            _ended(run)
        if run.owes:
            partition.outbox.owe(offset, event["at"], run.owes)
            run.owes = []
        return Judged(None, event, run)

    @staticmethod
    def _delivered(partition: Partition, key: str, event: Json) -> Judged:
        if key != "@outbox" or event["claim"] != partition.claim or event["v"] > partition.format:
            return Judged("stale claim", event)
        partition.outbox.deliver(event["through"])
        return Judged(None, event)

    @staticmethod
    def _claim(partition: Partition, offset: int, timestamp: int, key: str, event: Json) -> Judged:
        if key != "@claim" or event["prev"] != partition.claim:
            return Judged("stale claim: claim", event)
        memory_ms = event.get("memory_ms")
        if not partition.claims and event["v"] > 1 and type(memory_ms) is int and memory_ms >= 0:
            partition.memory_ms = memory_ms
        partition.claims.append(Ownership(offset, timestamp, event["owner"]))
        partition.claim = offset
        partition.format = event["v"]
        return Judged(None, event)

    def _start(self, partition: Partition, known: Run | None, offset: int, timestamp: int, run_id: str, event: Json) -> Judged:
        if known is not None and (known.end is None or timestamp < known.ended_at + partition.memory_ms):
            parent = parent_of(event)
            again = known.end is None and known.request == event["request"]
            if parent is not None and not parent.detached and is_message(event) and not again:
                partition.outbox.owe(offset, event["at"], [refusal(parent, run_id)])
            return Judged("known run", event, known)
        if why := self._is_no_place_for(partition, run_id):
            return Judged(why, event)
        early = partition.early.pop(run_id, None)
        signals = early.unexpired(max(timestamp, early.now), partition.memory_ms) if early and partition.format > 1 else []
        now = max(timestamp, early.now) if early and signals else timestamp
        run = partition.runs[run_id] = Run(run_id, partition.number, offset, now, event)
        for at, signal in signals:
            run.requests[signal["request"]] = at
            _signal_received(run, signal)
        return Judged(None, event, run)

    def _early(self, partition: Partition, offset: int, timestamp: int, run_id: str, event: Json) -> Judged:
        """A signal for a run that may begin yet."""
        if why := self._is_no_place_for(partition, run_id):
            return Judged(why, event)
        early = partition.early.get(run_id)
        now = timestamp if early is None else max(timestamp, early.now)
        signals = [] if early is None else early.unexpired(now, partition.memory_ms)
        if any(signal["request"] == event["request"] for _, signal in signals):
            return Judged("precondition: signal-received", event)
        found = partition.early[run_id] = Early(offset)
        found.now = now if signals else timestamp
        found.signals = [*signals, [found.now, event]]
        return Judged(None, event)

    def _is_no_place_for(self, partition: Partition, run_id: str) -> str:
        if not _RUN_ID.fullmatch(run_id) or run_id[0] == "@":
            return "no run id"
        other = zlib.crc32(run_id.encode()) % len(self.partitions) != partition.number
        return "another partition's run" if other else ""

    @staticmethod
    def _was_seen(partition: Partition, event: Json) -> bool:
        """Whether a request gives a place of an inbox that is not above all those that were given before."""
        place: Any = event.get("from")
        if is_message(event):  # a request has one of the two
            return partition.outbox.has_come(event) and partition.format > 1
        if type(place) is not dict or not fits(cast(Json, place), PLACE_SHAPE):
            return False
        source, offset = f"{place['inbox']}/{place['partition']}", cast(int, place["offset"])
        highest = partition.sources.get(source)
        if highest is None or offset > highest:
            partition.sources[source] = offset
            return False
        return partition.format > 1


# One rule per event of a run that has not ended: checks the precondition, changes the run, says whether it holds.


def _is_new(run: Run, step_id: str) -> bool:
    return step_id != "" and step_id not in run.open and step_id not in run.over


def _next_attempt(run: Run, event: Json) -> Open | None:
    """The step, if this is about its next attempt. A step is open from the first thing that is recorded of it."""
    step_id = event["step_id"]
    step = run.open.get(step_id)
    if step is None and _is_new(run, step_id):
        step = Open("step")
    if step is None or step.kind not in ("step", "condition") or event["attempt"] != step.attempts + 1:
        return None
    run.open[step_id] = step
    return step


def _end_of_op(run: Run, step_id: str, kind: str, value: Any) -> None:
    del run.open[step_id]
    run.over.add(step_id)
    entry = run.by_step[step_id] = Entry(step_id, kind, run.now, value)
    run.journal.append(entry)


def _step_completed(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    run.due = step.next_at or 0
    _end_of_op(run, event["step_id"], "result", event["result"])
    return True


def _step_failed(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    run.due = step.next_at or 0
    run.failures[event["step_id"]] += 1
    step.attempts += 1
    step.failures += 1
    step.lost = 0
    step.announced = False
    step.error = run.last_error = event["error"]
    step.next_at = event["next_at"]
    if event.get("heartbeat") is not None:
        step.heartbeat = event["heartbeat"]
    if step.next_at is None:
        _end_of_op(run, event["step_id"], "error", [step.attempts, step.error])
    return True


def _attempt_started(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None or step.announced:
        return False
    step.announced = True
    step.next_at = None
    return True


def _attempt_lost(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None:
        return False
    run.lost[event["step_id"]] += 1
    step.attempts += 1
    step.lost += 1
    step.announced = False
    step.next_at = None
    return True


def _step_heartbeat(run: Run, event: Json) -> bool:
    step = _next_attempt(run, event)
    if step is None or event["at"] <= step.heartbeat_at:
        return False
    step.heartbeat, step.heartbeat_at = event["details"], event["at"]
    step.next_at = None
    return True


def _condition_started(run: Run, event: Json) -> bool:
    if not _is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = Open("condition", timeout_at=event["timeout_at"])
    return True


def _next_poll(run: Run, event: Json) -> Open | None:
    """The condition, if this is about its next attempt and its next poll. The first may be the first record of it."""
    step_id = event["step_id"]
    op = run.open.get(step_id)
    if op is None and _is_new(run, step_id):
        op = Open("condition", timeout_at=event.get("timeout_at"))
    if op is None or op.kind != "condition" or (event["attempt"], event["poll"]) != (op.attempts + 1, op.polls + 1):
        return None
    run.open[step_id] = op
    return op


def _condition_polled(run: Run, event: Json) -> bool:
    op = _next_poll(run, event)
    if op is None:
        return False
    run.due = op.next_at or 0
    op.attempts, op.polls, op.state, op.next_at = event["attempt"], event["poll"], event["state"], event["next_at"]
    op.failures, op.lost, op.announced, op.error, op.heartbeat = 0, 0, False, None, None
    return True


def _condition_timed_out(run: Run, event: Json) -> bool:
    op = run.open.get(event["step_id"])
    if event["kind"] == "attempts":
        op = _next_poll(run, event)
        if op is None:
            return False
        op.polls, op.state = event["poll"], event["state"]
    elif op is None or op.kind != "condition" or op.timeout_at is None or event["at"] < op.timeout_at:
        return False
    _end_of_op(run, event["step_id"], "condition-timed-out", [event["kind"], op.polls, op.state])
    return True


def _step_cancelled(run: Run, event: Json) -> bool:
    step_id = event["step_id"]
    if step_id in run.open:
        _stop(run, step_id, run.open.pop(step_id), "its parent no longer waits for it")
        run.over.add(step_id)
        return True
    if step_id not in run.given:
        return False
    name, data, request = run.given.pop(step_id)
    run.returned.add(step_id)
    run.waiting.setdefault(name, []).insert(0, [data, request])
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
    _end_of_op(run, event["step_id"], "woken", None)
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
    _end_of_op(run, event["step_id"], "timeout", None)
    return True


def _callback_created(run: Run, event: Json) -> bool:
    step_id = event["step_id"]
    if not _is_new(run, step_id):
        return False
    callback = run.open[step_id] = Open("callback", timeout_at=event["timeout_at"])
    callback.nonce, callback.heartbeat_ms, callback.beat_at = event["nonce"], event["heartbeat_ms"], run.now
    run.journal.append(Entry(step_id, "callback-created", run.now, event["nonce"]))
    return True


def _called_back(run: Run, event: Json) -> Open | None:
    """The open callback that a request is addressed to."""
    callback = run.open.get(event["step_id"])
    return callback if callback is not None and callback.kind == "callback" and callback.nonce == event["nonce"] else None


def _callback_answered(run: Run, event: Json) -> bool:
    if _called_back(run, event) is None:
        return False
    if event["type"] == "callback-failed":
        run.last_error = event["error"]
    _end_of_op(run, event["step_id"], event["type"], event["data" if event["type"] == "callback-completed" else "error"])
    return True


def _callback_heartbeat(run: Run, event: Json) -> bool:
    callback = _called_back(run, event)
    if callback is None:
        return False
    callback.beat_at = run.now
    return True


def _callback_timed_out(run: Run, event: Json) -> bool:
    callback = run.open.get(event["step_id"])
    at = None if callback is None or callback.kind != "callback" else callback.ends_at(event["kind"])
    if at is None or event["at"] < at:
        return False
    run.due = at
    _end_of_op(run, event["step_id"], "callback-timed-out", event["kind"])
    return True


def _signal_received(run: Run, event: Json) -> bool:
    run.sent.setdefault(event["signal"], []).append(event["data"])
    run.waiting.setdefault(event["signal"], []).append([event["data"], event["request"]])
    _give(run, event["signal"])
    return True


def _give(run: Run, name: str) -> None:
    """The oldest signal to the oldest wait."""
    signals = run.waiting.get(name)
    wait = next((step_id for step_id, op in run.open.items() if op.kind == "wait" and op.signal == name), None)
    if signals is None or wait is None:
        return
    given = run.given[wait] = [name, *signals.pop(0)]
    if not signals:
        del run.waiting[name]
    _end_of_op(run, wait, "signal", given)


def _cancel_requested(run: Run, event: Json) -> bool:
    if run.cancelled or (event.get("parent") is not None and (run.parent is None or parent_of(event) != run.parent)):
        return False
    run.cancelled = True
    run.reason = event.get("reason")
    run.journal.append(Entry("", "cancel", run.now, run.reason))
    for step_id, op in run.open.items():
        if not op.shielded:
            _stop(run, step_id, op, "its parent is being cancelled")
    return True


def _published(run: Run, event: Json) -> bool:
    last = run.published.get(event["key"])
    if event["seq"] != (1 if last is None else last[0] + 1) or (last is None and len(run.published) == MAX_KEYS):
        return False
    run.published[event["key"]] = [event["seq"], event["value"], run.now]
    return True


def _child_scheduled(run: Run, event: Json) -> bool:
    step_id, child = event["step_id"], event["child"]
    if not _is_new(run, step_id) or not _RUN_ID.fullmatch(child) or child[0] == "@":
        return False
    parent: Json = {"run_id": run.id, "start": start_of(run.request), "step_id": step_id}
    if event["detached"]:
        parent["detached"] = True
        run.over.add(step_id)
        entry = run.by_step[step_id] = Entry(step_id, "child-started", run.now, child)
        run.journal.append(entry)
    else:
        op = run.open[step_id] = Open("child", timeout_at=event["timeout_at"])
        op.child, op.workflow, op.on_parent_close = child, event["workflow"], event["on_parent_close"]
        op.shielded = event["shielded"]
        run.journal.append(Entry(step_id, "child-scheduled", run.now, child))
    start: Json = {"type": "started", "run_id": child, "request": f"start/{derived(run.id, run.request, step_id)}"}
    start |= {"workflow": event["workflow"], "version": event["child_version"], "input": event["input"], "parent": parent}
    run.owes.append(start)
    return True


def _from_child(run: Run, event: Json) -> bool:
    """A child tells its parent that it has ended, or another run that it has the child's id."""
    op = run.open.get(event["step_id"])
    if op is None or op.kind != "child" or (op.child, start_of(run.request)) != (event["child"], event["start"]):
        return False
    told: Any = None
    if event["type"] == "child-ended":
        told = [event["state"], event.get({"completed": "result", "failed": "error"}.get(event["state"], "reason"))]
        if event.get("error") is not None:
            run.last_error = event["error"]
    _end_of_op(run, event["step_id"], event["type"], [op.child, told])
    return True


def _child_timed_out(run: Run, event: Json) -> bool:
    op = run.open.get(event["step_id"])
    if op is None or op.kind != "child" or op.timeout_at is None or event["at"] < op.timeout_at:
        return False
    run.due = op.timeout_at
    _stop(run, event["step_id"], op, "it did not end in time")
    _end_of_op(run, event["step_id"], "child-timed-out", [op.child, None])
    return True


def _stop(run: Run, step_id: str, op: Open, reason: str) -> None:
    """The run owes a cancellation to a child that shall not outlive the operation; once."""
    if op.kind != "child" or op.stopped or op.on_parent_close != "cancel":
        return
    op.stopped = True
    parent = {"run_id": run.id, "start": start_of(run.request), "step_id": step_id}
    request = f"cancel/{derived(run.id, run.request, step_id)}"
    run.owes.append({"type": "cancel-requested", "run_id": op.child, "request": request, "reason": reason, "parent": parent})


def _ended(run: Run) -> None:
    assert run.end is not None
    state = run.end["type"]
    for step_id, op in run.open.items():
        _stop(run, step_id, op, f"its parent has {'been ' * (state == 'cancelled')}{state}")
    parent = run.parent
    if parent is None or parent.detached:
        return
    told: Json = {"reason": run.reason} if state == "cancelled" else {}
    told |= {name: run.end[name] for name in ("result", "error") if (state, name) in _TELLS}
    address: Json = {"type": "child-ended", "run_id": parent.run_id, "step_id": parent.step_id, "child": run.id}
    request = f"end/{derived(run.id, run.request, '')}"
    run.owes.append({**address, "start": parent.start, "request": request, "state": state, **told})


_TELLS = (("completed", "result"), ("failed", "error"))


def _workflow_unknown(run: Run, event: Json) -> bool:
    if run.unserved:
        return False
    run.unserved = True
    return True


def _input_completed(run: Run, event: Json) -> bool:
    if run.decided:
        return False
    run.input = event["input"]
    return True


def _code_suspected(run: Run, event: Json) -> bool:
    if run.suspected and event["claim"] == run.suspecting:
        return False
    run.suspected += 1
    run.suspecting = event["claim"]
    return True


def _code_cleared(run: Run, event: Json) -> bool:
    was, run.suspected = run.suspected, 0
    return was > 0


def _quarantined(run: Run, event: Json) -> bool:
    if run.quarantined is not None:
        return False
    run.quarantined = run.last_error = event["error"]
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
    "callback-created": _callback_created,
    "callback-completed": _callback_answered,
    "callback-failed": _callback_answered,
    "callback-heartbeat": _callback_heartbeat,
    "callback-timed-out": _callback_timed_out,
    "condition-started": _condition_started,
    "condition-polled": _condition_polled,
    "condition-timed-out": _condition_timed_out,
    "child-scheduled": _child_scheduled,
    "child-ended": _from_child,
    "child-refused": _from_child,
    "child-timed-out": _child_timed_out,
    "signal-received": _signal_received,
    "cancel-requested": _cancel_requested,
    "published": _published,
    "workflow-unknown": _workflow_unknown,
    "input-completed": _input_completed,
    "code-suspected": _code_suspected,
    "code-cleared": _code_cleared,
    "quarantined": _quarantined,
    "resumed": _resumed,
    "completed": lambda run, event: run.quarantined is None,
    "failed": lambda run, event: run.quarantined is None,
    "cancelled": lambda run, event: run.cancelled,
}
