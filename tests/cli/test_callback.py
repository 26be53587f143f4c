"""`stepfold callback …` against a worker that runs."""

from __future__ import annotations

from typing import Any

import orjson
from shell import Shell, until

from stepfold.operations.callback import CallbackId


def callback_of(shell: Shell, run_id: str) -> str:
    """The id, as a reader of the history makes it."""

    def created() -> list[Any]:
        return [event for event in history(shell, run_id) if event["type"] == "callback-created"]

    until(lambda: bool(created()))
    return str(CallbackId(run_id, "review", created()[0]["nonce"]))


def history(shell: Shell, run_id: str) -> list[Any]:
    return [orjson.loads(line) for line in shell("run", "history", run_id, "-o", "jsonl").stdout.splitlines()]


def test_an_answer_a_failure_and_heartbeats(served: Shell) -> None:
    for run_id in ("c1", "c2"):
        served("run", "start", "reviewed", "--run-id", run_id)
    first, second = callback_of(served, "c1"), callback_of(served, "c2")
    assert served("callback", "heartbeat", first).stderr == "the heartbeat of callback 'review' is in the history of c1\n"
    done = served("callback", "complete", first, "--data", '{"stars": 5}')
    assert (done.stdout, done.stderr) == ("", "the answer to callback 'review' is in the history of c1\n")
    failed = served("callback", "fail", second, "no time", "--type", "Refused").stderr
    assert failed == "the failure of callback 'review' is in the history of c2\n"
    until(lambda: served.json("run", "show", "c1")["result"] == {"stars": 5})
    until(lambda: served.json("run", "show", "c2")["state"] == "failed")
    assert "callback 'review' has failed: Refused: no time" in served.json("run", "show", "c2")["error"]["message"]
    shown = served("run", "show", "c1").stdout
    assert "review" in shown and '{"stars":5}' in shown
    assert "callback-completed" in served("run", "history", "c1").stdout


def test_an_answer_that_does_not_count_ends_with_1(served: Shell) -> None:
    served("run", "start", "reviewed", "--run-id", "c3")
    callback = callback_of(served, "c3")
    forged = str(CallbackId.parse(callback)._replace(nonce="0"))
    said = "stepfold: the answer to callback 'review' of run 'c3' does not count: it "
    assert served("callback", "complete", forged, code=1).stderr == f"{said}never had this id\n"
    served("callback", "complete", callback)
    assert served("callback", "complete", callback, code=1).stderr.startswith(f"{said}was answered at ")
    served("run", "start", "reviewed", "--run-id", "c4")
    other = callback_of(served, "c4")
    served("run", "cancel", "c4")
    until(lambda: served.json("run", "show", "c4")["state"] == "cancelled")
    said = "stepfold: the heartbeat of callback 'review' of run 'c4' does not count: the code no longer waits for it\n"
    assert served("callback", "heartbeat", other, code=1).stderr == said


def test_a_text_that_is_not_an_id_is_a_mistake(served: Shell) -> None:
    assert "'c3' is not the id of a callback" in served("callback", "heartbeat", "c3", code=2).stderr
    nobody = str(CallbackId("nobody", "review", "n"))
    assert "no run 'nobody'" in served("callback", "heartbeat", nobody, code=3).stderr
    assert "is not the type of an error" in served("callback", "fail", nobody, "m", "--type", "", code=2).stderr
