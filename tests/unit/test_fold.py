"""The fold: what it accepts, what it rejects, and what it makes of what it accepted."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from histories import RUN, START_MS, Ledger, begun, facts, owned, record

from stepfold.core.ended import MARGIN_MS, REMEMBER_MS, Ended, fingerprint
from stepfold.core.fold import DEATHS_MS, PartitionState, fold
from stepfold.core.snapshot import pack, unpack
from stepfold.core.state import RunState
from stepfold.events import FORMAT
from stepfold.log import CLAIM_KEY, partition_of
from stepfold.operations.signal import OpenWait
from stepfold.operations.sleep import OpenSleep
from stepfold.operations.step import OpenStep
from stepfold.values.names import valid_run_id

ERROR = {"type": "ValueError", "message": "no"}


def delivered(run: RunState) -> list[tuple[str, str, Any]]:
    return [(step_id, kind, value) for step_id, kind, _, value in run.journal]


# Who may decide.


def test_the_first_claim_follows_nothing() -> None:
    ledger = Ledger()
    assert ledger.state.owner is None and ledger.state.claim == -1
    assert ledger.claim("worker-a") is not None
    assert (ledger.state.owner, ledger.state.claim) == ("worker-a", 0)


def test_a_claim_follows_the_current_one() -> None:
    ledger = owned()
    assert ledger.claim("worker-b") is not None
    assert (ledger.state.owner, ledger.state.claim) == ("worker-b", 3)


def test_a_claim_that_follows_another_than_the_current_one_is_void() -> None:
    ledger = owned()
    assert ledger.claim("worker-b", prev=-1) is None
    assert ledger.claim("worker-b", prev=3) is None
    assert ledger.state.owner == "worker-a"


def test_a_claim_under_another_key_is_void() -> None:
    ledger = Ledger()
    ledger.rejects_value({"type": "claim", "v": 1, "at": 1, "prev": -1, "owner": "w", "nonce": "n"}, key=RUN)


def test_a_release_leaves_the_partition_to_nobody_and_is_followed_like_any_claim() -> None:
    ledger = begun()
    released = ledger.claim(owner=None)
    assert released is not None and released.run is None
    assert ledger.state.owner is None
    ledger.rejects("step-completed", claim=0, step_id="a", attempt=1, result=1)
    assert ledger.claim("worker-b") is not None
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)


def test_a_decision_before_any_claim_is_not_taken_for_the_claim_minus_one() -> None:
    ledger = Ledger()
    ledger.start()
    ledger.rejects("step-completed", claim=0, step_id="a", attempt=1, result=1)


def test_requests_need_no_claim() -> None:
    ledger = Ledger()
    ledger.start()
    ledger.accepts("signal-received", signal="go", data=1)
    ledger.accepts("cancel-requested", reason=None)


# What is no event of this run, or cannot be judged here.


def test_a_record_is_of_the_run_that_is_its_key() -> None:
    ledger = begun()
    ledger.start("other")
    ledger.rejects_value(ledger.event("completed", RUN, result=1), key="other")
    ledger.rejects_value(ledger.event("started", "third", workflow="w", input=1), key=RUN)


@pytest.mark.parametrize("value", [b"", b"nonsense", b"[]", {"type": "unheard-of"}, {"type": "completed"}, {"type": "claim"}])
def test_garbage_changes_nothing(value: Any) -> None:
    ledger = begun()
    ledger.rejects_value(value)
    ledger.rejects_value(value, key=CLAIM_KEY)


def test_a_record_is_folded_once() -> None:
    ledger = begun()
    ledger.accepts("signal-received", signal="go", data=1)
    before = facts(ledger.state)
    for written in ledger.records:
        assert fold(ledger.state, written) is None
    assert facts(ledger.state) == before


def test_a_record_of_a_newer_format_than_the_owner_knows_is_void() -> None:
    ledger = begun()
    ledger.rejects("step-completed", v=FORMAT + 1, step_id="a", attempt=1, result=1)
    ledger.rejects("signal-received", v=FORMAT + 1, signal="go", data=1)


def test_an_owner_of_a_newer_format_can_judge_it_and_older_readers_are_told() -> None:
    ledger = begun()
    assert ledger.state.needs_format == FORMAT
    assert ledger.claim("worker-b", v=FORMAT + 1) is not None
    assert ledger.state.needs_format == FORMAT + 1
    ledger.accepts("step-completed", v=FORMAT + 1, step_id="a", attempt=1, result=1)
    assert ledger.claim("worker-c", v=FORMAT) is not None
    assert ledger.state.needs_format == FORMAT
    ledger.rejects("step-completed", v=FORMAT + 1, step_id="b", attempt=1, result=1)


@pytest.mark.parametrize("kind", ["cancel-requested", "completed", "workflow-unknown", "resumed"])
def test_nothing_happens_to_a_run_that_has_not_begun(kind: str) -> None:
    owned().rejects(kind, signal="go", data=1, reason=None, result=1)


# Beginnings.


def test_a_run_begins() -> None:
    ledger = owned()
    run = ledger.start(trigger={"type": "cron"}, request="q-1", reply_to="answers")
    assert (run.id, run.workflow, run.version, run.input, run.trigger) == (RUN, "process-order", "1", {"n": 1}, {"type": "cron"})
    assert (run.phase, run.started_at, run.now, run.start, run.request) == ("open", START_MS, START_MS, 3, "q-1")
    assert not run.decided and not run.ended and run.journal == []


def test_a_run_begins_once() -> None:
    ledger = begun()
    ledger.rejects("started", workflow="process-order", version="1", input={"n": 1})
    ledger.rejects("started", workflow="another", input=None)


@pytest.mark.parametrize("run_id", ["", "@claims", "two\nlines", "x" * 201, "\x00", "\u2028"])
def test_an_id_that_cannot_be_one_begins_no_run(run_id: str) -> None:
    assert not valid_run_id(run_id)
    owned().rejects("started", run_id, workflow="w", input=1)


@pytest.mark.parametrize("run_id", ["x", "x" * 200, "a@b.c", "ключ", "with space", "a/b#c"])
def test_an_id_that_can(run_id: str) -> None:
    assert valid_run_id(run_id)
    owned().accepts("started", run_id, workflow="w", input=1)


def test_a_run_begins_in_its_own_partition_only() -> None:
    home = partition_of(RUN, 4)
    Ledger(partition=home, partitions=4).start()
    Ledger(partition=(home + 1) % 4, partitions=4).rejects("started", workflow="w", input=1)


def test_a_run_without_a_version_gets_that_of_its_first_decision() -> None:
    ledger = owned()
    ledger.start(version=None)
    ledger.accepts("workflow-unknown", version="7")
    assert ledger.run.version is None and not ledger.run.decided
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=START_MS, version="2")
    assert ledger.run.version == "2"
    ledger.accepts("sleep-completed", step_id="nap", version="3")
    assert ledger.run.version == "2"


# Time.


def test_a_runs_time_is_that_of_its_last_accepted_record_and_never_goes_back() -> None:
    ledger = begun()
    ledger.now_ms += 500
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    ledger.now_ms -= 300
    ledger.accepts("step-completed", step_id="b", attempt=1, result=1)
    ledger.now_ms += 9_000
    ledger.rejects("step-completed", step_id="b", attempt=1, result=1)
    assert [delivery.now - START_MS for delivery in ledger.run.journal] == [500, 500]
    assert ledger.run.now == START_MS + 500


# Steps.


def test_a_step_that_succeeds_is_one_record() -> None:
    ledger = begun()
    run = ledger.accepts("step-completed", step_id="charge", attempt=1, result={"id": 5})
    assert delivered(run) == [("charge", "result", {"id": 5})]
    assert run.open == {} and run.done == {"charge"} and run.decided


def test_a_step_has_one_result() -> None:
    ledger = begun()
    ledger.accepts("step-completed", step_id="charge", attempt=1, result=1)
    for attempt in (0, 1, 2):
        ledger.rejects("step-completed", step_id="charge", attempt=attempt, result=2)
        ledger.rejects("step-failed", step_id="charge", attempt=attempt, error=ERROR, next_at=None)
        ledger.rejects("attempt-started", step_id="charge", attempt=attempt)
        ledger.rejects("attempt-lost", step_id="charge", attempt=attempt)
        ledger.rejects("step-heartbeat", step_id="charge", attempt=attempt, details=1)


@pytest.mark.parametrize("attempt", [-1, 0, 2])
def test_the_first_attempt_is_number_one(attempt: int) -> None:
    ledger = begun()
    ledger.rejects("step-completed", step_id="a", attempt=attempt, result=1)
    ledger.rejects("step-failed", step_id="a", attempt=attempt, error=ERROR, next_at=None)
    ledger.rejects("attempt-started", step_id="a", attempt=attempt)


def test_a_step_needs_an_id() -> None:
    ledger = begun()
    ledger.rejects("step-completed", step_id="", attempt=1, result=1)
    ledger.rejects("step-failed", step_id="", attempt=1, error=ERROR, next_at=None)
    ledger.rejects("sleep-scheduled", step_id="", wake_at=1)
    ledger.rejects("wait-started", step_id="", signal="go", timeout_at=None)


def test_a_failed_attempt_is_followed_by_the_next() -> None:
    ledger = begun()
    run = ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS + 5)
    step = run.open["a"]
    assert isinstance(step, OpenStep)
    assert (step.attempts, step.failures, step.next_at, step.error) == (1, 1, START_MS + 5, ERROR)
    assert run.journal == []
    for attempt in (1, 3):
        ledger.rejects("step-completed", step_id="a", attempt=attempt, result=1)
        ledger.rejects("step-failed", step_id="a", attempt=attempt, error=ERROR, next_at=None)
    ledger.accepts("step-completed", step_id="a", attempt=2, result=1)
    assert delivered(run) == [("a", "result", 1)] and run.open == {}


@pytest.mark.parametrize(("kind", "fields"), [("attempt-started", {}), ("step-heartbeat", {"details": 1})])
def test_an_attempt_that_has_begun_is_not_due_any_more(kind: str, fields: dict[str, Any]) -> None:
    ledger = begun()
    run = ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS + 5)
    ledger.accepts(kind, step_id="a", attempt=2, **fields)
    step = run.open["a"]
    assert isinstance(step, OpenStep)
    assert step.next_at is None


def test_the_last_failure_is_delivered_with_the_number_of_attempts() -> None:
    ledger = begun()
    ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS)
    run = ledger.accepts("step-failed", step_id="a", attempt=2, error=ERROR, next_at=None)
    assert delivered(run) == [("a", "error", [2, ERROR])] and run.open == {}


def test_a_lost_attempt_has_a_number_and_is_no_failure() -> None:
    ledger = begun()
    ledger.accepts("attempt-lost", step_id="a", attempt=1)
    ledger.accepts("attempt-lost", step_id="a", attempt=2)
    step = ledger.run.open["a"]
    assert isinstance(step, OpenStep)
    assert (step.attempts, step.failures, step.lost, step.next_at) == (2, 0, 2, None)
    ledger.rejects("attempt-lost", step_id="a", attempt=2)
    ledger.accepts("step-failed", step_id="a", attempt=3, error=ERROR, next_at=START_MS)
    assert (step.attempts, step.failures, step.lost) == (3, 1, 0), "lost in a row: a failure ends the row"


def test_an_attempt_is_announced_once() -> None:
    ledger = begun()
    ledger.accepts("attempt-started", step_id="a", attempt=1)
    step = ledger.run.open["a"]
    assert isinstance(step, OpenStep) and step.started and step.attempts == 0
    ledger.rejects("attempt-started", step_id="a", attempt=1)
    ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS)
    assert not step.started
    ledger.accepts("attempt-started", step_id="a", attempt=2)
    ledger.accepts("attempt-lost", step_id="a", attempt=2)
    assert not step.started


def test_the_last_heartbeat_is_kept_for_the_next_attempt() -> None:
    ledger = begun()
    ledger.accepts("step-heartbeat", step_id="a", attempt=1, details=10)
    ledger.rejects("step-heartbeat", step_id="a", attempt=2, details=99)
    step = ledger.run.open["a"]
    assert isinstance(step, OpenStep) and step.heartbeat == 10
    ledger.accepts("step-heartbeat", step_id="a", attempt=1, details=11, at=step.heartbeat_at + 1)
    ledger.rejects("step-heartbeat", step_id="a", attempt=1, details=10, at=step.heartbeat_at - 1)
    ledger.rejects("step-heartbeat", step_id="a", attempt=1, details=10, at=step.heartbeat_at)
    assert step.heartbeat == 11, "an older one that comes again changes nothing"
    ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS)
    assert step.heartbeat == 11
    ledger.accepts("step-failed", step_id="a", attempt=2, error=ERROR, next_at=START_MS, heartbeat=20)
    assert step.heartbeat == 20


def test_a_step_is_no_sleep() -> None:
    ledger = begun()
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=START_MS)
    ledger.rejects("step-completed", step_id="nap", attempt=1, result=1)
    ledger.rejects("wait-timed-out", step_id="nap")
    ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS)
    ledger.rejects("sleep-completed", step_id="a")
    ledger.rejects("sleep-scheduled", step_id="a", wake_at=START_MS)
    ledger.rejects("wait-started", step_id="a", signal="go", timeout_at=None)


# Sleeps.


def test_a_sleep_ends_never_early_and_once() -> None:
    ledger = begun()
    run = ledger.accepts("sleep-scheduled", step_id="nap", wake_at=START_MS + 10)
    assert isinstance(run.open["nap"], OpenSleep)
    ledger.rejects("sleep-scheduled", step_id="nap", wake_at=START_MS + 99)
    ledger.rejects("sleep-completed", step_id="nap", at=START_MS + 9)
    ledger.accepts("sleep-completed", step_id="nap", at=START_MS + 10)
    assert delivered(run) == [("nap", "woken", None)] and run.open == {}
    ledger.rejects("sleep-completed", step_id="nap", at=START_MS + 11)
    ledger.rejects("sleep-scheduled", step_id="nap", wake_at=START_MS + 99)


def test_what_does_not_sleep_does_not_wake() -> None:
    begun().rejects("sleep-completed", step_id="nap")


# Signals.


def test_a_signal_goes_to_who_waits() -> None:
    ledger = begun()
    run = ledger.accepts("wait-started", step_id="approval", signal="go", timeout_at=None)
    wait = run.open["approval"]
    assert isinstance(wait, OpenWait) and (wait.signal, wait.timeout_at) == ("go", None)
    ledger.accepts("signal-received", signal="other", data=1, request="q-1")
    assert run.journal == []
    ledger.accepts("signal-received", signal="go", data=2, request="q-2")
    assert delivered(run) == [("approval", "signal", ["go", 2, "q-2"])]
    assert run.open == {} and run.signals == {"other": [[1, "q-1"]]}


def test_a_signal_before_the_wait_is_kept_in_order() -> None:
    ledger = begun()
    for number in range(3):
        ledger.accepts("signal-received", signal="go", data=number, request=f"q-{number}")
    run = ledger.accepts("wait-started", step_id="a", signal="go", timeout_at=None)
    ledger.accepts("wait-started", step_id="b", signal="go", timeout_at=None)
    assert [value[1] for _, _, value in delivered(run)] == [0, 1]
    assert run.signals == {"go": [[2, "q-2"]]}
    ledger.accepts("wait-started", step_id="c", signal="go", timeout_at=None)
    assert run.signals == {}


def test_the_oldest_wait_comes_first() -> None:
    ledger = begun()
    ledger.accepts("wait-started", step_id="z", signal="go", timeout_at=None)
    ledger.accepts("wait-started", step_id="a", signal="go", timeout_at=None)
    run = ledger.accepts("signal-received", signal="go", data=1)
    ledger.accepts("signal-received", signal="go", data=2)
    assert [(step_id, value[1]) for step_id, _, value in delivered(run)] == [("z", 1), ("a", 2)]


def test_a_signal_sent_twice_is_one_signal() -> None:
    ledger = begun()
    ledger.accepts("signal-received", signal="go", data=1, request="q")
    ledger.rejects("signal-received", signal="go", data=1, request="q")
    ledger.rejects("cancel-requested", reason=None, request="q")
    ledger.accepts("signal-received", signal="go", data=1, request="another")


def test_a_wait_times_out_never_early_and_once() -> None:
    ledger = begun()
    ledger.accepts("wait-started", step_id="forever", signal="go", timeout_at=None)
    run = ledger.accepts("wait-started", step_id="a", signal="come", timeout_at=START_MS + 10)
    ledger.rejects("wait-timed-out", step_id="forever", at=START_MS + 10**9)
    ledger.rejects("wait-timed-out", step_id="a", at=START_MS + 9)
    ledger.rejects("wait-timed-out", step_id="nobody")
    ledger.accepts("wait-timed-out", step_id="a", at=START_MS + 10)
    assert delivered(run) == [("a", "timeout", None)]
    ledger.rejects("wait-timed-out", step_id="a", at=START_MS + 11)
    ledger.accepts("signal-received", signal="come", data=1)
    assert "come" in run.signals, "what comes too late is kept for the next wait"
    ledger.rejects("wait-started", step_id="a", signal="come", timeout_at=None)


# What the code let go of.


@pytest.mark.parametrize("kind", ["step", "sleep", "wait"])
def test_what_was_let_go_of_brings_nothing_more(kind: str) -> None:
    ledger = begun()
    if kind == "step":
        ledger.accepts("step-failed", step_id="a", attempt=1, error=ERROR, next_at=START_MS)
    elif kind == "sleep":
        ledger.accepts("sleep-scheduled", step_id="a", wake_at=START_MS)
    else:
        ledger.accepts("wait-started", step_id="a", signal="go", timeout_at=START_MS)
    run = ledger.accepts("step-cancelled", step_id="a")
    assert run.open == {} and run.done == {"a"} and run.journal == []
    ledger.rejects("step-cancelled", step_id="a")
    ledger.rejects("step-completed", step_id="a", attempt=2, result=1)
    ledger.rejects("step-completed", step_id="a", attempt=1, result=1)
    ledger.rejects("sleep-completed", step_id="a", at=START_MS + 10)
    ledger.rejects("wait-timed-out", step_id="a", at=START_MS + 10)
    ledger.accepts("signal-received", signal="go", data=1)
    assert run.journal == []


def test_nothing_is_let_go_of_that_was_not_there() -> None:
    ledger = begun()
    ledger.rejects("step-cancelled", step_id="a")
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    ledger.rejects("step-cancelled", step_id="a")


def test_a_signal_for_who_had_let_go_returns_to_the_front() -> None:
    ledger = begun()
    ledger.accepts("wait-started", step_id="a", signal="go", timeout_at=None)
    ledger.accepts("signal-received", signal="go", data=1, request="q-1")
    ledger.accepts("signal-received", signal="go", data=2, request="q-2")
    run = ledger.accepts("step-cancelled", step_id="a")
    assert run.signals == {"go": [[1, "q-1"], [2, "q-2"]]}
    assert run.done == run.returned == unpack(pack(run)).returned == {"a"}
    ledger.rejects("step-cancelled", step_id="a")
    ledger.accepts("wait-started", step_id="b", signal="go", timeout_at=None)
    assert delivered(run)[-1] == ("b", "signal", ["go", 1, "q-1"])


def test_a_returned_signal_goes_to_the_oldest_wait_at_once() -> None:
    ledger = begun()
    for step_id in ("a", "b"):
        ledger.accepts("wait-started", step_id=step_id, signal="go", timeout_at=None)
    ledger.accepts("signal-received", signal="go", data=1, request="q-1")
    run = ledger.accepts("step-cancelled", step_id="a")
    assert delivered(run) == [("a", "signal", ["go", 1, "q-1"]), ("b", "signal", ["go", 1, "q-1"])]
    assert run.signals == {} and run.open == {}


# Cancelling, standing still, ending.


def test_a_request_to_cancel_is_delivered_once() -> None:
    ledger = begun()
    run = ledger.accepts("cancel-requested", reason="changed my mind")
    assert run.cancel_requested and run.reason == "changed my mind"
    assert delivered(run) == [("", "cancel", "changed my mind")] and run.done == set()
    ledger.rejects("cancel-requested", reason="again")
    ledger.accepts("cancelled", reason="changed my mind")


def test_only_who_was_asked_to_is_cancelled() -> None:
    begun().rejects("cancelled", reason=None)


def test_a_run_of_an_unknown_workflow_says_so_once_until_somebody_decides() -> None:
    ledger = begun()
    assert ledger.accepts("workflow-unknown").awaits_worker
    ledger.rejects("workflow-unknown")
    ledger.accepts("signal-received", signal="go", data=1)
    assert ledger.run.awaits_worker and not ledger.run.decided
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    assert not ledger.run.awaits_worker and ledger.run.decided
    ledger.accepts("workflow-unknown")


def test_code_is_suspected_until_the_run_decides_something_or_is_cleared() -> None:
    ledger = begun()
    ledger.rejects("code-cleared")
    assert ledger.accepts("code-suspected").suspected == 1
    ledger.accepts("signal-received", signal="go", data=1)
    ledger.claim("worker-b")
    run = ledger.accepts("code-suspected")
    assert run.suspected == 2 and not run.decided, "who announces that code is to run has decided nothing for it"
    assert unpack(pack(run)).suspected == 2
    assert ledger.accepts("attempt-lost", step_id="a", attempt=1).suspected == 0
    ledger.accepts("code-suspected")
    assert ledger.accepts("code-cleared").suspected == 0
    ledger.rejects("code-cleared")


def test_code_is_suspected_once_under_a_claim_until_it_is_cleared() -> None:
    ledger = begun()
    ledger.accepts("code-suspected")
    ledger.rejects("code-suspected")
    ledger.claim("worker-b")
    run = ledger.accepts("code-suspected")
    ledger.rejects("code-suspected")
    again = unpack(pack(run))
    assert (run.suspected, run.suspected_by) == (again.suspected, again.suspected_by) == (2, ledger.state.claim)
    ledger.accepts("code-cleared")
    assert ledger.accepts("code-suspected").suspected == 1, "it is to run once more"
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    assert ledger.accepts("code-suspected").suspected == 1


def test_the_input_is_completed_once_before_anything_is_decided() -> None:
    ledger = begun()
    ledger.accepts("workflow-unknown")
    ledger.accepts("code-suspected")
    run = ledger.accepts("input-completed", input={"n": 1, "id": "made"}, version="1")
    assert run.input == {"n": 1, "id": "made"} and run.decided
    ledger.rejects("input-completed", input={"n": 1, "id": "made again"})


def test_owners_that_do_not_come_back_are_counted() -> None:
    ledger = Ledger()

    def claimed(owner: str | None, after_ms: int = 1000) -> int:
        ledger.now_ms += after_ms
        assert ledger.claim(owner) is not None
        return ledger.state.deaths

    assert claimed("a") == 0, "there was nobody before"
    assert claimed("b") == 1 and claimed("c") == 2
    assert claimed("c") == 2, "it lives, and claims again"
    assert claimed("d", DEATHS_MS) == 1, "who was there for so long did not die of what it recovered"
    assert claimed("e") == 2
    assert claimed(None) == 0 and claimed("f") == 0, "who leaves in good order is not dead"


def test_a_quarantined_run_does_not_end_but_loses_nothing() -> None:
    ledger = begun()
    ledger.accepts("attempt-lost", step_id="a", attempt=1)
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=START_MS)
    run = ledger.accepts("quarantined", error=ERROR)
    assert (run.phase, run.error, run.ended) == ("quarantined", ERROR, False)
    ledger.rejects("quarantined", error=ERROR)
    ledger.rejects("completed", result=1)
    ledger.rejects("failed", error=ERROR)
    ledger.accepts("signal-received", signal="go", data=1)
    ledger.accepts("step-completed", step_id="b", attempt=1, result=1)
    ledger.accepts("resumed")
    assert (run.phase, run.error, list(run.open)) == ("open", None, ["a", "nap"])
    step = run.open["a"]
    assert isinstance(step, OpenStep) and (step.lost, step.attempts) == (0, 1), "somebody looked at it: count anew"
    ledger.rejects("resumed")
    ledger.accepts("completed", result=1)


def test_a_quarantined_run_can_be_cancelled() -> None:
    ledger = begun()
    ledger.accepts("quarantined", error=ERROR)
    ledger.rejects("cancelled", reason=None)
    ledger.accepts("cancel-requested", reason="not worth it")
    assert ledger.accepts("cancelled", reason="not worth it").phase == "cancelled"


@pytest.mark.parametrize(
    ("kind", "fields", "phase"),
    [
        ("completed", {"result": {"total": 3}}, "completed"),
        ("failed", {"error": ERROR}, "failed"),
        ("cancelled", {"reason": "why"}, "cancelled"),
    ],
)
def test_a_run_ends_once(kind: str, fields: dict[str, Any], phase: str) -> None:
    ledger = begun()
    ledger.accepts("cancel-requested", reason="why")
    ledger.now_ms += 7
    run = ledger.accepts(kind, **fields)
    assert (run.phase, run.ended, run.ended_at) == (phase, True, START_MS + 7)
    assert (run.result, run.error, run.reason) == (fields.get("result"), fields.get("error"), "why")
    assert RUN not in ledger.state.runs and ledger.state.open_mark == 0
    ledger.rejects("completed", result=2)
    ledger.rejects("failed", error=ERROR)
    ledger.rejects("cancelled", reason=None)
    ledger.rejects("signal-received", signal="go", data=1)
    ledger.rejects("step-completed", step_id="a", attempt=1, result=1)
    ledger.rejects("started", workflow="w", input=1)


def test_the_id_of_an_ended_run_is_free_again_after_a_day() -> None:
    ledger = begun()
    ledger.accepts("completed", result=1)
    ledger.now_ms += REMEMBER_MS - 1
    ledger.rejects("started", workflow="w", input=1)
    ledger.now_ms += 1
    assert ledger.start(input="again").input == "again"
    ledger.accepts("completed", result=2)
    ledger.now_ms += REMEMBER_MS - 1
    ledger.rejects("started", workflow="w", input=1)


def test_a_day_is_one_of_the_log_and_begins_with_the_end() -> None:
    ledger = begun()
    ledger.now_ms += 1_000
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    ledger.now_ms -= 1_000  # a new leader whose clock is behind
    ledger.accepts("completed", result=1)
    ledger.now_ms += REMEMBER_MS
    ledger.rejects("started", workflow="w", input=1)
    ledger.now_ms += 1_000
    ledger.start()


def test_the_first_claim_of_a_partition_fixes_its_memory() -> None:
    """Raised later, a state that has forgotten and a fold from the beginning would disagree."""
    ledger = Ledger()
    ledger.claim(memory_ms=1_000)
    ledger.claim("worker-b", memory_ms=REMEMBER_MS)
    assert ledger.state.memory_ms == 1_000
    ledger.start()
    ledger.accepts("completed", result=1)
    ledger.now_ms += 999
    ledger.rejects("started", workflow="w", input=1)
    ledger.now_ms += 1
    ledger.start()


@pytest.mark.parametrize("first", [{}, {"v": 1, "memory_ms": 5}, *({"memory_ms": wrong} for wrong in (None, "5", 5.0, True, -1))])
def test_a_memory_that_the_first_claim_does_not_say_is_a_day(first: dict[str, Any]) -> None:
    """Readers of format 1 do not know the field, and take the claim whatever stands there."""
    ledger = Ledger()
    assert ledger.claim(**first) is not None
    ledger.claim(memory_ms=7)
    assert ledger.state.memory_ms == REMEMBER_MS


# Ended ids.


def chunk_of(start: int, count: int, ended_at: int) -> bytes:
    ended = Ended()
    for number in range(start, start + count):
        ended.add(f"r{number}", ended_at)
    return bytes(ended.chunks[0])


def test_ended_ids_are_kept_in_chunks_in_the_order_of_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 3)
    ended = Ended()
    for number in range(7):
        ended.add(f"r{number}", START_MS)
    assert ended.chunks == {0: chunk_of(0, 3, START_MS), 1: chunk_of(3, 3, START_MS), 2: chunk_of(6, 1, START_MS)}
    assert len(ended) == 7


def test_an_end_at_quite_another_time_begins_a_chunk() -> None:
    """The log's time may step, and it may be a month until the next run ends."""
    ended = Ended()
    times = [START_MS, START_MS - 1, START_MS + 2**31 - 1, START_MS + 2**31, START_MS, START_MS - 2**31]
    for number, ended_at in enumerate(times):
        ended.add(f"r{number}", ended_at)
    assert [len(chunk) for chunk in ended.chunks.values()] == [len(chunk_of(0, count, 0)) for count in (3, 2, 1)]
    for number, ended_at in enumerate(times):
        assert ended.remembers(f"r{number}", ended_at + REMEMBER_MS - 1)
        assert not ended.remembers(f"r{number}", ended_at + REMEMBER_MS)


