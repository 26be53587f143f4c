"""The checker finds what it is there to find: for every rule a history that breaks it, and none that is good."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from check import Checker
from histories import START_MS, Keeper, Ledger
from rules import RULES, Broken

from stepfold.core.fold import PartitionState, fold
from stepfold.core.messages import OUTBOX_KEY
from stepfold.drivers import MemoryDriver
from stepfold.errors import ErrorInfo, StepFailed, WorkflowFailed
from stepfold.log import CLAIM_KEY, Record

RUN = "run"
ERROR = {"type": "ValueError", "message": "no"}
STEP = {"fails": 0, "max": 2, "once": False}
PROGRAM = ["seq", [["step", "a", STEP], ["step", "once", {**STEP, "once": True}], ["wait", "w", "x", 50], ["sleep", "s", 10]]]
DRIFTING = ["seq", [["drift", "drifts"]]]
SHARING = ["seq", [["hostile", "shares", 1, None], *PROGRAM[1]]]


class Story:
    """Tells a checker a story; `now_ms` is every clock."""

    def __init__(self) -> None:
        self.now_ms = 1000
        self.offset = 0
        self.claim = -1
        self.state = PartitionState()
        self.checker = Checker(1, lambda process: self.now_ms, lambda: self.now_ms)
        self.records: list[Record] = []
        self.place: dict[str, Any] = {}  # where requests were found, if anywhere

    def put(self, event: dict[str, Any], writer: str = "w1", key: str = RUN) -> Record:
        return self.append(Record(self.offset, self.now_ms, key, orjson.dumps({"v": 1, "at": self.now_ms, **event})), writer)

    def append(self, record: Record, writer: str = "w1") -> Record:
        self.offset = record.offset + 1
        self.records.append(record)
        self.checker.appended(0, record, writer)
        fold(self.state, record)
        return record

    def owned(self, writer: str = "w1") -> Story:
        self.claim = self.put({"type": "claim", "prev": self.claim, "owner": writer, "nonce": "n"}, writer, CLAIM_KEY).offset
        return self

    def request(self, kind: str, request: str = "r", **fields: Any) -> Record:
        place = {"from": self.place} if self.place else {}
        return self.put({"type": kind, "run_id": RUN, "request": request, **place, **fields}, "client")

    def start(self, program: Any = PROGRAM) -> Story:
        self.request("started", workflow="program", version="1", input=program)
        return self

    def decide(self, type: str, step_id: str = "", writer: str = "w1", **fields: Any) -> Record:
        named = {"step_id": step_id} if step_id else {}
        return self.put({"type": type, "run_id": RUN, "claim": self.claim, **named, **fields}, writer)

    def complete(self, step_id: str = "a", result: Any = "A", **fields: Any) -> Story:
        self.decide("step-completed", step_id, attempt=1, result=result, **fields)
        return self

    def fail(self, attempt: int, next_at: int | None = None, **fields: Any) -> Story:
        self.decide("step-failed", "a", attempt=attempt, error=ERROR, next_at=next_at, **fields)
        return self

    def runs(self, step_id: str = "a", attempt: int = 1, worker: str = "w1", args: Any = 1, heartbeat: Any = None) -> Story:
        self.checker.step_started(worker, RUN, step_id, attempt, self.now_ms, args, heartbeat)
        return self

    def ends(self, outcome: Any) -> Story:
        self.checker.step_ended("w1", RUN, "a", 1, self.now_ms, outcome)
        return self

    def beats(self, details: Any, attempt: int = 1) -> Story:
        self.checker.step_beat("w1", RUN, "a", attempt, details)
        return self

    def gives(self, value: Any, step_id: str = "a", at_ms: int = 0) -> Story:
        self.checker.delivered("w1", RUN, step_id, value, at_ms or self.now_ms)
        return self

    def tells(self, worker: str = "w1") -> Story:
        self.checker.state(worker, 0, self.state)
        return self

    def quiet(self, inbox: list[Any] | None = None, given_up: AbstractSet[int] = frozenset()) -> Story:
        log = SimpleNamespace(dead_letters=[], partitions=[SimpleNamespace(inbox=inbox or [], given_up=given_up)])
        self.checker.quiet(SimpleNamespace(log=log))
        return self


def begun(program: Any = PROGRAM) -> Story:
    return Story().owned().start(program)


def owing() -> Story:
    """A run has asked for a child, and the message to it has not come."""
    story = Story()
    story.claim = story.put({"type": "claim", "v": 2, "prev": -1, "owner": "w1", "nonce": "n"}, key=CLAIM_KEY).offset
    story.start()
    child: dict[str, Any] = {
        "child": "kid",
        "workflow": "program",
        "child_version": None,
        "input": PROGRAM,
        "on_parent_close": "cancel",
    }
    story.decide("child-scheduled", "c", v=2, **child, timeout_at=None, detached=False, shielded=False)
    return story


def put_message(story: Story, offset: int) -> Story:
    start = {"type": "started", "v": 2, "run_id": "kid", "request": "k", "workflow": "w", "input": 1}
    story.put({**start, "cause": {"partition": 0, "offset": offset, "n": 0}}, key="kid")
    return story


def put_delivered(story: Story) -> Story:
    through = {"0": story.records[-1].offset}
    story.put({"type": "delivered", "v": 2, "claim": story.claim, "through": through}, key=OUTBOX_KEY)
    return story


def failed(attempts: int, message: str = "no") -> StepFailed:
    return StepFailed("a", attempts, ErrorInfo("ValueError", message))


def test_a_good_story_is_believed() -> None:
    story = begun().runs().beats("begun").beats("half way").fail(1, 1080, heartbeat="half way").tells()
    story.now_ms = 1080
    story.runs(attempt=2, heartbeat="half way")
    story.decide("step-completed", "a", attempt=2, result="A")
    story.gives("A")
    story.decide("attempt-started", "once", attempt=1)
    story.runs("once")
    story.decide("step-completed", "once", attempt=1, result=None)
    story.decide("wait-started", "w", signal="x", timeout_at=2000)
    story.request("signal-received", "s1", signal="x", data=[1])
    story.checker.client_acked("signal", RUN, "s1", ("x", [1]))
    story.gives([1], "w").tells()
    story.decide("sleep-scheduled", "s", wake_at=1090)
    story.now_ms = 1090
    story.decide("sleep-completed", "s")
    story.gives(None, "s").tells()
    asking(story).request("callback-completed", "c1", step_id="c", nonce="n", data="good 0")
    story.gives("good 0", "c").tells()
    story.checker.client_acked("callback", RUN, "", ["good", "good 0", True])
    story.checker.client_acked("callback", RUN, "", ["forged", "forged 1", False])
    published(published(story, 1, 1), 2, 2).tells()
    story.decide("completed", result="R")
    story.checker.client_acked("start", RUN, "", PROGRAM)
    story.checker.client_result(RUN, "R")
    for record in story.records:
        story.checker.read(0, record, "w1")
    story.checker.acknowledged(0, story.records[-1].offset, "w1")
    story.tells().quiet()


def test_a_projection_is_believed() -> None:
    story = projected(Story().start(), state="pending", waiting_on='["a worker"]').owned()
    projected(story)
    waiting(story)
    projected(waiting(begun()), 2)  # it has not come to that
    projected(story, **WAITS)
    projected(story, **WAITS, input=f"{orjson.dumps(PROGRAM).decode()[:9]}…")
    projected(ended(begun().fail(1, 1080)), **{**FAILED, **ENDED})


def test_what_a_takeover_brings_is_believed() -> None:
    story = begun().runs()
    old = story.claim
    story.owned("w2")
    story.runs(attempt=1)  # the zombie does not know yet
    story.decide("attempt-lost", "a", "w2", attempt=1)
    story.runs(attempt=2, worker="w2")
    story.put({"type": "step-completed", "run_id": RUN, "claim": old, "step_id": "a", "attempt": 1, "result": "void"})
    story.decide("step-completed", "a", "w2", attempt=2, result="A")
    story.runs(attempt=1)
    story.append(story.records[-2]._replace(offset=story.offset), "stranger")
    story.append(Record(story.offset, 1, RUN, b"garbage"), "stranger")
    story.tells("w2")


def test_code_that_goes_by_the_memory_of_its_process_may_run_a_step_again() -> None:
    begun(SHARING).runs().owned("w2").runs(worker="w2")


def told(story: Story, but: Callable[[PartitionState], Any]) -> Story:
    """The state as it is, but for one thing."""
    but(story.state)
    return story.tells()


def ended(story: Story, how: str = "completed") -> Story:
    story.decide(how, result="R")
    return story


def lost(times: int) -> Story:
    story = begun()
    for number in range(times):
        story.owned(f"w{number + 2}")
        story.decide("attempt-lost", "a", f"w{number + 2}", attempt=number + 1)
    return story


def waiting(story: Story, timeout_at: int = 2000) -> Story:
    story.decide("wait-started", "w", signal="x", timeout_at=timeout_at)
    return story


def asking(story: Story) -> Story:
    story.decide("callback-created", "c", nonce="n", timeout_at=2000, heartbeat_ms=None)
    return story


def published(story: Story, seq: int, value: Any) -> Story:
    story.decide("published", key="k", seq=seq, value=value)
    return story


def answered(what: str) -> None:
    """A client was told that its answer counts, and the log has none."""
    asking(begun()).checker.client_acked("callback", RUN, "", [what, f"{what} 0", True])


def served_in_vain() -> None:
    """A request that its producer has taken back is in the history."""
    story = begun()
    story.request("signal-received", "p/0-i", signal="y", data=1)
    ended(story).quiet([SimpleNamespace(place="p/0", inbox="i", value=b"{}")], {0})


def by_a_stranger(kind: str, **fields: Any) -> None:
    asking(begun()).put({"type": kind, "run_id": RUN, "request": "q", "step_id": "c", "nonce": "n", **fields}, "stranger")


def signalled(story: Story) -> Story:
    story.request("signal-received", "s1", signal="x", data=1)
    return story


def passed_over() -> Story:
    """The first wait was let go of, and has taken a signal all the same; the second one gets the next."""
    story = waiting(signalled(begun()))
    story.decide("wait-started", "w#2", signal="x", timeout_at=2000)
    story.request("signal-received", "s2", signal="x", data=2)
    return story.gives(2, "w#2")


def sleeping() -> Story:
    story = begun()
    story.decide("sleep-scheduled", "s", wake_at=5000)
    return story


def overslept() -> Story:
    """By its owner's clock, which was set back by an hour, it lasts as long as it should."""
    story = begun()
    story.checker.healed()
    story.decide("sleep-scheduled", "s", wake_at=5000)
    story.now_ms += 3_601_000
    story.decide("sleep-completed", "s", at=5000)
    return story


