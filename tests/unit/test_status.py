"""The status of a run, for people and for programs."""

from __future__ import annotations

from stepfold.client.status import status_json, status_of, waiting_line
from stepfold.core.messages import Parent
from stepfold.core.state import Delivery, RunState
from stepfold.operations.signal import OpenWait


def test_a_run_that_waits() -> None:
    run = RunState("r", "w", None, {"n": 1}, 0, 1_000)
    run.decided = True
    run.journal = [Delivery("a", "result", 2_000, 7), Delivery("b", "error", 3_000, [1, None])]
    run.open["c"] = OpenWait("go", None, 2_000)
    status, told = status_of(run, owned=True), status_json(run, owned=True)
    assert status.state == told["state"] == "waiting" and status.steps_completed == told["steps_completed"] == 1
    assert status.waiting_on == told["waiting_on"] == ["signal 'go' (step 'c')"]
    assert [wait.on for wait in status.waits] == status.waiting_on
    assert (told["started_at"], told["ended_at"], told["input"]) == ("1970-01-01T00:00:01.000Z", None, {"n": 1})
    assert waiting_line(run, owned=True) == "waits for signal 'go' (step 'c')"
    assert waiting_line(run, owned=False) == "waits for signal 'go' (step 'c') (no worker serves its partition)"


def test_a_child_names_its_parent() -> None:
    run = RunState("r", "w", None, None, 0, 1_000)
    status, told = status_of(run, owned=True), status_json(run, owned=True)
    assert (status.parent, status.parent_step) == (told["parent"], told["parent_step"]) == (None, None)
    run.parent = Parent("order-1", "0123", "ship")
    status, told = status_of(run, owned=True), status_json(run, owned=True)
    assert (status.parent, status.parent_step) == (told["parent"], told["parent_step"]) == ("order-1", "ship")


def test_a_run_that_has_ended_waits_for_nothing() -> None:
    run = RunState("r", "w", "2", None, 0, 1_000)
    run.phase, run.result, run.ended_at = "completed", [7], 2_000
    told = status_json(run, owned=False)
    assert (told["state"], told["waiting_on"], told["result"]) == ("completed", [], [7])
    assert waiting_line(run, owned=False) == "completed"
