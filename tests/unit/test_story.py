"""The story of a run follows the fold: the outcome of each operation, and what the log knows of those that are open."""

from __future__ import annotations

from typing import Any

import orjson
from histories import REQUESTS

from stepfold.client.story import Line, askers, attempts_in_words, line_json, note, story
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import RunState
from stepfold.events import Event, parse
from stepfold.log import CLAIM_KEY, Record

ERROR = {"type": "E", "message": "no"}


class Log:
    """Records, one a second; claims under the offset that the last one had."""

    def __init__(self) -> None:
        self.state = PartitionState()
        self.owners: dict[int, str | None] = {}
        self.events: list[Event] = []
        self.run: RunState | None = None
        self.claim("w1")
        self.add("started", request="r", workflow="w", input=None)

    def claim(self, owner: str | None) -> None:
        self.owners[self.state.offset] = owner
        self.put(CLAIM_KEY, {"type": "claim", "prev": self.state.claim, "owner": owner, "nonce": "n"})

    def add(self, kind: str, **fields: Any) -> None:
        by = {} if kind in REQUESTS else {"claim": self.state.claim}
        self.put("r", {"type": kind, "run_id": "r", **by, **fields})

    def put(self, key: str, fields: dict[str, Any]) -> None:
        offset = self.state.offset
        at = 1000 * offset
        change = fold(self.state, Record(offset, at, key, orjson.dumps({"v": 1, "at": at, **fields})))
        assert change is not None
        if change.run is not None:
            self.run = change.run
            self.events.append(parse(change.event, offset, at))

    def told(self) -> dict[str, Line]:
        assert self.run is not None
        return {line.step_id: line for line in story(self.run, self.events, self.owners)}


def test_a_step_from_its_first_failure_to_its_result() -> None:
    log = Log()
    log.add("step-failed", step_id="a", attempt=1, error=ERROR, next_at=9_000)
    a = log.told()["a"]
    assert (a.kind, a.became, a.attempts, a.next_at, a.running_since, a.worker) == ("step", "open", 1, 9_000, None, "w1")
    assert str(a.error) == "E: no"
    log.add("attempt-started", step_id="a", attempt=2)
    log.add("step-heartbeat", step_id="a", attempt=2, details=[7])
    a = log.told()["a"]
    assert (a.next_at, a.running_since, a.heartbeat, a.heartbeat_at) == (None, 3_000, [7], 4_000)
    log.claim("w2")
    assert log.told()["a"].left
    log.add("attempt-lost", step_id="a", attempt=2)
    a = log.told()["a"]
    assert (a.attempts, a.lost, a.running_since, a.worker, a.left) == (2, 1, None, "w2", False)
    log.add("step-completed", step_id="a", attempt=3, result="x")
    a = log.told()["a"]
    assert (a.became, a.attempts, a.lost, a.result) == ("done", 3, 1, "x")
    assert a.points == [(2_000, "failed"), (3_000, "began"), (6_000, "lost"), (7_000, "ended")]


def test_an_attempt_that_was_announced_tells_its_input() -> None:
    log = Log()
    log.add("attempt-started", step_id="a", attempt=1, input=[1, "x"], input_note="cut")
    a = log.told()["a"]
    assert (a.became, a.attempts, a.running_since, a.worker, a.left) == ("open", 0, 2_000, "w1", False)
    assert (a.input, a.input_note) == ([1, "x"], "cut")
    log.add("step-heartbeat", step_id="a", attempt=1, details=[7])
    log.add("step-completed", step_id="a", attempt=1, result="x")
    assert log.told()["a"].input == [1, "x"]
    log.add("attempt-started", step_id="b", attempt=1, input="no list")
    assert log.told()["b"].input is None


def test_a_step_that_failed_for_good() -> None:
    log = Log()
    log.add("step-failed", step_id="a", attempt=1, error=ERROR, next_at=None)
    assert log.told()["a"].became == "failed"


def test_sleeps_and_waits() -> None:
    log = Log()
    log.add("sleep-scheduled", step_id="nap", wake_at=3_000)
    log.add("sleep-completed", step_id="nap")
    log.add("wait-started", step_id="first", signal="s", timeout_at=None)
    log.add("wait-started", step_id="second", signal="s", timeout_at=6_000)
    log.add("wait-timed-out", step_id="second")
    log.add("signal-received", request="q", signal="s", data=1)
    told = log.told()
    assert [(line.kind, line.became) for line in told.values()] == [("sleep", "done"), ("wait", "done"), ("wait", "timed out")]
    assert told["nap"].until == 3_000 and told["second"].until == 6_000
    assert (told["first"].signal, told["first"].result, told["first"].points[-1]) == ("s", 1, (7_000, "ended"))


