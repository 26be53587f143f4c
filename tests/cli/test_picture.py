"""What people are shown of a run, from its events alone."""

from __future__ import annotations

from typing import Any

import orjson

from stepfold.cli.output import console, local, short, took, utc
from stepfold.cli.picture import LINE_WIDTH, event_line, run_picture, steps_of
from stepfold.events import Event, parse
from stepfold.fold import PartitionState, RunState, fold
from stepfold.log import CLAIM_KEY, Record

ERROR = {"type": "ConnectionError", "message": "no answer"}


class Story:
    """A run told event by event, one second apart, from 1,000,000 ms on."""

    def __init__(self) -> None:
        self.state = PartitionState()
        self.events: list[Event] = []
        self.run: RunState | None = None
        self._tell(CLAIM_KEY, {"type": "claim", "prev": -1, "owner": "host-1-a", "nonce": "n"})
        self.tell("started", request="r", workflow="w", input={"n": 1})

    def tell(self, kind: str, **fields: Any) -> None:
        decides = {} if kind in ("started", "signal-received", "cancel-requested") else {"claim": 0}
        self._tell("run-1", {"type": kind, "run_id": "run-1", **decides, **fields})

    def _tell(self, key: str, fields: dict[str, Any]) -> None:
        offset = self.state.offset
        at = 1_000_000 + 1000 * offset
        record = Record(offset, at, key, orjson.dumps({"v": 1, "at": at, **fields}))
        change = fold(self.state, record)
        assert change is not None, fields
        if change.run is not None:
            self.run = change.run
            self.events.append(parse(change.event, offset, at))

    def steps(self) -> dict[str, tuple[str, str, str]]:
        assert self.run is not None
        return {step.step_id: (step.kind, step.state, step.attempts_in_words) for step in steps_of(self.run, self.events)}

    def drawn(self, now_ms: int = 0) -> list[str]:
        assert self.run is not None
        out = console()
        with out.capture() as text:
            out.print(run_picture(self.run, self.events, self.state.owner, now_ms=now_ms))
        return [line.rstrip() for line in text.get().splitlines()]


def test_attempts_are_counted_with_those_lost() -> None:
    story = Story()
    story.tell("step-failed", step_id="a", attempt=1, error=ERROR, next_at=1_002_500)
    assert story.steps() == {"a": ("step", "open", "1")}
    story.tell("attempt-lost", step_id="a", attempt=2)
    assert story.steps() == {"a": ("step", "open", "2 (1 lost)")}
    story.tell("step-completed", step_id="a", attempt=3, result=[1])
    assert story.steps() == {"a": ("step", "done", "3 (1 lost)")}


def test_the_last_failure_fails_the_step() -> None:
    story = Story()
    story.tell("step-failed", step_id="a", attempt=1, error=ERROR, next_at=None)
    assert story.steps() == {"a": ("step", "failed", "1")}
    assert any(line.startswith("✗  a") and "ConnectionError: no answer" in line for line in story.drawn())


def test_waits_end_with_their_signal_or_without() -> None:
    story = Story()
    story.tell("signal-received", request="s", signal="early", data={"x": 1})
    story.tell("wait-started", step_id="first", signal="early", timeout_at=None)
    story.tell("wait-started", step_id="second", signal="late", timeout_at=1_004_000)
    story.tell("wait-started", step_id="third", signal="late", timeout_at=None)
    assert [state for _, state, _ in story.steps().values()] == ["done", "open", "open"]
    story.tell("wait-timed-out", step_id="second")
    story.tell("signal-received", request="t", signal="late", data=None)
    story.tell("step-cancelled", step_id="third")  # it had its signal; that goes back
    assert {step_id: state for step_id, (_, state, _) in story.steps().items()} == {
        "first": "done",
        "second": "timed out",
        "third": "done",
    }
    assert any("signal 'early' {\"x\":1}" in line for line in story.drawn())


def test_a_time_on_another_day_has_its_date() -> None:
    story = Story()
    story.tell("sleep-scheduled", step_id="short", wake_at=1_003_000)
    story.tell("sleep-scheduled", step_id="long", wake_at=1_003_000 + 7 * 86_400_000)
    assert story.run is not None
    short_, long = (step.note for step in steps_of(story.run, story.events))
    assert short_.endswith(":43.000") and "-" not in short_
    assert long.startswith("until 1970-01-0") and long.endswith(short_.removeprefix("until "))


def test_what_the_code_has_let_go_is_dropped() -> None:
    story = Story()
    story.tell("sleep-scheduled", step_id="nap", wake_at=9_000_000)
    story.tell("step-cancelled", step_id="nap")
    assert story.steps() == {"nap": ("sleep", "dropped", "")}


def test_a_time_line_is_to_scale() -> None:
    story = Story()  # started at 1,001,000
    story.tell("sleep-scheduled", step_id="nap", wake_at=1_003_000)
    story.tell("sleep-completed", step_id="nap")
    story.tell("step-completed", step_id="late", attempt=1, result=None)
    story.tell("completed", result=None)  # 4 seconds after the start
    lines = {line.split()[1]: line for line in story.drawn() if line.startswith("✔")}
    column = next(line for line in story.drawn() if "time line" in line).index("time line")
    drawn = {name: line[column : column + LINE_WIDTH] for name, line in lines.items()}
    assert (drawn["nap"].index("╶"), drawn["nap"].index("●")) == (8, 16)
    assert drawn["late"].strip() == "●" and drawn["late"].index("●") == 23
    assert "+3.00 s" in lines["late"]


def test_an_open_run_tells_what_it_waits_for_and_who_serves_it() -> None:
    story = Story()
    story.tell("wait-started", step_id="approval", signal="approve", timeout_at=None)
    drawn = story.drawn(now_ms=1_061_000)
    assert drawn[0] == "run-1  w  waiting"
    assert "1 min 0 s" in drawn[1]
    assert drawn[3:5] == ["waits for  signal 'approve' (step 'approval')", "owner      host-1-a"]
    story.tell("cancel-requested", request="c", reason="enough")
    assert any(line.startswith("cancelling") and line.endswith("enough") for line in story.drawn())
    story.tell("cancelled", reason="enough")
    assert any(line.startswith("cancelled") and line.endswith("enough") for line in story.drawn())


def test_an_event_is_one_line() -> None:
    story = Story()
    story.tell("step-failed", step_id="a/b", attempt=1, error=ERROR, next_at=1_002_500)
    started, failed = ("".join(event_line(event, 1_001_000).plain.split()) for event in story.events)
    assert started == '+0.000sstartedw{"n":1}'
    assert failed == "+1.000sstep-faileda/battempt1:ConnectionError:noanswer;againin500ms"


def test_times_and_values_for_people_and_programs() -> None:
    assert [took(ms) for ms in (0, 999, 1234, 61_000, 3_600_000, 90_000_000)] == [
        "0 ms",
        "999 ms",
        "1.23 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 d 1 h",
    ]
    assert utc(1_700_000_000_007) == "2023-11-14T22:13:20.007Z" and utc(None) is None
    assert local(1_700_000_000_007).endswith(":20.007") and local(None) == ""
    assert short("x" * 100, 10) == '"xxxxxxxx…'
