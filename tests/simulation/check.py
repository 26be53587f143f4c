"""The checker of the simulated world: holds everything that it is told against what the engine promises.

It judges by the published rule alone (`judge`); of the engine it uses only what is to be checked: the state of an owner, and
what a checkpoint gives back. Every promise is checked at the event that would break it, so the last line of a trace is the
one to look at.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

import orjson
from judge import Entry, Judge, Open, Partition, Run
from judged import differences, row_differences
from judged_events import ANSWERS, ENDS, REQUESTS, Json, parse
from judged_messages import is_message, lost, misstep
from rules import Broken

from stepfold.core.fold import PartitionState, fold
from stepfold.core.runs import Runs
from stepfold.core.snapshot import unpack
from stepfold.core.state import RunState
from stepfold.errors import CallbackFailed, CallbackTimedOut, ConditionTimedOut, StepFailed
from stepfold.log import Record
from stepfold.worker.checkpoint import Checkpoint, StoredState

LOST_IN_A_ROW = 7
"""How often a step may be lost with its worker before its run is quarantined instead."""
SUSPECT_AFTER = 2
UNTRIED = "h-unwritable"
"""A step whose function has done its work and returned what cannot be written: once more would be the same."""
LATE_MS = 240_000
"""What was begun when the faults were over ends no later than that where its owner has not changed: the longest that hostile
code keeps a process is 40 s."""
EXACT_MS = 50
"""A clock that differs less is right."""
PAUSE_MS = 50
"""The first pause of a program's steps, for each attempt that they are allowed."""

Node = list[Any]
_SEND: Json = {"max": 3, "once": False, "pause_ms": 1000}
_TRACEBACK = re.compile(r',?"traceback":"(?:[^"\\]|\\.)*"')


class _Seen:
    """What was seen of one run besides its records. A place is (offset, claim)."""

    __slots__ = (
        "args",
        "beats",
        "counted",
        "ended",
        "given",
        "got",
        "limits",
        "naps",
        "once",
        "outcomes",
        "over",
        "policies",
        "quarantined",
        "started",
    )

    def __init__(self) -> None:
        self.over: dict[str, tuple[int, int]] = {}  # by step: where it was over
        self.outcomes: dict[str, list[Any]] = {}  # by step: what its function returned or raised
        self.counted: dict[str, tuple[int, int]] = {}  # by step: where its last attempt was over
        self.started: dict[tuple[str, int], list[str]] = {}  # by step and attempt: the workers that ran it
        self.args: dict[str, Any] = {}
        self.beats: dict[tuple[str, int, int], list[Any]] = {}  # by step, attempt and claim: its heartbeats
        self.given: dict[str, int] = {}  # by wait: since which offset it has its signal
        self.got: set[str] = set()  # the steps, sleeps and waits of which the code has got what came of them
        self.naps: dict[str, tuple[int, int, int]] = {}  # by sleep: claim, when it was over at the earliest, and when it began
        self.limits: dict[str, tuple[float, int]] = {}  # by callback with heartbeats: when it times out, and the silence allowed
        self.once: dict[str, bool] = {}  # by step: whether it is at_most_once
        self.policies: dict[str, list[Json]] | None = None  # by path and name
        self.quarantined: tuple[int, int] | None = None
        self.ended: tuple[int, int] | None = None


