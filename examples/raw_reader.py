"""Reads a stepfold history by its published rule (docs/audit.md), without a line of stepfold.

    python raw_reader.py orders.db                       an SQLite log
    python raw_reader.py localhost:9092 shop             the namespace "shop" on Kafka (needs aiokafka)

Prints for each run its state, how many steps it completed, and how often it ended.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import re
import sqlite3
import sys
import zlib
from importlib import import_module
from typing import Any, cast

# The fields of a well-formed event: i integer, s string, b boolean, o object, m object of integers, e error, p parent,
# * anything; ? or null; in brackets: may be absent.
REQUEST, DECISION = "run_id:s request:s (from:*) (cause:*) (by:*) ", "run_id:s claim:i (version:s?) "
STEP = DECISION + "step_id:s "
OPENS, TIMES = STEP + "(at_line:*) ", " (queued_at:*) (began_at:*)"
ANSWER = REQUEST + "step_id:s nonce:s (why:*) "
Event = dict[str, Any]
FIELDS = {
    "claim": "prev:i owner:s? nonce:s (memory_ms:*)",
    "delivered": "claim:i through:m",
    "started": REQUEST
    + "workflow:s input:* (version:s?) (trigger:o?) (reply_to:s?) (parent:p?) (why:*) (traceparent:*) (tracestate:*)",
    "signal-received": REQUEST + "signal:s data:* (why:*)",
    "cancel-requested": REQUEST + "(reason:s?) (parent:p?)",
    "step-completed": STEP + "attempt:i result:*" + TIMES,
    "step-failed": OPENS + "attempt:i error:e next_at:i?" + TIMES,
    "attempt-started": OPENS + "attempt:i (input:*) (input_note:*)",
    "attempt-lost": OPENS + "attempt:i",
    "step-heartbeat": OPENS + "attempt:i details:*",
    "step-cancelled": STEP,
    "sleep-scheduled": OPENS + "wake_at:i",
    "sleep-completed": STEP,
    "wait-started": OPENS + "signal:s timeout_at:i?",
    "wait-timed-out": STEP,
    "callback-created": OPENS + "nonce:s timeout_at:i? heartbeat_ms:i?",
    "callback-completed": ANSWER + "data:*",
    "callback-failed": ANSWER + "error:e",
    "callback-heartbeat": ANSWER,
    "callback-timed-out": STEP + "kind:s",
    "published": DECISION + "key:s value:* seq:i",
    "condition-started": OPENS + "timeout_at:i?",
    "condition-polled": OPENS + "attempt:i poll:i state:* next_at:i timeout_at:i?" + TIMES,
    "condition-timed-out": OPENS + "kind:s attempt:i? poll:i state:*",
    "child-scheduled": OPENS
    + "child:s workflow:s child_version:s? input:* on_parent_close:s timeout_at:i? detached:b shielded:b",
    "child-ended": REQUEST + "step_id:s child:s start:s state:s (error:e?) (reason:s?)",
    "child-refused": REQUEST + "step_id:s child:s start:s",
    "child-timed-out": STEP,
    "workflow-unknown": DECISION,
    "input-completed": DECISION + "input:*",
    "code-suspected": DECISION,
    "code-cleared": DECISION,
    "quarantined": DECISION + "error:e",
    "resumed": DECISION,
    "completed": DECISION + "result:*",
    "failed": DECISION + "error:e (at_line:*)",
    "cancelled": DECISION + "(reason:s?)",
}
WORDS = {
    "callback-timed-out": ("kind", ("timeout", "heartbeat")),
    "child-scheduled": ("on_parent_close", ("cancel", "abandon")),
    "child-ended": ("state", ("completed", "failed", "cancelled")),
}
BECOMES = {
    "quarantined": ("open", "quarantined"),
    "resumed": ("quarantined", "open"),
    "completed": ("open", "completed"),
    "failed": ("open", "failed"),
}
INSIDE = {"e": "type:s message:s (traceback:s?) (step_id:s?)", "p": "run_id:s start:s step_id:s (detached:b)"}
RUN_ID = re.compile("(?!@)[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")
DAY_MS = 24 * 3600 * 1000
MAX_DEPTH = 210
MAX_KEYS = 100


def has(event: Event, field: str) -> bool:
    name, _, kind = field.strip("()").partition(":")
    if name not in event:
        return field[0] == "("
    value = event[name]
    if kind[0] == "i" and type(value) is int:
        return -(2**63) <= value < 2**64
    if kind[0] in INSIDE and isinstance(value, dict):
        return all(has(cast(Event, value), text) for text in INSIDE[kind[0]].split())
    if kind[0] == "m" and isinstance(value, dict):
        return all(has(cast(Event, value), f"{inner}:i") for inner in cast(Event, value) if ":" not in inner)
    return kind[0] == "*" or (kind[-1] == "?" and value is None) or type(value) is {"s": str, "o": dict, "b": bool}.get(kind[0])


def number(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text) if set(text) & set(".eE") else int(text)


def depth(event: Event) -> int:
    """How deep objects and lists are nested."""
    count, level = 0, list[Any]([event])
    while level:
        count += 1
        values: list[Any] = [value for one in level for value in getattr(one, "values", one.__iter__)()]
        level = [value for value in values if type(value) in (dict, list)]
    return count


def parse(value: bytes) -> Event | None:
    """The event in a record's value; None for what is not well-formed."""
    try:
        event: Any = json.loads(value.decode(), parse_int=number, parse_float=number, parse_constant=number)
        json.dumps(event, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not has(cast(Event, event), "type:s"):
        return None
    found = cast(Event, event)
    word, words = WORDS.get(found["type"], ("type", (found["type"],)))
    if found.get(word) not in words:
        return None
    fields = f"v:i at:i {FIELDS.get(found['type'], 'nothing:s')}".split()
    return found if all(has(found, field) for field in fields) and depth(found) <= MAX_DEPTH else None


class Run:
    def __init__(self, start: Event, now: int, signals: list[tuple[int, Event]]) -> None:
        request, self.parent = start["request"], parent_of(start)
        self.digest = hashlib.blake2b(request.encode(), digest_size=8).hexdigest()
        self.state, self.now, self.steps, self.cancelling, self.unknown = "open", now, 0, False, False
        self.decided, self.suspected = False, -1  # the claim of the last `code-suspected` that counts yet
        # step id -> ("step", attempts over, announced, last heartbeat) | ("sleep", until) | ("wait", until, signal)
        #            | ("callback", nonce, until, heartbeat_ms, time of the last heartbeat)
        #            | ("condition", attempts over, announced, last heartbeat, until, polls)
        #            | ("child", until, run id)
        self.open: dict[str, Any] = {}
        self.request, self.requests, self.done = request, dict[str, int](), set[str]()
        self.signals: dict[str, int] = {}  # name -> how many were not taken
        self.published: dict[str, int] = {}  # key -> how many values were published under it
        self.taken: dict[str, str] = {}  # step id of a wait -> the name of the signal it was given
        for at, event in signals:  # that came before the run
            self.requests[event["request"]] = at
            self.match(event["signal"], 1)

    def close(self, step: str) -> None:
        self.open.pop(step, None)
        self.done.add(step)

    def match(self, signal: str, more: int = 0) -> None:
        """The oldest signal of a name goes to the oldest wait for it."""
        self.signals[signal] = self.signals.get(signal, 0) + more
        step = next((step for step, entry in self.open.items() if entry[0] == "wait" and entry[2] == signal), None)
        if step is not None and self.signals[signal]:
            self.signals[signal] -= 1
            self.taken[step] = signal
            self.close(step)

    def poll(self, event: Event, known: Any, fresh: bool) -> bool:
        """`accept` for the records of conditions. `known`: the open operation of this step id, if there is one."""
        kind, step = event["type"], event["step_id"]
        if kind == "condition-started":
            if fresh:
                self.open[step] = ("condition", 0, False, 0, event["timeout_at"], 0)
            return fresh
        if not (fresh or (known and known[0] == "condition")):
            return False
        over, _, beat_at, until, polls = known[1:] if known else (0, False, 0, event.get("timeout_at"), 0)
        if kind == "condition-timed-out" and event["kind"] != "attempts":
            if not known or event["kind"] != "timeout" or until is None or event["at"] < until:
                return False
        elif (event["attempt"], event["poll"]) != (over + 1, polls + 1):
            return False
        if kind == "condition-timed-out":
            self.close(step)
        else:
            self.open[step] = ("condition", over + 1, False, beat_at, until, polls + 1)
        return True

    def accept(self, event: Event, now: int) -> bool:
        """Whether the precondition holds; if so, what follows. `now`: the run's time, with this record."""
        kind = event["type"]
        step = event["step_id"] if "step_id:s" in FIELDS[kind] else ""
        known = self.open.get(step)
        fresh = bool(step) and known is None and step not in self.done
        if kind.startswith("condition-"):
            if not self.poll(event, known, fresh):
                return False
        elif "attempt:i" in FIELDS[kind]:
            if not fresh and (not known or known[0] not in ("step", "condition")):
                return False
            what, over, announced, beat_at, *more = known or ("step", 0, False, 0)
            if event["attempt"] != over + 1:
                return False
            if (kind == "attempt-started" and announced) or (kind == "step-heartbeat" and event["at"] <= beat_at):
                return False
            if kind == "step-completed" or (kind == "step-failed" and event["next_at"] is None):
                self.close(step)
                self.steps += kind == "step-completed"
            elif kind in ("step-failed", "attempt-lost"):
                self.open[step] = (what, over + 1, False, beat_at, *more)
            else:
                beat_at = event["at"] if kind == "step-heartbeat" else beat_at
                self.open[step] = (what, over, announced or kind == "attempt-started", beat_at, *more)
        elif kind in ("sleep-scheduled", "wait-started"):
            if not fresh:
                return False
            if kind == "sleep-scheduled":
                self.open[step] = ("sleep", event["wake_at"])
            else:
                self.open[step] = ("wait", event["timeout_at"], event["signal"])
                self.match(event["signal"])
        elif kind == "child-scheduled":
            if not fresh or not RUN_ID.fullmatch(event["child"]):
                return False
            self.open[step] = ("child", event["timeout_at"], event["child"])
            if event["detached"]:
                self.close(step)
        elif kind in ("child-ended", "child-refused"):
            if not known or known[0] != "child" or known[2] != event["child"] or event["start"] != self.digest:
                return False
            self.close(step)
        elif kind in ("sleep-completed", "wait-timed-out", "child-timed-out"):
            if not known or known[0] != kind.partition("-")[0] or known[1] is None or event["at"] < known[1]:
                return False
            self.close(step)
        elif kind == "callback-created":
            if not fresh:
                return False
            self.open[step] = ("callback", event["nonce"], event["timeout_at"], event["heartbeat_ms"], now)
        elif kind in ("callback-completed", "callback-failed", "callback-heartbeat"):
            if not known or known[:2] != ("callback", event["nonce"]):
                return False
            if kind == "callback-heartbeat":
                self.open[step] = (*known[:4], now)
            else:
                self.close(step)
        elif kind == "callback-timed-out":
            if not known or known[0] != "callback":
                return False
            heartbeat_by = None if known[3] is None else known[4] + known[3]
            at = known[2] if event["kind"] == "timeout" else heartbeat_by
            if at is None or event["at"] < at:
                return False
            self.close(step)
        elif kind == "step-cancelled":
            if not known and step not in self.taken:
                return False
            self.close(step)
            if not known:
                self.match(self.taken.pop(step), 1)  # the signal it had been given goes back
        elif kind in ("signal-received", "cancel-requested"):
            if kind == "cancel-requested" and self.cancelling:
                return False
            if event.get("parent") is not None and (self.parent is None or parent_of(event) != self.parent):
                return False
            if kind == "cancel-requested":
                self.cancelling = True
            else:
                self.match(event["signal"], 1)
        elif kind == "published":
            key, last = event["key"], self.published.get(event["key"], 0)
            if event["seq"] != last + 1 or (not last and len(self.published) == MAX_KEYS):
                return False
            self.published[key] = event["seq"]
        elif kind == "workflow-unknown":
            if self.unknown:
                return False
        elif kind == "input-completed":
            if self.decided:
                return False
        elif kind == "code-suspected":
            if self.suspected == event["claim"]:
                return False
            self.suspected = event["claim"]
        elif kind == "code-cleared":
            if self.suspected < 0:
                return False
            self.suspected = -1
        elif kind == "cancelled":
            if not self.cancelling:
                return False
            self.state = "cancelled"
        elif kind in BECOMES and self.state == BECOMES[kind][0]:
            self.state = BECOMES[kind][1]
        else:
            return False
        if "claim:i" in FIELDS[kind] and kind not in ("code-suspected", "code-cleared"):
            self.unknown = kind == "workflow-unknown"
            if not self.unknown:
                self.decided, self.suspected = True, -1
        return True


def parent_of(event: Event) -> tuple[str, ...] | None:
    """The operation that started a run; None for one that no run can have."""
    told = event.get("parent") or {"run_id": ""}
    if not RUN_ID.fullmatch(told["run_id"]) or len(told["start"]) > 16 or not 0 < len(told["step_id"]) <= 1_100:
        return None
    return told["run_id"], told["start"], told["step_id"], "detached" if told.get("detached") else ""


class Partition:
    def __init__(self, number: int, count: int) -> None:
        self.number, self.count, self.claim, self.format, self.memory_ms = number, count, -1, 2, DAY_MS
        self.open, self.last = dict[str, Run](), dict[str, Run]()
        self.ended_at, self.ends = dict[str, int](), dict[str, int]()
        self.early = dict[str, list[tuple[int, Event]]]()  # signals for runs that have not begun, with their times
        self.positions = dict[int, tuple[int, int]]()  # of each partition the highest position of a message from there
        self.places = dict[str, int]()  # of each partition of an inbox the highest place that was seen

    def was_seen(self, event: Event) -> bool:
        """Whether a request was found at a place of an inbox, or is a message, that is not above all that were seen."""
        cause, fields = event.get("cause"), ("partition:i", "offset:i", "n:i")
        if isinstance(cause, dict) and all(has(cast(Event, cause), field) for field in fields):
            position = cast(int, cause["offset"]), cast(int, cause["n"])
            if cause["partition"] not in self.positions or position > self.positions[cause["partition"]]:
                self.positions[cause["partition"]] = position
                return False
            return self.format > 1
        place, fields = event.get("from"), ("inbox:s", "partition:i", "offset:i")
        if not isinstance(place, dict) or not all(has(cast(Event, place), field) for field in fields):
            return False
        source, offset = f"{place['inbox']}/{place['partition']}", cast(int, place["offset"])
        if offset > self.places.get(source, offset - 1):
            self.places[source] = offset
            return False
        return self.format > 1

    def begin(self, now: int, key: str, event: Event) -> bool:
        """Whether a run begins, or a signal waits for it."""
        if not RUN_ID.fullmatch(key) or zlib.crc32(key.encode()) % self.count != self.number:
            return False
        if key in self.ended_at and now < self.ended_at[key] + self.memory_ms:
            return False
        early = self.early.get(key, [])
        latest = max(now, *(at for at, _ in early)) if early else now
        early = [(at, signal) for at, signal in early if latest < at + self.memory_ms and self.format > 1]
        now = latest if early else now
        if event["type"] == "started":
            self.early.pop(key, None)
            self.open[key] = self.last[key] = Run(event, now, early)
            return True
        if event["type"] != "signal-received" or self.format < 2 or event["request"] in (x["request"] for _, x in early):
            return False
        self.early[key] = [*early, (now, event)]
        return True

    def take(self, offset: int, timestamp: int, key: str, value: bytes) -> bool:
        """Whether the record is accepted."""
        event = parse(value)
        if event is None:
            return False
        if event["type"] == "claim":
            if key != "@claim" or event["prev"] != self.claim:
                return False
            if self.claim < 0 and event["v"] > 1 and has(event, "memory_ms:i") and event["memory_ms"] >= 0:
                self.memory_ms = event["memory_ms"]
            self.claim, self.format = offset, event["v"]
            return True
        if event["type"] == "delivered":  # what is owed decides nothing about a run
            return key == "@outbox" and event["claim"] == self.claim and event["v"] <= self.format
        is_decision = "claim:i" in FIELDS[event["type"]]
        if event["claim"] != self.claim if is_decision else self.was_seen(event):
            return False
        if event["v"] > self.format or event["run_id"] != key:
            return False
        run = self.open.get(key)
        if run is None:
            return not is_decision and self.begin(timestamp, key, event)
        now = max(run.now, timestamp)
        kept = run.requests if self.format < 2 else {name: at for name, at in run.requests.items() if now < at + self.memory_ms}
        if not is_decision and event["request"] in (run.request, *kept):
            return False
        if not run.accept(event, now):
            return False
        run.now, run.requests = now, kept if is_decision else {**kept, event["request"]: now}
        if run.state in ("completed", "failed", "cancelled"):
            self.ended_at[key] = self.open.pop(key).now
            self.ends[key] = self.ends.get(key, 0) + 1
        return True


def read_sqlite(path: str) -> list[Partition]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        [[count]] = file.execute("SELECT value FROM meta WHERE name = 'partitions'")
        partitions = [Partition(number, count) for number in range(count)]
        rows = file.execute("SELECT partition, offset, timestamp, key, value FROM history ORDER BY partition, offset")
        for number, *record in rows:
            partitions[int(number)].take(*record)
    return partitions


async def read_kafka(servers: str, namespace: str) -> list[Partition]:
    aiokafka: Any = import_module("aiokafka")
    async with aiokafka.AIOKafkaConsumer(
        f"{namespace}.history", bootstrap_servers=servers, auto_offset_reset="earliest"
    ) as consumer:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=100)
        places = sorted(consumer.assignment())
        partitions = [Partition(place.partition, len(places)) for place in places]
        ends = await consumer.end_offsets(places)
        await consumer.seek_to_beginning()
        while any([await consumer.position(place) < ends[place] for place in places]):
            for place, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    key, value = (record.key or b"").decode(errors="replace"), record.value or b""
                    partitions[int(place.partition)].take(record.offset, record.timestamp, key, value)
    return partitions


def main(arguments: list[str]) -> int:
    # A URL of stepfold's will do as well.
    kafka = re.fullmatch(r"kafka://([^/?]+)/([^/?]+)(\?.*)?", arguments[0]) if len(arguments) == 1 else None
    if kafka:
        arguments = [kafka[1], kafka[2]]
    arguments = [re.sub(r"^sqlite:///([^?]*).*", r"\1", argument) for argument in arguments]
    if len(arguments) not in (1, 2) or any("://" in argument for argument in arguments):
        print("python raw_reader.py FILE, or python raw_reader.py HOST:PORT[,HOST:PORT] NAMESPACE", file=sys.stderr)
        return 2
    try:
        found = read_sqlite(arguments[0]) if len(arguments) == 1 else asyncio.run(read_kafka(*arguments))
    except Exception as error:  # noqa: BLE001  # an example: whatever it is, one line is what its reader needs
        print(f"{' '.join(arguments)} cannot be read: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for partition in found:
        for run_id, run in partition.last.items():
            print(f"{run_id}\t{run.state}\t{run.steps} steps\t{partition.ends.get(run_id, 0)} ends")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
