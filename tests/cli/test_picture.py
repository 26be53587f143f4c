"""What people are shown of a run, from its events alone."""

from __future__ import annotations

from typing import Any

import orjson

from stepfold.cli.output import beside, console, event_json, local
from stepfold.cli.picture import LINE_WIDTH, chosen, event_line, run_picture
from stepfold.client.story import Line, attempts_in_words, line_json, note, story
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import RunState
from stepfold.events import Event, parse
from stepfold.log import CLAIM_KEY, Record
from stepfold.values.words import iso

ERROR = {"type": "ConnectionError", "message": "no answer"}


class Story:
    """A run told event by event, one second apart, from 1,000,000 ms on."""

    def __init__(self) -> None:
        self.state = PartitionState()
        self.events: list[Event] = []
        self.run: RunState | None = None
        self._tell(CLAIM_KEY, {"type": "claim", "v": 2, "prev": -1, "owner": "host-1-a", "nonce": "n"})
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
        return {step.step_id: (step.kind, step.became, attempts_in_words(step)) for step in self.lines()}

    def lines(self, *later: str) -> list[Line]:
        assert self.run is not None
        return story(self.run, self.events, dict(enumerate(("host-1-a", *later))))

    def drawn(self, now_ms: int = 0) -> list[str]:
        assert self.run is not None
        out = console()
        with out.capture() as text:
            out.print(run_picture(self.run, self.lines(), self.state.owner, now_ms=now_ms))
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
        "third": "dropped",
    }
    assert [note(line, 0, beside) for line in story.lines() if line.step_id == "third"] == [
        "the code no longer waits for it; its signal went back"
    ]
    assert any("signal 'early' {\"x\":1}" in line for line in story.drawn())


def test_a_time_on_another_day_has_its_date() -> None:
    story = Story()
    story.tell("sleep-scheduled", step_id="short", wake_at=1_003_000)
    story.tell("sleep-scheduled", step_id="long", wake_at=1_003_000 + 7 * 86_400_000)
    short_, long = (note(line, 0, beside) for line in story.lines())
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
    began = f"since {local(1_002_000, date=False)} (59.00 s)"
    assert drawn[3:7] == [
        f"waits for   signal 'approve' (step 'approval'), {began}; must act: a person or program that sends the signal",
        "            stepfold run signal run-1 approve --data JSON",
        "last event  " + local(1_002_000, date=False) + ", 59.00 s ago",
        "owner       host-1-a",
    ]
    story.tell("cancel-requested", request="c", reason="enough")
    assert any(line.startswith("cancelling") and line.endswith("enough") for line in story.drawn())
    story.tell("cancelled", reason="enough")
    assert any(line.startswith("cancelled") and line.endswith("enough") for line in story.drawn())


def test_a_step_that_runs_tells_its_attempt_since_when_and_where() -> None:
    story = Story()
    story.tell("step-failed", step_id="a", attempt=1, error=ERROR, next_at=1_009_000)
    [waiting] = (note(line, 1_003_000, beside) for line in story.lines())
    assert waiting == f"attempt 2 at {local(1_009_000, date=False)}; ConnectionError: no answer"
    assert note(story.lines()[0], 1_009_000, beside).startswith("attempt 2 was due at ")
    story.tell("attempt-started", step_id="a", attempt=2)
    story.tell("step-heartbeat", step_id="a", attempt=2, details={"row": 7})
    [running] = (note(line, 1_005_000, beside) for line in story.lines())
    assert running == (
        f"attempt 2 began at {local(1_003_000, date=False)} on host-1-a; "
        f'heartbeat at {local(1_004_000, date=False)} {{"row":7}}; ConnectionError: no answer'
    )
    [told] = map(line_json, story.lines())
    assert told["running_since"] == iso(1_003_000) and told["worker"] == "host-1-a" and told["heartbeat"] == {"row": 7}
    story.tell("attempt-lost", step_id="a", attempt=2)
    assert "attempt 3 follows one that was lost with its worker" in note(story.lines()[0], 0, beside)


def test_a_step_whose_input_is_recorded_shows_it_and_names_its_first_attempt() -> None:
    story = Story()
    story.tell("attempt-started", step_id="a", attempt=1, input=[10, "EUR"])
    began = f"attempt 1 began at {local(1_002_000, date=False)} on host-1-a"
    assert note(story.lines()[0], 1_003_000, beside) == f'{began}; input [10,"EUR"]'
    since = local(1_002_000, date=False)
    words = f"the result of attempt 1 of step 'a', since {since} (1.00 s); must act: the worker that runs it"
    assert f"waits for   {words}; last, at {since}: attempt 1 began" in story.drawn(1_003_000)
    assert "attempt 1; input [10," in event_line(story.events[-1], 0).plain
    assert note(story.lines("host-2-b")[0], 1_003_000, beside).startswith(f"{began}, which no longer owns its partition; input")
    story.tell("step-failed", step_id="a", attempt=1, error=ERROR, next_at=1_009_000)
    assert note(story.lines()[0], 1_003_000, beside).endswith('; ConnectionError: no answer; input [10,"EUR"]')
    story.tell("attempt-started", step_id="a", attempt=2, input_note="it cannot be written")
    story.tell("step-completed", step_id="a", attempt=2, result=7)
    assert note(story.lines()[0], 1_009_000, beside) == "7; (it cannot be written)"
    [told] = map(line_json, story.lines())
    assert (told["input"], told["input_note"]) == (None, "it cannot be written")
    story.tell("step-failed", step_id="b", attempt=1, error=ERROR, next_at=None)
    assert note(story.lines()[1], 0, beside) == "ConnectionError: no answer"