class _Part:
    """What was seen of one partition besides its state."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.writers: dict[int, str] = {}
        self.claims: dict[str, list[int]] = {}  # by writer: the accepted ones
        self.claimed_by: list[str] = []  # the writers of the accepted claims, in order
        self.values: set[tuple[int, bytes]] = set()  # decisions of the rightful owner: claim and value
        self.requests: set[tuple[str, str]] = set()  # run and request
        self.refused: dict[str, str] = {}  # requests of an inbox that changed nothing and were no repeats: place and reason
        self.stored: dict[str, bytes] = {}  # beside the partition
        self.marked: dict[int, int] = {}  # by claim: the offset of its last marker
        self.unpacked: dict[tuple[bytes, int, int], RunState] = {}  # by snapshot, offset and claim
        self.compared: dict[str, tuple[Any, int]] = {}  # by run: what it was found equal to, and after which change


class Checker:
    """An `Observer`. `latest`: the latest time, in ms, that a process can have seen on its clock by now; `now`: the true one."""

    def __init__(self, partitions: int, latest: Callable[[str], int], now: Callable[[], int]) -> None:
        self.judge = Judge(partitions)
        self._latest = latest
        self._now = now
        self._healed = False
        self._parts = [_Part() for _ in range(partitions)]
        self._seen: dict[int, _Seen] = {}  # by the identity of a judged run, which lives as long as this
        self._kept: list[Run] = []
        self._projected: dict[int, int] = {}  # by partition: the projection's position

    # -- the log

    def appended(self, partition: int, record: Record, writer: str) -> None:
        """Judge a record that became durable."""
        part, judged = self._parts[partition], self.judge.partitions[partition]
        offset, timestamp, key, value = record
        if offset < judged.next_offset:
            self._broken(1, f"its offset does not rise: {judged.next_offset} is next", partition, record)
        claim = judged.claim
        part.records[offset] = record
        part.writers[offset] = writer
        self._check_message(judged, record, writer)
        void, event, run = self.judge.judge(partition, offset, timestamp, key, value)
        if event is None:
            return
        kind = event["type"]
        if kind == "claim":
            if void is None:
                part.claims.setdefault(writer, []).append(offset)
                part.claimed_by.append(writer)
            return
        if kind == "delivered":
            return
        if kind in REQUESTS:
            if void is None and writer == "stranger" and "nonce" in event:
                self._broken(21, "a stranger has answered, or sent a heartbeat", partition, record)
            if event["run_id"] == key:
                part.requests.add((key, event["request"]))
            if void is None and run is not None and kind == "started":
                self._kept.append(run)
                self._seen[id(run)] = _Seen()
            elif void is None and run is not None and kind == "signal-received":
                self._note_given(run, offset)
            elif void is None and run is not None and kind == "callback-heartbeat":
                self._silence(record, run, event["step_id"], claim)
            elif void is not None and "from" in event and self._asks_in_vain(void, event, run):
                place = event["from"]
                part.refused[f"{place['inbox']}/{place['partition']}/{place['offset']}"] = void
            return
        if void is not None:
            if writer != "stranger":
                self._void(part, partition, record, writer, event, run, claim)
            if part.claimed_by and writer == part.claimed_by[-1]:
                part.values.add((claim, value))  # it was the owner's to decide: a repeat of it may come to count
            return
        assert run is not None
        if writer != part.claimed_by[-1]:
            if writer != "stranger" or (claim, value) not in part.values:
                self._broken(2, f"{writer} decided under the claim of {part.claimed_by[-1]}", partition, record)
        else:
            part.values.add((claim, value))
        self._accepted(partition, record, run, event, kind, (offset, claim))

    def _check_message(self, judged: Partition, record: Record, writer: str) -> None:
        """A message, or what an owner says of the messages that it has sent."""
        if b'"cause"' not in record.value and b'"delivered"' not in record.value:
            return
        event, outboxes = parse(record.value), [one.outbox for one in self.judge.partitions]
        wrong = ""
        if event is not None and event["type"] == "delivered" and event["claim"] == judged.claim:
            wrong = lost(judged.outbox, outboxes, event["through"])
        elif event is not None and is_message(event) and writer != "stranger":
            source: int = event["cause"]["partition"]
            wrong = misstep(outboxes[source], judged.outbox, event)
        if wrong:
            self._broken(23, wrong, judged.number, record)

    @staticmethod
    def _asks_in_vain(void: str, event: Json, run: Run | None) -> bool:
        """Whether a void request is no repeat, so that who sent it has to be told."""
        if void == "known run":
            return run is not None and (run.workflow, run.input) != (event["workflow"], event["input"])
        return void.startswith(("unknown run", "ended run", "precondition: callback"))

    def _void(self, part: _Part, partition: int, record: Record, writer: str, event: Json, run: Run | None, claim: int) -> None:
        """Most of what is void is so for good reason; some must not even be written."""
        under: int = event["claim"]
        if under not in part.claims.get(writer, ()):
            self._broken(2, f"{writer} decided under claim {under}, which it never had", partition, record)
        if under == claim and run is not None and run.end is None:
            op = run.open.get(event.get("step_id", ""))
            if op is not None and event["type"] == "sleep-completed" and op.kind == "sleep":
                self._broken(7, f"the sleep ends at {op.wake_at}, and was ended at {event['at']}", partition, record)
            if op is not None and event["type"] == "wait-timed-out" and op.timeout_at is not None:
                self._broken(7, f"the wait ends at {op.timeout_at}, and was ended at {event['at']}", partition, record)
            if op is not None and event["type"] == "callback-timed-out" and event["kind"] == "timeout" and op.kind == "callback":
                self._broken(7, f"the callback ends at {op.timeout_at}, and was ended at {event['at']}", partition, record)

    def _accepted(self, partition: int, record: Record, run: Run, event: Json, kind: str, place: tuple[int, int]) -> None:
        """A decision counts."""
        seen = self._seen[id(run)]
        if kind in ENDS:
            seen.ended = place
            if kind != "cancelled":
                self._none_passed_over(partition, record, run, place)
        elif kind in ("wait-started", "step-cancelled"):
            self._note_given(run, record.offset)
        elif kind == "quarantined":
            seen.quarantined = place
            self._may_be_quarantined(partition, record, run, event)
        elif kind == "resumed":
            seen.quarantined = None
        elif kind == "published":
            self._is_in_order(partition, record, run, event)
        if kind == "completed":
            self._is_all_published(partition, record, run, event["result"])
        step_id = event.get("step_id")
        if step_id is None:
            return
        if step_id in run.over:
            seen.over.setdefault(step_id, place)
        if kind == "step-completed":
            if (outcomes := seen.outcomes.get(step_id)) is not None and event["result"] not in outcomes:
                self._broken(19, f"its function returned {outcomes}", partition, record)
            if event["attempt"] > 1 or step_id in seen.counted:
                seen.counted[step_id] = place
        elif kind.startswith("condition-"):
            self._note_poll(partition, record, run, event, place)
        elif kind == "step-failed":
            seen.counted[step_id] = place
            self._within_policy(partition, record, run, event)
            if step_id.rpartition("/")[2].startswith(UNTRIED) and event["next_at"] is not None:
                self._broken(19, "a result that cannot be written is tried again", partition, record)
            self._keeps_heartbeat(partition, record, run, event)
        elif kind == "attempt-lost":
            seen.counted[step_id] = place
            handed_back = any(how["once"] for how in self._policies(run, step_id))  # before it ran: only those are, and say so
            if run.open[step_id].lost > LOST_IN_A_ROW and not handed_back:
                self._broken(4, f"the step was lost {run.open[step_id].lost} times in a row", partition, record)
        elif kind in ("sleep-completed", "wait-timed-out", "callback-timed-out", "child-timed-out"):
            latest = self._latest(self._parts[partition].writers[record.offset])
            if event["at"] > latest and event.get("kind") != "heartbeat":
                self._broken(7, f"its writer's clock cannot have said more than {latest}", partition, record)
            nap = seen.naps.get(step_id)
            if nap is not None and nap[0] == place[1] and self._now() > nap[1] + LATE_MS:
                self._broken(7, f"it was to last {nap[1] - nap[2]} ms, and lasted {self._now() - nap[2]}", partition, record)
        elif kind == "callback-created" and event["heartbeat_ms"] is not None:
            if self._healed:
                due = math.inf if event["timeout_at"] is None else self._now() + event["timeout_at"] - event["at"]
                seen.limits[step_id] = due, event["heartbeat_ms"]
                self._silence(record, run, step_id, place[1])
        elif kind in ("sleep-scheduled", "wait-started", "callback-created", "child-scheduled") and self._healed:
            due = event["wake_at"] if kind == "sleep-scheduled" else event["timeout_at"]
            if due is not None:
                seen.naps[step_id] = place[1], self._now() + max(due - event["at"], 0), self._now()
        if step_id.rpartition("/")[2].startswith("drift-"):
            drifted = {name for name in (*run.open, *run.over) if name.startswith("drift-")}
            if len(drifted) > 1:
                self._broken(11, f"the code went on with other steps than before: {sorted(drifted)}", partition, record)

    def _is_in_order(self, partition: int, record: Record, run: Run, event: Json) -> None:
        """A program publishes the number of each value among those of its key. A cancelled call may publish nothing."""
        value, seq = event["value"], event["seq"]
        if not _contains(_program(run), "hostile") and (value < seq or (value > seq and not run.cancelled)):
            self._broken(22, "the code has called for it once, in its turn", partition, record)

    def _is_all_published(self, partition: int, record: Record, run: Run, results: Any) -> None:
        """Whatever a program says it has published is in the log before its end."""
        if _contains(_program(run), "hostile") or run.cancelled:
            return
        for key, last in _published(results):
            if run.published.get(key, [0])[0] < last:
                self._broken(
                    22, f"{last} values of {key!r} were published, of which the log has {run.published}", partition, record
                )

    def _note_poll(self, partition: int, record: Record, run: Run, event: Json, place: tuple[int, int]) -> None:
        """The state is that which the check returned, and the next check comes in its time, unless it has to wait for a slot."""
        seen, step_id = self._seen[id(run)], event["step_id"]
        if event["type"] == "condition-started":
            return
        nap = seen.naps.pop(step_id, None)
        waited = event.get("queued_at") is not None
        if nap is not None and nap[0] == place[1] and not waited and self._now() > nap[1] + LATE_MS:
            self._broken(7, f"it was due in {nap[1] - nap[2]} ms, and came after {self._now() - nap[2]}", partition, record)
        if event["attempt"] is None:
            if event["at"] > (latest := self._latest(self._parts[partition].writers[record.offset])):
                self._broken(7, f"its writer's clock cannot have said more than {latest}", partition, record)
            return
        seen.counted[step_id] = place
        if (outcomes := seen.outcomes.get(step_id)) is not None and event["state"] not in outcomes:
            self._broken(19, f"its check returned {outcomes}", partition, record)
        if event["type"] == "condition-polled" and self._healed:
            due = min(at for at in (event["next_at"], event["timeout_at"]) if at is not None)
            seen.naps[step_id] = place[1], self._now() + max(due - event["at"], 0), self._now()

    def _silence(self, record: Record, run: Run, step_id: str, claim: int) -> None:
        """A callback was created, or somebody works on its answer: it ends after this silence, or at its time-out."""
        seen = self._seen[id(run)]
        limits = seen.limits.get(step_id)
        if limits is None:
            return
        if max(run.now - record.timestamp, abs(record.timestamp - self._now())) > EXACT_MS:  # its clock is or was off
            seen.naps.pop(step_id, None)
        else:
            seen.naps[step_id] = claim, round(min(limits[0], self._now() + limits[1])), self._now()

    def _note_given(self, run: Run, offset: int) -> None:
        given = self._seen[id(run)].given
        for wait in run.given:
            given.setdefault(wait, offset)

    def _none_passed_over(self, partition: int, record: Record, run: Run, place: tuple[int, int]) -> None:
        """The owner gives a signal back that came to a wait which the code had let go of, before the code gets a later one."""
        seen = self._seen[id(run)]
        signals = [entry for entry in run.journal if entry.kind == "signal"]
        for number, entry in enumerate(signals):
            if entry.step_id in seen.got or entry.step_id not in run.given or seen.given[entry.step_id] < place[1]:
                continue
            later = [other.step_id for other in signals[number + 1 :] if other.value[0] == entry.value[0]]
            if not seen.got.isdisjoint(later):
                self._broken(8, f"signal {entry.value} went to {entry.step_id}, which was gone, and is lost", partition, record)

    def _may_be_quarantined(self, partition: int, record: Record, run: Run, event: Json) -> None:
        error: Json = event["error"]
        if _contains(_program(run), "hostile"):
            return
        if error["type"] == "NonDeterminism":
            if not _contains(_program(run), "drift"):
                self._broken(11, "sound code was called nondeterministic", partition, record)
        elif error["type"] != "StepInterrupted":
            self._broken(17, "nothing in it is hostile", partition, record)
        elif not any(op.kind == "step" and op.lost >= LOST_IN_A_ROW for op in run.open.values()):
            self._broken(4, "no step of it was lost too often", partition, record)

    def _within_policy(self, partition: int, record: Record, run: Run, event: Json) -> None:
        """The step gives up neither too late nor too early, and its pause is as long as was asked for."""
        step_id: str = event["step_id"]
        policies = self._policies(run, step_id)
        if not policies or any("polls" in how for how in policies):
            return
        allowed = [how["max"] for how in policies]
        failures, attempt = run.failures[step_id], event["attempt"]
        if failures > max(allowed) or (failures == max(allowed) and event["next_at"] is not None):
            self._broken(4, f"attempt {attempt} is failure {failures}, of {max(allowed)} that are allowed", partition, record)
        if event["next_at"] is None:
            if failures not in allowed and "NonRetryable" not in event["error"]["type"]:
                self._broken(4, f"it gives up after failure {failures}, of {allowed} that are allowed", partition, record)
            return
        pauses = [how.get("pause_ms", PAUSE_MS * how["max"]) * 2 ** (failures - 1) for how in policies]
        shortest, longest = min(pauses) // 2, max(pauses)
        if not shortest <= event["next_at"] - event["at"] <= longest + 1:
            self._broken(4, f"the pause shall be between {shortest} and {longest} ms", partition, record)

    def _keeps_heartbeat(self, partition: int, record: Record, run: Run, event: Json) -> None:
        """The next attempt will be told how far this one came."""
        step_id, attempt, worker = event["step_id"], event["attempt"], self._parts[partition].writers[record.offset]
        op, seen = run.open.get(step_id), self._seen[id(run)]
        beats = seen.beats.get((step_id, attempt, event["claim"]))
        if op is None or beats is None:
            return
        once = seen.started[step_id, attempt].count(worker) == 1  # else they are of several executions
        if op.heartbeat not in (beats[-1:] if once else beats):
            self._broken(4, f"the attempt had come to {beats}, and the log says {op.heartbeat}", partition, record)

    def acknowledged(self, partition: int, offset: int, writer: str) -> None:
        """Only what is there may be acknowledged, and to who wrote it."""
        if self._parts[partition].writers.get(offset) != writer:
            found = self._parts[partition].records.get(offset)
            raise Broken(1, f"{writer} was told that its record is at {partition}/{offset}; there is {found}")

    def read(self, partition: int, record: Record, reader: str) -> None:
        """What is read is what was written."""
        written = self._parts[partition].records.get(record.offset)
        if written is not record and written != record:
            raise Broken(1, f"{reader} was given {record} of partition {partition}, where {written} was written")

    # -- steps and code

    def _find(self, run_id: str) -> tuple[_Part, Partition, Run | None]:
        number = zlib.crc32(run_id.encode()) % len(self._parts)
        judged = self.judge.partitions[number]
        return self._parts[number], judged, judged.runs.get(run_id)

    def step_started(self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, args: Any, heartbeat: Any) -> None:
        """A step may run if the log, as its worker knows it, says neither that it is over nor that another attempt is next."""
        part, judged, run = self._find(run_id)
        what = f"attempt {attempt} of step {step_id} of run {run_id} ran on {worker}"
        if run is None:
            raise Broken(5, f"{what}, and no record has started that run")
        claims = part.claims.get(worker)
        if not claims:
            raise Broken(2, f"{what}, which never had a claim on partition {judged.number}")
        latest = claims[-1]
        seen = self._seen[id(run)]
        # Whoever decided something, or has claimed the partition after that, knows of it.
        if seen.ended is not None and seen.ended[1] <= latest:
            raise Broken(10 if run.cancelled else 6, f"{what} after the end of the run at offset {seen.ended[0]}")
        if seen.quarantined is not None and seen.quarantined[1] <= latest:
            raise Broken(11, f"{what}; the run stands still since offset {seen.quarantined[0]}")
        over = seen.over.get(step_id)
        if over is not None and over[1] <= latest:
            raise Broken(4, f"{what} after the step was over at offset {over[0]}: {run.by_step.get(step_id)}")
        op = run.open.get(step_id)
        counted = op.attempts if op is not None else 0
        if over is None and (attempt > counted + 1 or (attempt <= counted and seen.counted[step_id][1] <= latest)):
            raise Broken(4, f"{what}; the log counts {counted} attempts before")
        known = op.heartbeat if op is not None else None
        if over is None and worker == part.claimed_by[-1] and heartbeat != known:
            raise Broken(4, f"{what}, and was told that it had come to {heartbeat}, the log says {known}")
        if isinstance(args, list):  # the state that a check got
            expected = op.state if op is not None and op.polls else [0]
            if over is None and worker == part.claimed_by[-1] and attempt == counted + 1 and args != expected:
                raise Broken(19, f"{what} on the state {args}; the log says {expected}")
        elif seen.args.setdefault(step_id, args) != args:
            raise Broken(11, f"{what} with {args!r}, and with {seen.args[step_id]!r} before")
        before = seen.started.setdefault((step_id, attempt), [])
        once = seen.once.get(step_id)
        if once is None:
            policies = self._policies(run, step_id)
            once = seen.once[step_id] = bool(policies) and all(how["once"] for how in policies)
        if once and (before or (op is not None and not op.announced and attempt > counted) or (op is None and over is None)):
            raise Broken(4, f"{what}, though it may run once only, after its announcement; it ran on {before}, {op}")
        if before and not once and before[-1] != worker and self._must_count_the_lost(part, judged, run, op, before[-1], worker):
            raise Broken(4, f"{what} again; it was lost with {before[-1]}, and nothing counted that")
        before.append(worker)

    def _policies(self, run: Run, step_id: str) -> list[Json]:
        """Of the steps that may have this id."""
        seen = self._seen[id(run)]
        if seen.policies is None:
            seen.policies = {}
            for name, how in _steps(_program(run), ""):
                seen.policies.setdefault(name, []).append(how)
        return seen.policies.get(step_id.partition("#")[0], [])

    def step_beat(self, worker: str, run_id: str, step_id: str, attempt: int, details: Any) -> None:
        """The last one shall be known when the attempt has failed."""
        part, _, run = self._find(run_id)
        assert run is not None
        self._seen[id(run)].beats.setdefault((step_id, attempt, part.claims[worker][-1]), []).append(details)

    @staticmethod
    def _must_count_the_lost(part: _Part, judged: Partition, run: Run, op: Open | None, before: str, worker: str) -> bool:
        """Who claims directly after a worker that died counts what that one had under way.

        It learns that from the run's code, which must ask for the same as in the process that died.
        """
        if _shares_objects(_program(run)):
            return False
        if op is not None and (op.next_at is not None or (op.lost >= SUSPECT_AFTER and not op.announced)):
            return False
        return part.claimed_by[-2:] == [before, worker] and judged.claims[-2].owner is not None

    def step_ended(self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, outcome: Any) -> None:
        """Nothing follows from that until it is in the log."""
        _, _, run = self._find(run_id)
        if run is not None:
            self._seen[id(run)].outcomes.setdefault(step_id, []).append(outcome)

    def delivered(self, worker: str, run_id: str, step_id: str, value: Any, at_ms: int) -> None:
        """Code may be given only what the log holds."""
        _, _, run = self._find(run_id)
        entry = run.by_step.get(step_id) if run is not None else None
        what = f"{worker} gave {value!r} to step {step_id} of run {run_id}"
        if entry is None:
            raise Broken(5, f"{what}, and no record says so")
        if not _is_what(entry, value):
            raise Broken(8 if entry.kind == "signal" else 4, f"{what}, the log says {entry}")
        assert run is not None
        self._seen[id(run)].got.add(step_id)
        if (
            run.cancelled
            and step_id != "cleanup"
            and not _contains(_program(run), "hostile")
            and not _contains(_program(run), "shield")
            and not _contains(_program(run), "child")  # whose end a cancellation waits for
        ):
            cancelled_at = next(number for number, one in enumerate(run.journal) if one.kind == "cancel")
            if entry in run.journal[cancelled_at:]:
                raise Broken(10, f"{what}, and it had been cancelled before")
        if at_ms != entry.now:
            raise Broken(4, f"{what} at {at_ms}, the log says {entry}")

    # -- state

    def state(self, worker: str, partition: int, state: PartitionState) -> None:
        """An owner's state is what the records before its offset amount to, and by that it is the owner."""
        if state.claim not in self._parts[partition].claims.get(worker, ()):
            raise Broken(2, f"{worker} is active on partition {partition}, and has read that claim {state.claim} holds it")
        if difference := differences(self.judge.partitions[partition], state):
            raise Broken(3, f"{worker}, partition {partition} up to offset {state.offset}: {difference}")

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Whoever loads what is stored now comes to the same state."""
        part = self._parts[partition]
        for key, value in items.items():
            part.stored.pop(key, None)
            if value is not None:
                part.stored[key] = value
                claim, _, rest = key.partition("/")
                if rest == "m":
                    offset = orjson.loads(value)["offset"]
                    if offset < part.marked.get(int(claim), 0):
                        raise Broken(13, f"partition {partition}: the marker of claim {claim} went back to offset {offset}")
                    part.marked[int(claim)] = offset
        if part.marked:
            self._restored(partition)

    def _restored(self, partition: int, *, and_on: bool = False) -> None:
        """`and_on`: with all records since, else those runs that have not changed since."""
        judged = self.judge.partitions[partition]
        part = self._parts[partition]
        shelf: Any = _Shelf(part.stored, len(self._parts), judged.next_offset, part.records)
        checkpoint = Checkpoint(shelf, partition, _is_idle) if and_on else _Checkpoint(shelf, partition, part.unpacked)
        state = _at_once(checkpoint.load())
        start = state.offset
        if start == 0:  # what is stored does not fit together: the fold from the start is always right
            return
        if and_on:
            for offset, record in part.records.items():
                if offset >= start:
                    fold(state, record)
        if difference := differences(judged, state, None if and_on else part.compared):
            raise Broken(3, f"partition {partition}, from the checkpoint at offset {start} on: {difference}")

    def projected(self, positions: Mapping[int, int], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """The rows are what the records before the positions amount to."""
        for partition, position in positions.items():
            if position < self._projected.get(partition, 0):
                raise Broken(13, f"partition {partition}: the projection went back to offset {position}")
            self._projected[partition] = position
            if difference := row_differences(self.judge.partitions[partition], position, rows):
                raise Broken(12, f"partition {partition} up to offset {position}: {difference}")
        if unknown := [run_id for run_id in rows if self._find(run_id)[2] is None]:
            raise Broken(12, f"there are rows of runs that no record has started: {sorted(unknown)}")

    # -- clients

    def client_acked(self, what: str, run_id: str, request: str, detail: Any) -> None:
        """What a client was told to be durable is in the log."""
        part, _, run = self._find(run_id)
        if run is None:
            raise Broken(1, f"the {what} of run {run_id} was acknowledged, and no record has started that run")
        if request and (run_id, request) not in part.requests:
            raise Broken(1, f"the {what} {request!r} of run {run_id} was acknowledged, and is not in the log")
        if what == "start" and run.input != detail:
            raise Broken(9, f"run {run_id} was started with {detail!r}, the log says {run.input!r}")
        if what == "signal" and run.end is None and (request not in run.requests or detail[1] not in run.sent.get(detail[0], ())):
            raise Broken(8, f"the signal {request!r} of run {run_id} was acknowledged, and the run has not got it")
        if what == "callback":
            self._may_count(run, detail)
        if what == "cancel" and run.end is None and not run.cancelled:
            raise Broken(10, f"the cancellation of run {run_id} was acknowledged, and the run goes on")

    @staticmethod
    def _may_count(run: Run, answer: list[Any]) -> None:
        """A client was told that its answer counts: what the program asks for, what the client said, and the verdict."""
        what, data, counts = answer
        if counts and what == "forged":
            raise Broken(21, f"a forged answer to a callback of run {run.id} counts")
        given = [entry.value for entry in run.journal if entry.kind in ANSWERS]
        if counts and what in ("good", "list") and data not in given:
            raise Broken(21, f"the answer {data!r} to a callback of run {run.id} counts, and the log says {given}")

    def client_result(self, run_id: str, outcome: Any) -> None:
        """A client is told what the log says."""
        _, _, run = self._find(run_id)
        end = run.end if run is not None else None
        kind = {"WorkflowFailed": "failed", "WorkflowCancelled": "cancelled"}.get(type(outcome).__name__, "completed")
        if end is None or end["type"] != kind or (kind == "completed" and end["result"] != outcome):
            raise Broken(6, f"a client was told that run {run_id} gave {outcome!r}, the log says {end}")

    def put_back(self, ends: Sequence[int], stored: Sequence[Mapping[str, bytes]]) -> None:
        """What was seen of the records that are gone is forgotten: they never were."""
        before = self._parts
        self.judge = Judge(len(before))
        self._parts = [_Part() for _ in before]
        self._seen.clear()
        self._projected.clear()
        for number, (part, end) in enumerate(zip(before, ends, strict=True)):
            for offset, record in part.records.items():
                if offset < end:
                    self.appended(number, record, part.writers[offset])
            self._parts[number].stored.update(stored[number])

    def healed(self) -> None:
        """Whoever tells of a time from now on keeps it."""
        self._healed = True

    def died(self, process: str) -> None:
        """Its work goes on elsewhere, from the last checkpoint on."""
        for number, part in enumerate(self._parts):
            if part.marked and process in part.claims:
                self._restored(number, and_on=True)

    def quiet(self, world: Any) -> None:
        """Every run has come to something, and nothing that was asked for is missing."""
        for judged, part in zip(self.judge.partitions, self._parts, strict=True):
            if part.marked:
                self._restored(judged.number, and_on=True)
            if judged.outbox.targets:
                raise Broken(23, f"partition {judged.number} still owes {judged.outbox.targets}")
            for run in judged.runs.values():
                if run.end is None and run.quarantined is None:
                    raise Broken(10 if run.cancelled else 14, f"run {run.id} has not ended; open are {run.open}")
                if run.changed_at >= self._projected.get(judged.number, judged.next_offset):
                    raise Broken(12, f"the projection has not come to offset {run.changed_at}, where run {run.id} changed")
        self._all_routed(world.log)

    def _all_routed(self, log: Any) -> None:
        """What came through the inbox is in the history, or among the dead letters."""
        refused = {record.place for record, _ in log.dead_letters}
        asked = {request for part in self._parts for _, request in part.requests}
        for part in log.partitions:
            for number, record in enumerate(part.inbox):
                request = f"{record.place}-{record.inbox}"
                if number in part.given_up:
                    if request in asked or record.place in refused:
                        raise Broken(20, f"{record.place} was served, and its transaction was aborted: {record.value!r}")
                    continue
                is_cloud_event = b'"specversion"' in (record.value or b"")
                if not is_cloud_event and record.place not in refused and request not in asked:
                    raise Broken(18, f"the inbox was read past {record.place}, and {record.value!r} has come to nothing")
        for seen in self._parts:
            if untold := seen.refused.keys() - refused:
                place = min(untold)
                raise Broken(18, f"nobody was told that {place} was refused: {seen.refused[place]}")

    def _broken(self, rule: int, what: str, partition: int, record: Record) -> NoReturn:
        shown = _TRACEBACK.sub("", record.value.decode(errors="replace"))
        raise Broken(
            rule, f"{partition}/{record.offset}, written by {self._parts[partition].writers.get(record.offset)}: {what}: {shown}"
        )


class _Shelf:
    """As much of a log as it takes to load a checkpoint."""

    name = "the simulated log"

    def __init__(self, stored: dict[str, bytes], partitions: int, end: int, records: dict[int, Record]) -> None:
        self._stored = stored
        self._records = records
        self.partitions = partitions
        self._end = end
        markers = [value for key, value in stored.items() if key.endswith("/m")]
        self.id = orjson.loads(markers[-1])["log"] if markers else ""

    async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        yield cast(dict[str, bytes | None], self._stored)

    async def bounds(self, partition: int) -> tuple[int, int]:
        return 0, self._end

    def reader(self, partition: int, offset: int) -> _One:
        return _One(self._records, offset, self._end)


class _One:
    """Reads one record of a shelf: the one whose mark a checkpoint keeps."""

    def __init__(self, records: dict[int, Record], position: int, end: int) -> None:
        self._records = records
        self._end = end
        self.position = position

    async def read(self, limit: int, wait: float) -> list[Record]:
        for at in range(self.position, max(self._records, default=-1) + 1):
            if at in self._records:
                self.position = at + 1
                return [self._records[at]]
        self.position = self._end
        return []

    async def close(self) -> None:
        pass


class _Checkpoint(Checkpoint):
    """Loads what is stored as an owner does, but unpacks no snapshot twice."""

    def __init__(self, log: Any, partition: int, unpacked: dict[tuple[bytes, int, int], RunState]) -> None:
        super().__init__(log, partition, _is_idle)
        self._unpacked = unpacked

    def _stored_state(self) -> StoredState:
        return _StoredState(self._log, self._partition, self._unpacked)


class _StoredState(StoredState):
    def __init__(self, log: Any, partition: int, unpacked: dict[tuple[bytes, int, int], RunState]) -> None:
        super().__init__(log, partition)
        self._unpacked = unpacked

    def _keep(self, runs: Runs, run_id: str, value: bytes, offset: int, claim: int, is_idle: bool) -> int:
        run = self._unpacked.get((value, offset, claim))
        if run is None:
            run = self._unpacked[value, offset, claim] = unpack(value)
            run.folded = offset
        runs.unpacked[run_id] = run
        runs.note_stored(run_id, claim)
        return run.start


def _is_idle(run_id: str) -> bool:
    return False


def _at_once(coroutine: Any) -> Any:
    """What a coroutine gives that waits for nothing but its turn."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def _is_what(entry: Entry, value: Any) -> bool:
    """Whether the code was given what the log holds."""
    if entry.kind == "error":
        return isinstance(value, StepFailed) and [value.attempts, value.error.message] == [
            entry.value[0],
            entry.value[1]["message"],
        ]
    if entry.kind == "callback-failed":
        return isinstance(value, CallbackFailed) and value.message == entry.value["message"]
    if entry.kind == "condition-timed-out":
        return isinstance(value, ConditionTimedOut) and [value.kind, value.polls] == entry.value[:2]
    if entry.kind == "callback-timed-out":
        return isinstance(value, CallbackTimedOut) and value.kind == entry.value
    return value == (entry.value[1] if entry.kind == "signal" else entry.value)