def announced() -> Story:
    story = begun()
    story.decide("attempt-started", "once", attempt=1)
    return story


def quarantined(program: Any, kind: str = "NonDeterminism") -> Story:
    story = begun(program)
    story.decide("quarantined", error={"type": kind, "message": ""})
    return story


def cancelled(story: Story) -> Story:
    story.request("cancel-requested", "c", reason=None)
    return story


def asked_in_vain(asks: Callable[[Story], Story], story: Story) -> Story:
    """By somebody who has put it into the inbox."""
    story.place = {"inbox": "i", "partition": 0, "offset": 7}
    return asks(story)


def mark(story: Story, offset: int) -> Story:
    story.checker.checkpoint(0, {"0/m": orjson.dumps({"version": 0, "log": "", "offset": offset})})
    return story


def projected(story: Story, position: int = 99, /, **but: Any) -> Story:
    """A projection of the story, but for some columns; without a row where they are None."""
    row = {
        "workflow": "program",
        "version": "1",
        "state": "running",
        "partition": 0,
        "started_at": 1000,
        "updated_at": 1000,
        "ended_at": None,
        "steps_completed": 0,
        "attempts_failed": 0,
        "waiting_on": '["the result of a step"]',
        "last_error": None,
        "input": orjson.dumps(PROGRAM).decode(),
        "result": None,
        **but,
    }
    story.checker.projected({0: position}, {but.get("run_id", RUN): row})
    return story