def test_a_wait_that_gave_its_signal_back_is_dropped() -> None:
    log = Log()
    log.add("wait-started", step_id="first", signal="s", timeout_at=None)
    log.add("signal-received", request="q", signal="s", data=1)
    log.add("step-cancelled", step_id="first")
    log.add("wait-started", step_id="second", signal="s", timeout_at=None)
    told = log.told()
    assert (told["first"].became, told["first"].returned) == ("dropped", True)
    assert (told["second"].became, told["second"].returned, told["second"].result) == ("done", False, 1)


def test_what_the_code_let_go_and_what_was_open_at_the_end_is_dropped() -> None:
    log = Log()
    log.add("sleep-scheduled", step_id="nap", wake_at=3_000)
    log.add("step-cancelled", step_id="nap")
    log.add("wait-started", step_id="wait", signal="s", timeout_at=None)
    log.add("cancel-requested", request="c")
    assert {line.became for line in log.told().values()} == {"dropped", "open"}
    log.add("cancelled")
    assert [line.became for line in log.told().values()] == ["dropped", "dropped"]


def test_without_times_of_the_log_the_writers_count() -> None:
    log = Log()
    log.add("sleep-scheduled", step_id="nap", wake_at=3_000)
    assert log.run is not None
    events = [event.model_copy(update={"timestamp": None, "at": 7}) for event in log.events]
    [nap] = story(log.run, events)
    assert nap.points == [(7, "began")] and nap.worker is None


def test_events_that_begin_later_than_the_run_tell_what_they_can() -> None:
    log = Log()
    log.add("step-completed", step_id="a", attempt=1, result=1)
    log.add("step-completed", step_id="b", attempt=1, result=2)
    assert log.run is not None
    assert [line.step_id for line in story(log.run, log.events[2:])] == ["b"]


def beside(ms: int, other_ms: int) -> str:
    return f"{ms / 1000:g} s"


def notes(log: Log, now_ms: int = 0) -> list[str]:
    return [note(line, now_ms, beside) for line in log.told().values()]


def details(log: Log) -> list[str]:
    """Of the last event of each type."""
    return [event.detail(beside) for event in {event.type: event for event in log.events}.values()]


def test_a_step_in_words() -> None:
    log = Log()
    log.add("step-failed", step_id="a", attempt=1, error=ERROR, next_at=9_000)
    assert notes(log) == ["attempt 2 at 9 s; E: no"] and notes(log, 9_000) == ["attempt 2 was due at 9 s; E: no"]
    assert details(log)[-1] == "attempt 1: E: no; again in 7.00 s"
    log.add("attempt-started", step_id="a", attempt=2, input=[1], input_note="cut")
    assert notes(log) == ["attempt 2 began at 3 s on w1; E: no; input [1] (cut)"]
    log.add("step-heartbeat", step_id="a", attempt=2, details=[7])
    assert notes(log) == ["attempt 2 began at 3 s on w1; heartbeat at 4 s [7]; E: no; input [1] (cut)"]
    log.claim("w2")
    assert ", which no longer owns its partition; " in notes(log)[0]
    log.add("attempt-lost", step_id="a", attempt=2)
    assert notes(log)[0].startswith("attempt 3 follows one that was lost with its worker; ")
    assert [attempts_in_words(line) for line in log.told().values()] == ["2 (1 lost)"]
    log.add("step-completed", step_id="a", attempt=3, result="x")
    assert notes(log) == ['"x"; input [1] (cut)']
    assert details(log)[2:] == [
        "attempt 2; input [1] (cut)",
        "attempt 2 [7]",
        "attempt 2 may have been running when its worker died",
        'attempt 3 "x"',
    ]
    log.add("step-failed", step_id="b", attempt=1, error=ERROR, next_at=None)
    assert notes(log)[1] == "E: no" and details(log)[1] == "attempt 1: E: no; the last attempt"


def test_sleeps_and_waits_in_words() -> None:
    log = Log()
    log.add("sleep-scheduled", step_id="nap", wake_at=3_000)
    assert (notes(log), details(log)[-1]) == (["until 3 s"], "until 3 s")
    log.add("sleep-completed", step_id="nap")
    log.add("wait-started", step_id="first", signal="s", timeout_at=None)
    log.add("wait-started", step_id="second", signal="s", timeout_at=6_000)
    assert notes(log) == ["slept 1.00 s", "for signal 's'", "for signal 's' until 6 s"]
    assert details(log)[-1] == "for signal 's'"
    log.add("wait-timed-out", step_id="second")
    log.add("signal-received", request="q", signal="s", data=1)
    assert notes(log)[1:] == ["signal 's' 1", "no signal: 's' until 6 s"]
    assert (details(log)[-2], details(log)[-1]) == ("", "s 1")
    assert {attempts_in_words(line) for line in log.told().values()} == {""}