def test_a_chunk_is_forgotten_when_all_of_it_is_past_remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 2)
    ended = Ended()
    for number, ended_at in enumerate([0, 10, 20, 30, 40]):
        ended.add(f"r{number}", ended_at)
    past_ms = REMEMBER_MS + MARGIN_MS
    assert ended.forget(past_ms + 9) == []
    assert ended.forget(past_ms + 29) == [0]
    assert list(ended.chunks) == [1, 2] and len(ended) == 3
    assert ended.forget(past_ms + 30) == [1]
    assert ended.forget(10 * past_ms) == [], "the growing one stays"
    ended.add("r5", 50)
    ended.add("r6", 60)
    assert list(ended.chunks) == [2, 3], "numbers are not used again"


def test_who_forgets_and_who_does_not_judge_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner forgets by its clock, a reader from the start never does; the log's times may lie behind that clock."""
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ledger, forgetful = begun(), begun()
    for each in (ledger, forgetful):
        each.accepts("completed", result=1)
        each.start("other")
        each.accepts("completed", "other", result=1)
        each.now_ms += REMEMBER_MS - 1
    forgetful.state.ended.forget(forgetful.now_ms + 60_000)
    ledger.rejects("started", workflow="w", input=1)
    forgetful.rejects("started", workflow="w", input=1)


