"""What holds for the fold of any history: most of it as owners and clients would write it, some of it wrong in every way.

`Author` turns a list of small choices into records. It looks at the folded state to write what fits, so that histories get
far, and mixes in what does not: repeats, records under an old claim, of other runs, cut or changed bytes.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import orjson
from histories import REQUESTS, START_MS, Keeper, Ledger, facts, record, stored
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from judge import Judge
from judged import differences

from stepfold.core.ended import fingerprint
from stepfold.core.fold import PartitionState, fold
from stepfold.core.messages import OUTBOX_KEY, Outbox
from stepfold.core.snapshot import pack, unpack
from stepfold.core.state import EXPECTED, RunState
from stepfold.drivers import MemoryDriver
from stepfold.events import FORMAT, SHAPES, parse
from stepfold.log import CLAIM_KEY, Record
from stepfold.operations.attempted import OpenAttempts
from stepfold.operations.callback import OpenCallback
from stepfold.operations.child import OpenChild
from stepfold.operations.condition import OpenCondition
from stepfold.operations.signal import OpenWait
from stepfold.operations.sleep import OpenSleep

MEMORY_MS = 1_000
RUNS = ("a", "b", "c/m", "d")
STEPS = ("s", "s#2", "t/u", "@timer", *(f"step-{number}" for number in range(8)))
SIGNALS = ("go", "stop")
ERROR = {"type": "E", "message": "no"}

Choice = tuple[str, int, int]


class Author:
    """Writes one history; `x` and `y` of a choice pick among what fits."""

    def __init__(self) -> None:
        self.ledger = Ledger(stride=1)
        self.known = 0
        self.accepted = 0
        self.inbox = [0, 0]
        self.sent = 0
        self.found: list[dict[str, Any]] = []

    def write(self, choices: list[Choice]) -> list[Record]:
        for action, x, y in choices:
            getattr(self, action)(x, y)
        return self.ledger.records

    def put(self, type: str, run_id: str, **fields: Any) -> None:
        if type in REQUESTS and len(self.ledger.records) % 3 == 0:
            fields = self.placed(run_id) | fields if "parent" not in fields else fields
        event = self.ledger.event(type, run_id, **fields)
        if "from" in event or "cause" in event:
            self.found.append(event)
        change = self.ledger.write(event, key=run_id)
        self.known += 1
        self.accepted += change is not None

    def placed(self, run_id: str) -> dict[str, Any]:
        """A request that a router found in the inbox, at the next place of one of its partitions."""
        partition = sum(run_id.encode()) % 2
        self.inbox[partition] += 1
        return {"from": {"inbox": "of-one", "partition": partition, "offset": self.inbox[partition]}}

    def run(self, x: int) -> str:
        open_runs = [run_id for run_id in self.ledger.state.runs.ids() if self.ledger.state.runs.peek(run_id).phase != EXPECTED]
        return open_runs[x % len(open_runs)] if open_runs else RUNS[x % len(RUNS)]

    def next_attempt(self, run_id: str, x: int) -> tuple[str, int]:
        """The next attempt of a step or condition that has none open as a sleep or a wait."""
        run = self.ledger.state.runs.get(run_id)
        step_id = STEPS[x % len(STEPS)]
        if run is None:
            return step_id, 1
        free = [s for s in STEPS if s not in run.done and isinstance(run.open.get(s, None), OpenAttempts | None)]
        step_id = free[x % len(free)] if free else step_id
        step = run.open.get(step_id)
        return step_id, step.attempts + 1 if isinstance(step, OpenAttempts) else 1

    def open_of(self, run_id: str, kind: type, x: int) -> str:
        run = self.ledger.state.runs.get(run_id)
        found = [step_id for step_id, op in run.open.items() if isinstance(op, kind)] if run else []
        return found[x % len(found)] if found else STEPS[x % len(STEPS)]

    # what owners and clients write

    def claim(self, x: int, y: int) -> None:
        self.ledger.claim((None, "worker-a", "worker-b", "worker-c")[x % 4])

    def start(self, x: int, y: int) -> None:
        version = ("1", None)[y % 2]
        self.put("started", RUNS[x % len(RUNS)], workflow="w", version=version, input=[x, None, {"y": y}])

    def complete(self, x: int, y: int) -> None:
        run_id = self.run(x)
        step_id, attempt = self.next_attempt(run_id, y)
        self.put("step-completed", run_id, step_id=step_id, attempt=attempt, result={"n": y}, version="2")

    def fail(self, x: int, y: int) -> None:
        run_id = self.run(x)
        step_id, attempt = self.next_attempt(run_id, y)
        next_at = None if x % 3 == 0 else self.ledger.now_ms + y
        self.put("step-failed", run_id, step_id=step_id, attempt=attempt, error=ERROR, next_at=next_at, heartbeat=y or None)

    def attempt(self, x: int, y: int) -> None:
        run_id = self.run(x)
        step_id, attempt = self.next_attempt(run_id, y)
        kind = ("attempt-started", "attempt-lost", "step-heartbeat")[(x + y) % 3]
        self.put(kind, run_id, step_id=step_id, attempt=attempt, details={"done": y})

    def sleep(self, x: int, y: int) -> None:
        self.put("sleep-scheduled", self.run(x), step_id=STEPS[y % len(STEPS)], wake_at=self.ledger.now_ms + y)

    def wait(self, x: int, y: int) -> None:
        timeout_at = None if x % 2 else self.ledger.now_ms + y
        step_id = STEPS[(x + y) % len(STEPS)]
        self.put("wait-started", self.run(x), step_id=step_id, signal=SIGNALS[y % 2], timeout_at=timeout_at)

    def wake(self, x: int, y: int) -> None:
        run_id = self.run(x)
        self.put("sleep-completed", run_id, step_id=self.open_of(run_id, OpenSleep, y), at=self.ledger.now_ms + 4)

    def time_out(self, x: int, y: int) -> None:
        run_id = self.run(x)
        self.put("wait-timed-out", run_id, step_id=self.open_of(run_id, OpenWait, y), at=self.ledger.now_ms + 4)

    def signal(self, x: int, y: int) -> None:
        self.put("signal-received", self.run(x), signal=SIGNALS[y % 2], data=[x, y])

    def ask(self, x: int, y: int) -> None:
        limits = {"timeout_at": None if x % 3 else self.ledger.now_ms + y, "heartbeat_ms": (None, 3, 2**63)[y % 3]}
        self.put("callback-created", self.run(x), step_id=STEPS[(x + y) % len(STEPS)], nonce=f"n{x % 2}", **limits)

    def answer(self, x: int, y: int) -> None:
        run_id = self.run(x)
        step_id = self.open_of(run_id, OpenCallback, y)
        run = self.ledger.state.runs.get(run_id)
        callback = None if run is None else run.open.get(step_id)
        if not isinstance(callback, OpenCallback):
            self.ask(x, y)
            return
        nonce = callback.nonce if y % 6 else "forged"
        kind = ("callback-completed", "callback-heartbeat", "callback-failed", "callback-heartbeat")[(x + y) % 4]
        self.put(kind, run_id, step_id=step_id, nonce=nonce, data=[x, y], error=ERROR)

    def hear_nothing(self, x: int, y: int) -> None:
        run_id = self.run(x)
        kind = ("timeout", "heartbeat")[y % 2]
        self.put(
            "callback-timed-out", run_id, step_id=self.open_of(run_id, OpenCallback, y), kind=kind, at=self.ledger.now_ms + 4
        )

    def publish(self, x: int, y: int) -> None:
        """The next value of a key, mostly; so many new keys that not all are taken."""
        run_id = self.run(x)
        run = self.ledger.state.runs.get(run_id)
        keys = run.kept.get("published", {}) if run else {}
        if x == y == 0:
            for number in range(101):
                self.put("published", run_id, v=2, key=f"item-{number}", value=number, seq=1)
        key = f"key-{y % 3}"
        seq = keys[key][0] + 1 if key in keys else 1
        self.put("published", run_id, v=2, key=key, value=[x, {"y": y}], seq=seq + (y % 7 == 0))

    def expect(self, x: int, y: int) -> None:
        timeout_at = None if x % 3 else self.ledger.now_ms + y
        self.put("condition-started", self.run(x), step_id=STEPS[(x + y) % len(STEPS)], timeout_at=timeout_at)

    def poll(self, x: int, y: int) -> None:
        """The next poll of a condition, which may end it, or the end of its time."""
        run_id = self.run(x)
        run = self.ledger.state.runs.get(run_id)
        step_id = self.open_of(run_id, OpenCondition, y)
        op = None if run is None else run.open.get(step_id)
        attempt, poll = (op.attempts + 1, op.polls + 1) if isinstance(op, OpenCondition) and y % 8 else (1, 1)
        times = {"next_at": self.ledger.now_ms + y, "timeout_at": None if x % 2 else self.ledger.now_ms + y}
        kind, at = ("timeout", "attempts")[x % 2], self.ledger.now_ms + 4
        if y % 3 or x % 4 > 1:
            self.put("condition-polled", run_id, step_id=step_id, attempt=attempt, poll=poll, state=[x, y], **times)
        else:
            self.put("condition-timed-out", run_id, step_id=step_id, kind=kind, attempt=attempt, poll=poll, state=y, at=at)

    def early(self, x: int, y: int) -> None:
        self.put("signal-received", RUNS[x % len(RUNS)], signal=SIGNALS[y % 2], data=[x, y], request=f"early-{y}")

    def child(self, x: int, y: int) -> None:
        fields: dict[str, Any] = {"workflow": "w", "child_version": ("1", None)[y % 2], "input": {"n": y}, "detached": y % 4 == 0}
        timeout_at = None if x % 3 else self.ledger.now_ms + y
        policy = ("cancel", "abandon")[x % 2]
        step_id = STEPS[(x + y) % len(STEPS)]
        fields |= {"child": RUNS[y % len(RUNS)] if y % 5 else f"kid-{x}", "on_parent_close": policy, "timeout_at": timeout_at}
        fields["shielded"] = x % 5 == 0
        self.put("child-scheduled", self.run(x), v=2, step_id=step_id, **fields)

    def child_over(self, x: int, y: int) -> None:
        run_id = self.run(x)
        step_id = self.open_of(run_id, OpenChild, y)
        run = self.ledger.state.runs.get(run_id)
        op = None if run is None else run.open.get(step_id)
        if run is None or not isinstance(op, OpenChild):
            self.child(x, y)
            return
        fields: dict[str, Any] = {"child": op.child if y % 7 else "forged", "start": run.start_digest if x % 7 else "forged"}
        kind = ("child-ended", "child-refused", "child-ended", "child-timed-out")[(x + y) % 4]
        state = ("completed", "failed", "cancelled")[y % 3]
        self.put(kind, run_id, step_id=step_id, **fields, state=state, result=[x, y], error=ERROR, at=self.ledger.now_ms + 4)

    def message(self, x: int, y: int) -> None:
        """Another partition starts a child here, or cancels it."""
        self.sent += 1
        position = {"cause": {"partition": x % 3, "offset": self.sent // 2, "n": self.sent % 2}}
        parent = {"run_id": f"parent-{y % 2}", "start": "0" * 16, "step_id": "s", "detached": y % 3 == 0}
        run_id = RUNS[x % len(RUNS)]
        if y % 4:
            self.put("started", run_id, v=2, workflow="w", version=None, input=y, parent=parent, **position)
        else:
            self.put("cancel-requested", run_id, v=2, reason=None, parent=parent, **position)

    def deliver(self, x: int, y: int) -> None:
        through = {"0": len(self.ledger.records) - y, "1": 2**62 if y % 2 else 1, "-1": 1, "x": 1}
        event = {"type": "delivered", "v": 2, "at": 1, "claim": self.ledger.state.claim - (x % 5 == 0), "through": through}
        self.accepted += self.ledger.write(event, key=OUTBOX_KEY if x % 6 else CLAIM_KEY) is not None
        self.known += 1

    def read_again(self, x: int, y: int) -> None:
        """A router that lost its position appends what it finds behind some place again, under the same ids or others."""
        for event in self.found[-1 - x :]:
            again = event | ({"request": event["request"] + "-again"} if y % 4 == 0 else {})
            self.ledger.write(again, key=event["run_id"])

    def let_go(self, x: int, y: int) -> None:
        run_id = self.run(x)
        run = self.ledger.state.runs.get(run_id)
        ids = [*run.open, *(delivery.step_id for delivery in run.journal)] if run else []
        self.put("step-cancelled", run_id, step_id=ids[y % len(ids)] if ids else "s")

    def cancel(self, x: int, y: int) -> None:
        self.put("cancel-requested", self.run(x), reason=(None, "because")[y % 2])

    def stand(self, x: int, y: int) -> None:
        self.put(("quarantined", "resumed", "workflow-unknown")[y % 3], self.run(x), error=ERROR)

    def suspect(self, x: int, y: int) -> None:
        run_id = self.run(x)
        self.put(("code-suspected", "input-completed")[y % 2], run_id, input=[y, "made"])
        if y % 3 == 0:
            self.put("code-cleared", run_id)

    def end(self, x: int, y: int) -> None:
        kind = ("completed", "failed", "cancelled")[y % 3]
        self.put(kind, self.run(x), result=y, error=ERROR, reason=None)

    def time(self, x: int, y: int) -> None:
        self.ledger.now_ms += (1, 50, -20, MEMORY_MS)[x % 4]

    # what else may land in a log

    def repeat(self, x: int, y: int) -> None:
        records = self.ledger.records
        if records:
            old = records[-1 - x % len(records)]
            self.ledger.write(old.value, key=old.key)

    def stale(self, x: int, y: int) -> None:
        claim = self.ledger.state.claim - 1 - y
        run_id = self.run(x)
        step_id, attempt = self.next_attempt(run_id, y)
        fields: dict[str, Any] = {"step_id": step_id, "attempt": attempt, "result": "stale"}
        self.ledger.write(self.ledger.event("step-completed", run_id, **fields) | {"claim": claim}, key=run_id)

    def stale_claim(self, x: int, y: int) -> None:
        self.ledger.claim("zombie", prev=self.ledger.state.claim - 1 - y)

    def foreign(self, x: int, y: int) -> None:
        self.ledger.write(self.ledger.event("completed", self.run(x), result=1), key=RUNS[y % len(RUNS)] + "'")
        self.ledger.write(self.ledger.event("started", "@no-id", workflow="w", input=1), key="@no-id")

    def newer(self, x: int, y: int) -> None:
        self.put("signal-received", self.run(x), signal="go", data=1, v=FORMAT + 1 + y)

    def newer_claim(self, x: int, y: int) -> None:
        self.ledger.claim("worker-of-tomorrow", v=FORMAT - 1 + y % 3)

    def garbage(self, x: int, y: int) -> None:
        value = (b"", b"[]", b"{", b'{"type":"claim"}', b'{"type":"completed","v":1}', b"\xff", b"null", b"1e999")[x % 8]
        self.ledger.write(value, key=(CLAIM_KEY, self.run(y))[y % 2])

    def spoil(self, x: int, y: int) -> None:
        records = self.ledger.records
        if records:
            old = records[-1 - x % len(records)]
            cut = y * 7 % (len(old.value) + 1)
            self.ledger.write(old.value[:cut] + b'"' + old.value[cut + 1 :], key=old.key)


WORK = (
    "start",
    "complete",
    "fail",
    "attempt",
    "sleep",
    "wait",
    "wake",
    "time_out",
    "signal",
    "let_go",
    "early",
    "answer",
    "publish",
    "poll",
)
RARE = (
    "cancel",
    "stand",
    "suspect",
    "end",
    "claim",
    "time",
    "ask",
    "hear_nothing",
    "expect",
    "child",
    "child_over",
    "message",
    "deliver",
)
NOISE = ("repeat", "read_again", "stale", "stale_claim", "foreign", "newer", "newer_claim", "garbage", "spoil")
ACTIONS: list[str] = [*WORK, *WORK, *WORK, *RARE, *NOISE]

SMALL = st.integers(0, 11)
CHOICE: st.SearchStrategy[Choice] = st.tuples(st.sampled_from(ACTIONS), SMALL, SMALL)
CHOICES: st.SearchStrategy[list[Choice]] = st.lists(CHOICE, max_size=20) | st.lists(CHOICE, min_size=40, max_size=120)
BEGINNING: list[Choice] = [("claim", 1, 0), ("start", 0, 0), ("start", 1, 1)]

thorough = settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def folded(records: list[Record], state: PartitionState | None = None) -> PartitionState:
    state = state or PartitionState()
    for each in records:
        fold(state, each)
    return state


def author_of(choices: list[Choice]) -> Author:
    author = Author()
    author.ledger.claim(memory_ms=MEMORY_MS)
    author.write(BEGINNING[1:] + choices)
    return author


@thorough
@given(choices=CHOICES)
def test_who_judges_by_the_description_alone_comes_to_the_same(choices: list[Choice]) -> None:
    judge, state = Judge(1), PartitionState()
    for each in author_of(choices).ledger.records:
        accepted = judge.judge(0, *each).void is None
        assert (fold(state, each) is not None) == accepted, each
        assert differences(judge.partitions[0], state) == "", each


def test_the_author_gets_far() -> None:
    """Otherwise the properties below would hold of nothing."""
    random = Random(19)
    author = author_of([(random.choice((*WORK, *WORK, *RARE)), random.randrange(12), random.randrange(12)) for _ in range(4_000)])
    assert author.accepted > author.known / 3
    state = PartitionState()
    accepted = {change.event["type"] for record in author.ledger.records if (change := fold(state, record)) is not None}
    assert accepted == set(SHAPES)


@given(CHOICES)
@thorough
def test_every_reader_comes_to_the_same(choices: list[Choice]) -> None:
    ledger = author_of(choices).ledger
    assert folded(ledger.records).pack() == ledger.state.pack()
    assert facts(folded(ledger.records)) == facts(ledger.state)


@given(CHOICES, st.integers(0, 80))
@thorough
def test_from_any_snapshot_as_from_the_beginning(choices: list[Choice], cut: int) -> None:
    records = author_of(choices).ledger.records
    early, late = records[:cut], records[cut:]
    first = folded(early)
    second = PartitionState()
    for name in ("offset", "claim", "claimed_at", "deaths", "owner", "format", "needs_format", "memory_ms"):
        setattr(second, name, getattr(first, name))
    second.sources, second.senders = dict(first.sources), dict(first.senders)
    second.outbox = Outbox.unpack(first.outbox.pack())
    for run_id in first.runs.ids():
        second.runs.add(unpack(pack(first.runs.peek(run_id))))
        second.open_mark ^= fingerprint(run_id)
    for number, chunk in first.ended.chunks.items():
        second.ended.load(number, bytes(chunk))
    assert second.pack() == first.pack()
    assert facts(folded(late, second)) == facts(folded(late, first))


@given(CHOICES, st.lists(st.integers(0, 80), max_size=4))
@settings(max_examples=40, deadline=None)
def test_from_any_checkpoint_as_from_the_beginning(choices: list[Choice], saves: list[int]) -> None:
    """Whoever saved it: one who kept its state while others owned the partition, or one who had just loaded."""
    ledger = author_of(choices).ledger

    async def check() -> None:
        log = await stored(ledger, MemoryDriver())
        keepers = [Keeper(log), Keeper(log)]
        for turn, upto in enumerate(sorted(saves)):
            keeper = keepers[turn % 2]
            keeper.fold(ledger.records[:upto])
            await keeper.save()
        reader = Keeper(log)
        await reader.load()
        reader.fold(ledger.records)
        assert reader.state.pack() == ledger.state.pack()
        assert facts(reader.state) == facts(ledger.state)

    asyncio.run(check())


@given(CHOICES)
@thorough
def test_a_run_depends_on_the_claims_and_its_own_records_only(choices: list[Choice]) -> None:
    records = author_of(choices).ledger.records
    whole = PartitionState()
    last: dict[str, RunState] = {}
    for each in records:
        change = fold(whole, each)
        if change is not None and change.run is not None:
            last[change.run.id] = change.run
        elif change is not None and change.early is not None:
            last[change.early.id] = change.early
    for run_id in RUNS:
        alone = PartitionState()
        found: RunState | None = None
        for each in records:
            if each.key in (run_id, CLAIM_KEY):
                change = fold(alone, each)
                if change is not None and (change.run or change.early) is not None:
                    found = change.run or change.early
        assert (found and pack(found)) == (pack(last[run_id]) if run_id in last else None)
        assert (run_id in alone.runs) == (run_id in whole.runs)


def but_for_places(state: PartitionState) -> Any:
    """What a state says, but for the places of an inbox and the positions of messages that it has seen: those of void requests
    count, too, and a start that is refused is answered."""
    kept = state.sources, state.senders, state.outbox
    state.sources, state.senders, state.outbox = {}, {}, Outbox()
    found = facts(state)
    state.sources, state.senders, state.outbox = kept
    return found


@given(CHOICES)
@thorough
def test_a_rejected_record_changes_nothing_and_an_accepted_one_can_be_shown(choices: list[Choice]) -> None:
    state = PartitionState()
    for each in author_of(choices).ledger.records:
        before = but_for_places(state)
        change = fold(state, each)
        assert state.offset == each.offset + 1
        if change is None:
            assert but_for_places(state) == before
        else:
            parse(change.event, each.offset, each.timestamp)


@given(CHOICES)
@thorough
def test_rejected_records_may_as_well_not_be_there(choices: list[Choice]) -> None:
    state, kept = PartitionState(), list[Record]()
    for each in author_of(choices).ledger.records:
        if fold(state, each) is not None:
            kept.append(each)
    assert but_for_places(folded(kept)) == but_for_places(state)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "v",
    "at",
    "claim",
    "run_id",
    "request",
    "step_id",
    "attempt",
    "signal",
    "error",
    "next_at",
    "wake_at",
    "nonce",
    "poll",
    "timeout_at",
    "heartbeat_ms",
    "kind",
    "child",
    "start",
    "parent",
    "through",
    "on_parent_close",
    "prev",
    "owner",
    "from",
    "cause",
)


def changed(value: bytes, wild: Any) -> Any:
    """The event with these fields changed, where both are such."""
    try:
        return orjson.loads(value) | wild
    except (orjson.JSONDecodeError, TypeError):
        return wild


@given(
    CHOICES,
    st.lists(
        st.tuples(
            st.integers(0, 100),
            st.sampled_from([*RUNS, CLAIM_KEY, "", "@x"]) | st.text(),
            st.binary(max_size=40) | JSON_VALUES.map(orjson.dumps) | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES),
        ),
        max_size=10,
    ),
)
@example([], [(0, "a", b"[" * 100_000)])
@example([], [(0, "a", {"run_id": "a", "step_id": "s", "attempt": 2**64 - 1})])
@thorough
def test_no_record_makes_the_fold_fail(choices: list[Choice], wild: list[tuple[int, str, Any]]) -> None:
    """Wild bytes, wild JSON, and real events with wild fields."""
    records = author_of(choices).ledger.records[:]
    for place, key, value in wild:
        model = records[place % len(records)].value
        records.insert(place % len(records), record(0, key, changed(model, value)))
    numbered = [Record(offset, START_MS + offset, each.key, each.value) for offset, each in enumerate(records)]
    state = folded(numbered)
    assert facts(folded(numbered)) == facts(state)
    for run in map(state.runs.peek, state.runs.ids()):
        assert pack(unpack(pack(run))) == pack(run)