WAITS: dict[str, Any] = {"state": "waiting", "waiting_on": "[\"signal 'x' (step 'w', until later)\"]"}
FAILED: dict[str, Any] = {
    "state": "waiting",
    "waiting_on": "[\"step 'a': attempt 2\"]",
    "attempts_failed": 1,
    "last_error": "ValueError: no",
}
ENDED: dict[str, Any] = {"state": "completed", "waiting_on": "[]", "ended_at": 1000, "result": '"R"'}

BROKEN: list[tuple[int, str, Callable[[], Any]]] = [
    (1, "does not rise", lambda: (story := begun()).append(story.records[0])),
    (1, "was told that its record is at", lambda: begun().checker.acknowledged(0, 1, "w1")),
    (1, "was told that its record is at", lambda: begun().checker.acknowledged(0, 7, "client")),
    (1, "where .* was written", lambda: (story := begun()).checker.read(0, story.records[1]._replace(value=b"{}"), "w1")),
    (1, "no record has started", lambda: Story().checker.client_acked("start", RUN, "", None)),
    (1, "not in the log", lambda: begun().checker.client_acked("signal", RUN, "s1", ("x", 1))),
    (2, "decided under the claim of w1", lambda: begun().complete(writer="w2")),
    (2, "which it never had", lambda: begun().owned("w2").complete(claim=1)),
    (2, "never had a claim", lambda: begun().runs(worker="w2")),
    (3, "signals is {}", lambda: told(signalled(begun()), lambda state: state.runs.unpacked[RUN].signals.clear())),
    (3, "it is missing", lambda: told(begun(), lambda state: state.runs.remove(RUN))),
    (3, "still open", lambda: told(ended(begun()), lambda state: state.runs.add(begun().state.runs.unpacked[RUN]))),
    (3, "is forgotten", lambda: told(ended(begun()), lambda state: setattr(state, "ended", PartitionState().ended))),
    (
        3,
        "no record has started",
        lambda: told(begun(), lambda state: state.runs.unpacked.update(other=state.runs.unpacked[RUN])),
    ),
    (2, "has read that claim 5 holds it", lambda: told(begun(), lambda state: setattr(state, "claim", 5))),
    (3, "the claim is", lambda: told(begun(), lambda state: setattr(state, "owner", "w2"))),
    (4, "after the step was over", lambda: begun().runs().complete().runs()),
    (4, "after the step was over", lambda: begun().complete().owned("w2").runs(worker="w2")),
    (4, "the log counts 0 attempts", lambda: begun().runs(attempt=2)),
    (4, "the log counts 1 attempts", lambda: begun().fail(1, 1080).runs(attempt=1)),
    (4, "run once only", lambda: begun().runs("once")),
    (4, "run once only", lambda: announced().runs("once").runs("once")),
    (4, "the log says", lambda: begun().complete().gives("B")),
    (4, "the log says", lambda: begun().complete().gives("A", at_ms=1)),
    (4, "the log says", lambda: begun().fail(1, 1080).fail(2).gives(failed(2, "yes"))),
    (4, "is failure 2, of 2 that are allowed", lambda: begun().fail(1, 1080).fail(2, 1200)),
    (4, "gives up after failure 1", lambda: begun().fail(1)),
    (4, "pause shall be between 50 and 100", lambda: begun().fail(1, 1001)),
    (4, "nothing counted that", lambda: begun().runs().owned("w2").runs(worker="w2")),
    (4, "lost 8 times in a row", lambda: lost(8)),
    (4, "no step of it was lost too often", lambda: quarantined(PROGRAM, "StepInterrupted")),
    (4, "had come to .*, and the log says None", lambda: begun().runs().beats("half way").fail(1, 1080)),
    (
        4,
        "had come to .*, and the log says begun",
        lambda: begun().runs().beats("begun").beats("half").fail(1, 1080, heartbeat="begun"),
    ),
    (4, "told that it had come to None", lambda: begun().runs().fail(1, 1080, heartbeat="half").runs(attempt=2)),
    (5, "no record says so", lambda: begun().gives("A")),
    (5, "no record has started that run", lambda: Story().owned().runs()),
    (6, "after the end of the run", lambda: ended(begun()).runs()),
    (6, "the log says", lambda: ended(begun()).checker.client_result(RUN, "S")),
    (6, "the log says", lambda: ended(begun()).checker.client_result(RUN, WorkflowFailed(RUN, ErrorInfo("E", "")))),
    (6, "the log says None", lambda: begun().checker.client_result(RUN, "R")),
    (7, "the sleep ends at 5000", lambda: sleeping().decide("sleep-completed", "s")),
    (7, "cannot have said more than 1000", lambda: sleeping().decide("sleep-completed", "s", at=5000)),
    (7, "the wait ends at 2000", lambda: waiting(begun()).decide("wait-timed-out", "w")),
    (7, "cannot have said more than 1000", lambda: waiting(begun()).decide("wait-timed-out", "w", at=2000)),
    (7, "was to last 4000 ms, and lasted 3601000", overslept),
    (8, "the log says", lambda: waiting(signalled(begun())).gives(2, "w")),
    (8, "which was gone, and is lost", lambda: ended(passed_over())),
    (8, "has not got it", lambda: signalled(begun()).checker.client_acked("signal", RUN, "s1", ("y", 1))),
    (9, "was started with", lambda: begun().checker.client_acked("start", RUN, "", ["seq", []])),
    (10, "the run goes on", lambda: begun().checker.client_acked("cancel", RUN, "", None)),
    (10, "has not ended", lambda: cancelled(begun()).quiet()),
    (10, "had been cancelled before", lambda: cancelled(begun()).complete().gives("A")),
    (10, "after the end of the run", lambda: ended(cancelled(begun()), "cancelled").runs()),
    (11, "sound code", lambda: quarantined(PROGRAM)),
    (11, "stands still", lambda: quarantined(DRIFTING).runs()),
    (11, "other steps than before", lambda: begun(DRIFTING).complete("drift-w1").complete("drift-w2")),
    (11, "with 2, and with 1 before", lambda: begun().runs().fail(1, 1080).runs(attempt=2, args=2)),
    (12, "state is 'running', by the records 'waiting'", lambda: projected(waiting(begun()))),
    (12, "state is 'running', by the records 'pending'", lambda: projected(Story().start())),
    (12, "state is 'running', by the records 'quarantined'", lambda: projected(quarantined(DRIFTING))),
    (12, "waits for .*, by the records for", lambda: projected(waiting(begun()), **{**WAITS, "waiting_on": "[]"})),
    (12, "steps_completed is 0, by the records 1", lambda: projected(begun().complete())),
    (12, "attempts_failed is 2, by the records 1", lambda: projected(begun().fail(1, 1080), **{**FAILED, "attempts_failed": 2})),
    (12, "last_error is None", lambda: projected(begun().fail(1, 1080), **{**FAILED, "last_error": None})),
    (12, "result is '\"S\"'", lambda: projected(ended(begun()), **{**ENDED, "result": '"S"'})),
    (12, "it has no row", lambda: begun().checker.projected({0: 99}, {})),
    (12, "no record has started", lambda: projected(Story(), run_id="other")),
    (12, "has not come to offset 2", lambda: ended(projected(begun(), 2)).quiet()),
    (13, "projection went back", lambda: projected(projected(begun()), 1)),
    (13, "went back", lambda: mark(mark(Story(), 9), 8)),
    (18, "has come to nothing", lambda: Story().quiet([SimpleNamespace(place="p/0", inbox="i", value=b"{}")])),
    (18, "nobody was told .* unknown run", lambda: asked_in_vain(cancelled, Story().owned()).quiet()),
    (18, "nobody was told .* ended run", lambda: asked_in_vain(signalled, ended(begun())).quiet()),
    (14, "has not ended; open are", lambda: sleeping().quiet()),
    (17, "nothing in it is hostile", lambda: quarantined(PROGRAM, "WorkflowInterrupted")),
    (19, "its function returned", lambda: begun().runs().ends("A").complete(result="B")),
    (20, "was aborted", served_in_vain),
    (21, "a forged answer .* counts", lambda: answered("forged")),
    (21, "counts, and the log says", lambda: answered("good")),
    (21, "counts, and the log says", lambda: answered("list")),
    (21, "a stranger has answered", lambda: by_a_stranger("callback-completed", data=1)),
    (21, "a stranger has answered", lambda: by_a_stranger("callback-heartbeat")),
    (22, "has called for it once", lambda: published(begun(), 1, 2)),
    (22, "has called for it once", lambda: published(published(begun(), 1, 1), 2, 1)),
    (22, "2 values of 'k' were published", lambda: published(begun(), 1, 1).decide("completed", result=[["published", "k", 2]])),
    (7, "the callback ends at 2000", lambda: asking(begun()).decide("callback-timed-out", "c", kind="timeout")),
    (7, "cannot have said more", lambda: asking(begun()).decide("callback-timed-out", "c", kind="timeout", at=2000)),
    (19, "is tried again", lambda: begun().decide("step-failed", "h-unwritable", attempt=1, error=ERROR, next_at=1100)),
    (23, "still owes", lambda: owing().quiet()),
    (23, "nothing in the log of partition 0 owes it", lambda: put_message(begun(), 5)),
    (23, "have not come to partition 0", lambda: put_delivered(owing())),
]