def test_an_id_that_ended_again_is_not_forgotten_with_its_first_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ended = Ended()
    ended.add("r", 0)
    ended.add("r", 5 * REMEMBER_MS)
    ended.add("s", 5 * REMEMBER_MS)
    assert ended.forget(5 * REMEMBER_MS) == [0]
    assert ended.remembers("r", 5 * REMEMBER_MS)


def test_chunks_can_be_stored_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 2)
    ended = Ended()
    for number in range(5):
        ended.add(f"r{number}", START_MS)
    loaded = Ended()
    for number, chunk in ended.chunks.items():
        loaded.load(number, bytes(chunk))
    for each in (ended, loaded):
        each.add("r5", START_MS)
        each.add("r6", START_MS)
        assert each.remembers("r0", START_MS) and each.remembers("r6", START_MS) and not each.remembers("r7", START_MS)
    assert ended.chunks == loaded.chunks


@pytest.mark.parametrize("hint", [8, 1])
def test_what_is_remembered_is_what_ended_less_than_a_day_ago(hint: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is indexed by now, and however many fingerprints begin alike."""
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 4)
    monkeypatch.setattr(Ended, "BUCKETS", 3)
    monkeypatch.setattr(Ended, "HINT_BYTES", hint)
    monkeypatch.setattr(Ended, "PLACE_BYTES", hint + 4)
    random, ended, now = Random(hint), Ended(), START_MS
    model: dict[str, int] = {}
    for number in range(4_000):
        now += random.randrange(REMEMBER_MS // 50)
        run_id = f"r{random.randrange(300)}"
        remembered = run_id in model and now < model[run_id] + REMEMBER_MS
        assert ended.remembers(run_id, now) is remembered
        if not remembered:
            ended.add(run_id, now)
            model[run_id] = now
        if number % 97 == 0:
            ended.forget(now)
        if number % 301 == 0:
            chunks, ended = ended.chunks, Ended()
            for place, chunk in chunks.items():
                ended.load(place, bytes(chunk))
            assert ended.chunks == chunks
            ended.forget(now)
    assert len(ended) < 1_000


def test_a_chunk_may_be_forgotten_before_anybody_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ended = Ended()
    for number, ended_at in enumerate((0, START_MS, START_MS)):
        ended.load(number, chunk_of(number, 1, ended_at))
    assert ended.forget(START_MS) == [0]
    assert not ended.remembers("r0", 0) and ended.remembers("r1", START_MS) and ended.remembers("r2", START_MS)


# Snapshots.


def test_a_run_with_everything_is_packed_and_unpacked() -> None:
    ledger = owned()
    run = ledger.start(version=None, trigger={"type": "cron"})
    ledger.accepts("step-completed", step_id="a", attempt=1, result={"x": [1.5, None]})
    ledger.accepts("step-failed", step_id="b", attempt=1, error=ERROR, next_at=START_MS + 5, heartbeat={"done": 3})
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=START_MS + 7)
    ledger.accepts("wait-started", step_id="w", signal="go", timeout_at=START_MS + 9)
    ledger.accepts("wait-started", step_id="let go", signal="go", timeout_at=None)
    ledger.accepts("step-cancelled", step_id="let go")
    ledger.accepts("signal-received", signal="other", data=None)
    ledger.accepts("cancel-requested", reason="because")
    ledger.accepts("quarantined", error=ERROR)
    again = unpack(pack(run))
    assert pack(again) == pack(run)
    assert again.done == run.done and again.journal == run.journal and list(again.open) == ["b", "nap", "w"]
    assert again.folded == run.start + 1


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b'["a","b"]'])
def test_what_is_no_snapshot_raises(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
        unpack(data)


def test_a_run_skips_what_its_snapshot_covers() -> None:
    ledger = begun()
    ledger.accepts("signal-received", signal="go", data=1)
    packed, covered = pack(ledger.run), ledger.state.offset
    ledger.accepts("signal-received", signal="go", data=2)

    later = PartitionState()
    run = unpack(packed)
    run.folded = covered
    later.runs.add(run)
    later.open_mark = fingerprint(RUN)
    changes = [change for record in ledger.records if (change := fold(later, record)) is not None]
    assert [change.event["data"] for change in changes if change.run] == [2]
    assert facts(later) == facts(ledger.state)


def test_a_state_is_equal_exactly_when_its_value_is() -> None:
    assert begun().state.pack() == begun().state.pack()
    other = begun()
    other.accepts("signal-received", signal="go", data=1)
    assert other.state.pack() != begun().state.pack()


def test_a_record_below_the_offset_is_passed_over() -> None:
    state = PartitionState()
    state.offset = 10
    assert fold(state, record(9, CLAIM_KEY, {"type": "claim", "v": 1, "at": 1, "prev": -1, "owner": "w", "nonce": "n"})) is None
    assert state.offset == 10 and state.claim == -1