def test_it_is_said_that_the_log_does_not_name_a_first_attempt() -> None:
    drawn = Story().drawn()
    assert any(line.startswith("waits for   a step that runs or waits for a slot, since ") for line in drawn)
    assert any("(a first attempt is not in the log" in line for line in drawn)


def test_a_failed_run_shows_its_traceback() -> None:
    story = Story()
    story.tell("failed", error={**ERROR, "traceback": "Traceback:\n  File \x1b[2J\n"})
    drawn = story.drawn()
    assert "  Traceback:" in drawn and "    File \\x1b[2J" in drawn


def test_of_many_steps_the_last_are_drawn_and_those_that_are_open_or_failed() -> None:
    story = Story()
    story.tell("sleep-scheduled", step_id="nap", wake_at=9_000_000)
    story.tell("step-failed", step_id="once", attempt=1, error=ERROR, next_at=0)
    story.tell("step-completed", step_id="once", attempt=2, result=None)
    for n in range(60):
        story.tell("step-completed", step_id=f"s{n}", attempt=1, result=None)
    lines = story.lines()
    assert [line.step_id for line in chosen(lines, 2)] == ["nap", "s58", "s59"]
    assert [line.step_id for line in chosen(lines, None, failed=True)] == ["once"]
    assert len(chosen(lines, None)) == 62
    assert story.run is not None
    out = console()
    with out.capture() as text:
        out.print(run_picture(story.run, chosen(lines, 2), None, now_ms=0, total=len(lines)))
    assert "3 of 62 operations (--limit, --failed):" in text.get()


def test_an_event_is_one_line() -> None:
    story = Story()
    story.tell("step-failed", step_id="a/b", attempt=1, error=ERROR, next_at=1_002_500)
    started, failed = ("".join(event_line(event, 1_001_000).plain.split()) for event in story.events)
    assert started == '+0.000sstartedw{"n":1}'
    assert failed == "+1.000sstep-faileda/battempt1:ConnectionError:noanswer;againin500ms"


def test_events_are_told_in_words_and_given_as_they_are_in_the_log() -> None:
    story = Story()
    request = {"request": "s", "signal": "x", "data": 1, "from": {"inbox": "i", "partition": 0, "offset": 7}}
    story.tell("signal-received", **request)
    story.tell("input-completed", v=2, input={"n": 2})
    story.tell("code-suspected", v=2)
    story.tell("code-cleared", v=2)
    said = [event_line(event, 0).plain.split(maxsplit=3)[-1] for event in story.events[2:]]
    assert said[0].endswith('{"n":2}') and "workers have died" in said[1] and "survived" in said[2]
    assert request.items() <= event_json(story.events[1]).items()


def test_queue_wait_is_apart_from_run_time_and_people_are_named() -> None:
    story = Story()  # started at 1,001,000
    story.tell("step-completed", step_id="a", attempt=1, result=1, at=800, queued_at=0, began_at=400)
    story.tell("cancel-requested", request="c", reason="enough", by="ben")
    story.tell("failed", error=ERROR, at_line="flow.py:9")
    [line] = [line for line in story.drawn() if line.startswith("✔")]
    assert "400 ms  400 ms" in line and line.count("┄") > 3 and line.index("┄") < line.index("╶") < line.index("●")
    assert story.run is not None
    out = console()
    with out.capture() as text:
        asked = {"by": "ann", "why": "a test", "cancelled_by": "ben", "at_line": "flow.py:9"}
        out.print(run_picture(story.run, [], None, now_ms=0, asked=asked))
    drawn = [" ".join(line.split()) for line in text.get().splitlines()]
    assert "asked by ann: a test" in drawn and "at flow.py:9" in drawn
    assert [" ".join(event_line(event, 1_001_000).plain.split()[2:]) for event in story.events[2:]] == [
        "cancel-requested enough; by ben",
        "failed ConnectionError: no answer; at flow.py:9",
    ]


def test_a_time_is_local() -> None:
    assert local(1_700_000_000_007).endswith(":20.007") and local(None) == ""