# What a program asks for: its JSON is the input of its run, see programs.py.


def _inner(node: Node) -> list[Node]:
    if node[0] in ("seq", "gather", "group", "race", "map", "first"):
        return node[1]
    return [node[2]] if node[0] == "within" else [node[1]] if node[0] == "shield" else []


def _program(run: Run) -> Node:
    """What its input says; runs of others than the world have none."""
    program: Any = run.input
    return cast(Node, program) if isinstance(program, list) else ["seq", []]


def _published(results: Any) -> Iterator[tuple[str, int]]:
    """The keys under which a program published, with the number of the last value then."""
    if isinstance(results, list):
        values = cast(list[Any], results)
        if values[:1] == ["published"]:
            yield values[1], values[2]
        for inner in values:
            yield from _published(inner)


def _contains(node: Node, kind: str) -> bool:
    return node[0] == kind or any(_contains(inner, kind) for inner in _inner(node))


def _shares_objects(node: Node) -> bool:
    return node[:2] == ["hostile", "shares"] or any(_shares_objects(inner) for inner in _inner(node))


def _steps(node: Node, path: str) -> Iterator[tuple[str, Json]]:
    """All steps below a node, by path and name."""
    kind = node[0]
    if kind == "step":
        yield path + node[1], node[2]
    elif kind == "poll":
        yield path + node[1], {**node[2], "max": 3, "once": False}
    elif kind == "send":
        yield path + node[1], _SEND
    elif kind in ("gather", "group", "race"):
        for number, inner in enumerate(node[1]):
            yield from _steps(inner, f"{path}{number}/")
    elif kind in ("map", "first"):
        for number, inner in enumerate(node[1]):
            yield from _steps(inner, f"{path}all/{number}/")
    else:
        for inner in _inner(node):
            yield from _steps(inner, path)
