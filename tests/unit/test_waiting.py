"""Why does a run wait? One test a cause, from records to the sentence."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from histories import RUN, START_MS, Ledger, begun

from stepfold.client.actions import actions
from stepfold.client.status import status_json, status_of, waiting_words
from stepfold.client.waiting import sentence, wait_json, waits
from stepfold.core.snapshot import pack, unpack
from stepfold.operations.callback import CallbackId
from stepfold.values.times import NEVER_MS, utc
from stepfold.values.wait import Wait

ERROR = {"type": "ConnectionError", "message": "no answer"}
WORKER = "stepfold worker module:client"


def at(seconds: float) -> datetime:
    """A time after the start of the run."""
    return utc(START_MS) + timedelta(seconds=seconds)


def ms(seconds: int) -> int:
    return START_MS + 1000 * seconds


class Told:
    """A run told record by record."""

    def __init__(self, *, decided: bool = True) -> None:
        self.ledger = begun()
        if decided:
            self.tell(0, "step-completed", step_id="first", attempt=1, result=None)

    def tell(self, seconds: int, type: str, **fields: Any) -> Told:
        """A record of so many seconds after the start."""
        self.ledger.now_ms = ms(seconds)
        self.ledger.accepts(type, **fields)
        return self

    def waits(self, *, owned: bool = True) -> list[Wait]:
        """The same for the run that comes back from a snapshot."""
        found = waits(self.ledger.run, owned)
        assert found == waits(unpack(pack(self.ledger.run)), owned)
        return found

    def wait(self, *, owned: bool = True) -> Wait:
        [one] = self.waits(owned=owned)
        return one


def test_a_sleep_waits_for_the_clock() -> None:
    told = Told().tell(10, "sleep-scheduled", step_id="nap", wake_at=ms(70))
    wait = told.wait()
    assert wait == Wait("the end of sleep 'nap'", "sleep", "nap", at(10), at(70), "the clock")
    words = "waits for the end of sleep 'nap', since 2030-03-17 17:46:50 UTC (20.00 s), "
    assert sentence(wait, at(30)) == f"{words}until 2030-03-17 17:47:50 UTC; must act: the clock"
    assert ", which was due at 2030-03-17 17:47:50 UTC; must" in sentence(wait, at(70)), "nobody has noticed"
    assert "(0 ms)" in sentence(wait, at(9)), "another clock"


def test_a_sleep_for_ever_has_no_end() -> None:
    assert Told().tell(10, "sleep-scheduled", step_id="nap", wake_at=NEVER_MS).wait().until is None


@pytest.mark.parametrize(("timeout_at", "until"), [(None, None), (ms(100), at(100))])
def test_a_signal_waits_for_its_sender(timeout_at: int | None, until: datetime | None) -> None:
    told = Told().tell(10, "wait-started", step_id="approval", signal="approve", timeout_at=timeout_at)
    told.tell(20, "signal-received", signal="another", data=None)
    wait = told.wait()
    who, command = "a person or program that sends the signal", f"stepfold run signal {RUN} approve --data JSON"
    assert wait == Wait("signal 'approve' (step 'approval')", "wait", "approval", at(10), until, who, command=command)
    assert sentence(wait, at(11)).endswith(f"; must act: {who}; command: {command}")


@pytest.mark.parametrize(
    ("signal", "end"),
    [("it's $5", f"{RUN} 'it'\"'\"'s $5' --data JSON"), ("--by", f"--data JSON -- {RUN} --by")],
)
def test_a_shell_takes_the_command_as_it_is_meant(signal: str, end: str) -> None:
    told = Told().tell(10, "wait-started", step_id="w", signal=signal, timeout_at=None)
    assert told.wait().command == f"stepfold run signal {end}"


def test_a_callback_waits_for_somebody_with_its_id() -> None:
    told = Told().tell(10, "callback-created", v=2, step_id="review", nonce="n", timeout_at=None, heartbeat_ms=None)
    who, command = "another service or a person, who has the id", "stepfold callback complete"
    full = f"{command} {CallbackId(RUN, 'review', 'n')} --data JSON"
    assert told.wait() == Wait("the answer to callback 'review'", "callback", "review", at(10), None, who, command=full)


def test_a_callback_with_heartbeats_waits_for_the_next_one_or_the_answer() -> None:
    told = Told().tell(10, "callback-created", v=2, step_id="review", nonce="n", timeout_at=ms(60), heartbeat_ms=30_000)
    wait = told.wait()
    assert (wait.on, wait.until, wait.last) == ("the answer to, or a heartbeat of, callback 'review'", at(40), None)
    told.tell(35, "callback-heartbeat", step_id="review", nonce="n")
    wait = told.wait()
    assert (wait.on, wait.since, wait.until) == ("the answer to callback 'review'", at(10), at(60))
    assert (wait.last, wait.last_at) == ("a heartbeat", at(35))
    assert "; last, at 2030-03-17 17:47:15 UTC: a heartbeat; command: " in sentence(wait, at(36))


def test_a_step_backs_off_after_an_error() -> None:
    told = Told().tell(10, "step-failed", step_id="pay", attempt=1, error=ERROR, next_at=ms(40))
    last = "attempt 1 failed: ConnectionError: no answer"
    assert told.wait() == Wait("attempt 2 of step 'pay'", "step", "pay", at(10), at(40), "the clock", last, at(10))
    told.tell(50, "step-failed", step_id="pay", attempt=2, error=ERROR, next_at=ms(90))
    wait = told.wait()
    assert (wait.on, wait.since, wait.until) == ("attempt 3 of step 'pay'", at(50), at(90))
    assert "; last, at 2030-03-17 17:47:30 UTC: attempt 2 failed: ConnectionError: no answer" in sentence(wait, at(51))


def test_a_step_that_runs_tells_its_attempt_and_its_heartbeat() -> None:
    told = Told().tell(10, "attempt-started", step_id="pay", attempt=1)
    on, who = "the result of attempt 1 of step 'pay'", "the worker that runs it"
    assert told.wait() == Wait(on, "step", "pay", at(10), None, who, "attempt 1 began", at(10))
    told.tell(20, "step-heartbeat", step_id="pay", attempt=1, details=None)
    assert told.wait() == Wait(on, "step", "pay", at(10), None, who, "attempt 1 sent a heartbeat", at(20))


def test_a_step_that_runs_again_tells_the_error_before() -> None:
    told = Told().tell(10, "step-failed", step_id="pay", attempt=1, error=ERROR, next_at=ms(40))
    told.tell(41, "step-heartbeat", step_id="pay", attempt=2, details=None)
    wait = told.wait()
    assert (wait.on, wait.since, wait.until) == ("the result of attempt 2 of step 'pay'", at(41), None)
    assert (wait.last, wait.last_at) == ("attempt 2 sent a heartbeat; one before failed: ConnectionError: no answer", at(41))


def test_a_step_that_was_lost_waits_for_a_worker() -> None:
    told = Told().tell(10, "attempt-lost", step_id="pay", attempt=1)
    last = "attempt 1 was lost with its worker"
    wait = Wait("attempt 2 of step 'pay'", "step", "pay", at(10), None, "a worker that runs it", last, at(10))
    assert told.wait() == wait
    told.tell(30, "attempt-started", step_id="pay", attempt=2)
    assert (told.wait().last, told.wait().since) == ("attempt 2 began", at(30))


@pytest.mark.parametrize("decided", [True, False])
def test_a_first_attempt_has_no_record_that_tells_of_it(decided: bool) -> None:
    wait = Told(decided=decided).wait()
    who, last = "the worker that serves the run", "a record of the run, and none since"
    assert wait == Wait("a step that runs or waits for a slot", "code", None, at(0), None, who, last, at(0))


def test_no_worker_owns_the_partition() -> None:
    told = Told()
    who = "somebody who starts a worker"
    worker = Wait("a worker: none serves the run's partition", "worker", None, at(0), None, who, command=WORKER)
    assert told.wait(owned=False) == worker
    told.tell(10, "sleep-scheduled", step_id="nap", wake_at=ms(70))
    assert [wait.kind for wait in told.waits(owned=False)] == ["worker", "sleep"]


@pytest.mark.parametrize(("version", "words"), [(None, "workflow 'w'"), ("7", "workflow 'w' version '7'")])
@pytest.mark.parametrize("owned", [True, False])
def test_no_worker_knows_the_workflow_or_its_version(version: str | None, words: str, owned: bool) -> None:
    ledger = Ledger()
    ledger.claim()
    ledger.start(workflow="w", version=version)
    ledger.now_ms = ms(10)
    run = ledger.accepts("workflow-unknown")
    ledger.now_ms = ms(20)
    ledger.accepts("signal-received", signal="early", data=None)
    who = "somebody who starts a worker with that code"
    [wait] = waits(run, owned)
    assert wait == Wait(f"a worker that knows {words}", "workflow", None, at(10), None, who, command=WORKER)
    assert waiting_words(run, owned) == [wait.on]


@pytest.mark.parametrize(
    ("type", "who", "command"),
    [
        ("NonDeterminism", "somebody who mends the code: a worker that has it resumes the run", WORKER),
        ("WorkflowInterrupted", "somebody who reads the error: the run does not go on by itself", None),
    ],
)
def test_a_quarantined_run_waits_for_a_fix(type: str, who: str, command: str | None) -> None:
    told = Told().tell(5, "sleep-scheduled", step_id="nap", wake_at=ms(70))
    told.tell(10, "quarantined", error={"type": type, "message": "no"})
    told.tell(20, "signal-received", signal="early", data=None)
    assert told.wait() == told.wait(owned=False)
    assert told.wait() == Wait(f"a fix: {type}: no", "fix", None, at(10), None, who, command=command)


@pytest.mark.parametrize(("reason", "last"), [("late", "it was asked to end; late"), (None, "it was asked to end")])
def test_a_cancelled_run_waits_for_its_clean_up(reason: str | None, last: str) -> None:
    told = Told().tell(10, "cancel-requested", reason=reason)
    told.tell(20, "step-failed", step_id="refund", attempt=1, error=ERROR, next_at=ms(40))
    ends, refund = told.waits()
    assert ends == Wait("the end of its clean-up", "clean-up", None, at(10), None, "the run's code", last, at(10))
    assert refund.step_id == "refund"


def test_suspected_code_waits_to_run_alone() -> None:
    told = Told().tell(10, "code-suspected", v=2)
    told.ledger.claim("worker-b")
    told.tell(20, "code-suspected", v=2)
    on, last = (
        "its code, which runs alone: workers have died, perhaps because of it",
        "announcement 2 that its code is about to run",
    )
    assert told.wait() == Wait(on, "suspect", None, at(10), None, "a worker that survives it", last)
    assert "; last: announcement 2 that" in sentence(told.wait(), at(21))
    told.tell(30, "code-cleared", v=2)
    assert told.wait().kind == "code"
    told.tell(40, "code-suspected", v=2)
    assert told.wait().since == at(40)


def test_an_ended_run_waits_for_nothing_and_allows_nothing() -> None:
    ledger = begun()
    run = ledger.accepts("completed", result=None)
    assert waits(run, owned=False) == [] and actions(run) == frozenset()


def test_actions_are_what_the_fold_accepts() -> None:
    told = Told()
    assert actions(told.ledger.run) == {"signal", "cancel"}
    told.tell(10, "quarantined", error=ERROR)
    assert actions(told.ledger.run) == {"signal", "cancel"}
    told.tell(20, "cancel-requested")
    assert actions(told.ledger.run) == {"signal"}
    told = Told().tell(10, "callback-created", v=2, step_id="review", nonce="n", timeout_at=None, heartbeat_ms=None)
    assert actions(told.ledger.run) == {"signal", "cancel", "complete", "fail", "heartbeat"}


def test_the_status_has_them_for_programs_too() -> None:
    told = Told().tell(10, "sleep-scheduled", step_id="nap", wake_at=ms(70))
    run = told.ledger.run
    status, found = status_of(run, owned=True), status_json(run, owned=True)
    assert status.waits == told.waits() and status.actions == actions(run)
    assert found["waits"] == [wait_json(told.wait())] and found["actions"] == ["cancel", "signal"]
    assert wait_json(told.wait()) == {
        "on": "the end of sleep 'nap'",
        "kind": "sleep",
        "step_id": "nap",
        "since": "2030-03-17T17:46:50.000Z",
        "until": "2030-03-17T17:47:50.000Z",
        "who": "the clock",
        "last": None,
        "last_at": None,
        "command": None,
    }