def test_a_dropped_operation_in_words() -> None:
    log = Log()
    log.add("wait-started", step_id="wait", signal="s", timeout_at=None)
    log.add("signal-received", request="q", signal="s", data=1)
    log.add("sleep-scheduled", step_id="nap", wake_at=9_000)
    log.add("step-cancelled", step_id="wait")
    log.add("step-cancelled", step_id="nap")
    dropped = "the code no longer waits for it"
    assert notes(log) == [f"{dropped}; its signal went back", dropped]


def test_the_life_of_a_run_in_words() -> None:
    log = Log()
    log.add("input-completed", input=[2])
    log.add("code-suspected")
    log.add("code-cleared")
    log.add("workflow-unknown")
    log.add("quarantined", error=ERROR)
    log.add("cancel-requested", request="c", reason="enough")
    log.add("cancelled", reason="enough")
    said = details(log)
    assert said[:2] == ["w null", "[2]"] and "workers have died" in said[2] and "survived" in said[3]
    assert said[4:] == ["", "E: no", "enough", "enough"]
    tones = {event.type: event.tone for event in log.events}
    assert (tones["code-suspected"], tones["quarantined"], tones["started"]) == ("trouble", "failure", "plain")
    claim = parse({"type": "claim", "v": 2, "at": 0, "prev": -1, "owner": "w1", "nonce": "n"}, 0, 0)
    assert claim.detail(beside) == "w1"


def test_the_end_of_a_run_in_words() -> None:
    for end, words in (({"type": "completed", "result": [7]}, "[7]"), ({"type": "failed", "error": ERROR}, "E: no")):
        event = parse({"v": 1, "at": 0, "run_id": "r", "claim": 0, **end}, 0, 0)
        assert event.detail(beside) == words


def test_an_operation_for_programs() -> None:
    log = Log()
    log.add("step-failed", step_id="a", attempt=1, error=ERROR, next_at=9_000)
    told = line_json(log.told()["a"])
    assert (told["step_id"], told["kind"], told["state"], told["attempts"]) == ("a", "step", "open", 1)
    assert (told["first_at"], told["next_at"]) == ("1970-01-01T00:00:02.000Z", "1970-01-01T00:00:09.000Z")
    assert told["error"] == ERROR


def test_an_attempt_began_before_its_record_by_as_much_as_its_worker_says() -> None:
    log = Log()
    log.add("step-completed", step_id="a", attempt=1, result=1, at=500, queued_at=100, began_at=300)
    log.add("step-failed", step_id="b", attempt=1, error=ERROR, next_at=9_000, at=900, began_at=400, at_line="flow.py:7")
    log.add("step-completed", step_id="b", attempt=2, result=1, at=5_000, queued_at=9_000, began_at=5_001)  # clocks step back
    log.add("attempt-started", step_id="c", attempt=1)
    log.add("step-completed", step_id="c", attempt=1, result=1, at=5_000, began_at=4_000)
    log.add("step-completed", step_id="d", attempt=1, result=1)
    a, b, c, d = log.told().values()
    assert (a.queued_ms, a.ran_ms, a.points) == (200, 200, [(1_600, "queued"), (1_800, "began"), (2_000, "ended")])
    assert (b.queued_ms, b.ran_ms) == (0, 0) and b.at_line == "flow.py:7"
    assert b.points == [(2_500, "began"), (3_000, "failed"), (4_000, "began"), (4_000, "ended")]
    assert (c.queued_ms, c.ran_ms, c.points) == (0, 1_000, [(5_000, "began"), (6_000, "ended")])
    assert (d.queued_ms, d.ran_ms, d.points) == (None, None, [(7_000, "ended")])
    assert line_json(a)["queued_ms"] == 200 and line_json(b)["at_line"] == "flow.py:7"


def test_an_open_operation_says_where_the_code_stands_and_an_answered_one_who_answered() -> None:
    log = Log()
    log.put(CLAIM_KEY, {"type": "claim", "v": 2, "prev": log.state.claim, "owner": "w1", "nonce": "m"})
    log.add("wait-started", step_id="w", signal="go", timeout_at=None, at_line="flow.py:8")
    log.add("callback-created", v=2, step_id="c", nonce="n", timeout_at=None, heartbeat_ms=None)
    told = log.told()
    assert note(told["w"], 0, lambda at, other: "") == "for signal 'go'; at flow.py:8"
    log.add("signal-received", request="s", signal="go", data=7, by="ann", why="paid")
    log.add("callback-completed", v=2, request="q", step_id="c", nonce="n", data=1, by="the printer")
    told = log.told()
    assert note(told["w"], 0, lambda at, other: "") == "signal 'go' 7; by ann: paid"
    assert note(told["c"], 0, lambda at, other: "") == "1; by the printer"
    log.add("cancel-requested", request="z", by="ben")
    log.add("failed", error=ERROR, at_line="flow.py:9")
    assert askers(log.events) == {"by": None, "why": None, "cancelled_by": "ben", "at_line": "flow.py:9"}