@pytest.mark.parametrize(("rule", "finds", "happens"), BROKEN, ids=[f"{n}-rule-{rule}" for n, (rule, *_) in enumerate(BROKEN)])
def test_a_broken_promise_is_found(rule: int, finds: str, happens: Callable[[], Any]) -> None:
    with pytest.raises(Broken, match=finds) as found:
        happens()
    assert found.value.rule == rule


def test_every_rule_has_its_violation() -> None:
    assert {rule for rule, _, _ in BROKEN} == RULES.keys()


async def test_a_snapshot_that_lies_is_found() -> None:
    """One that is older than the marker says, as when a marker is written before what it speaks of."""
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start(RUN, input=PROGRAM, workflow="program")
    checker = Checker(1, lambda process: START_MS, lambda: START_MS)
    for record in ledger.records:
        checker.appended(0, record, "client" if record.key == RUN else "worker-a")
    log = MemoryDriver()
    await log.open()
    keeper = Keeper(log)
    keeper.fold(ledger.records)
    await keeper.save()
    [before] = [portion async for portion in log.checkpoint_load(0)]
    checker.checkpoint(0, before)
    ledger.accepts("step-completed", RUN, step_id="a", attempt=1, result="A")
    checker.appended(0, ledger.records[-1], "worker-a")
    keeper.fold(ledger.records)
    await keeper.save()
    [after] = [portion async for portion in log.checkpoint_load(0)]
    await log.close()
    assert before.keys() == after.keys() == {"0/m", f"0/r/{RUN}"}
    with pytest.raises(Broken, match=r"journal is .*, by the records") as found:
        checker.checkpoint(0, {"0/m": after["0/m"]})
    assert found.value.rule == 3
    checker.checkpoint(0, {f"0/r/{RUN}": after[f"0/r/{RUN}"]})
