"""Sleeps: the code waits for a time. `sleep-scheduled` names the time, `sleep-completed` ends the sleep. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from ..core.records import FromCode, OperationDecision
from ..core.state import Open, RunState, deliver, is_new
from ..values.duration import timer_ms
from ..values.times import NEVER_MS, due, until, utc, within
from ..values.wait import Wait, ending
from ..values.words import Beside, end_beside, span
from .call import Call
from .kind import Kind
from .line import Line


class SleepScheduled(FromCode):
    """A sleep begins. `wake_at`: the time of its end, ms since 1970."""

    counts_if = "the `step_id` is new in the run"

    type: Literal["sleep-scheduled"] = "sleep-scheduled"
    wake_at: int

    def detail(self, beside: Beside) -> str:
        return end_beside(self.wake_at, self.at, beside)


class SleepCompleted(OperationDecision):
    counts_if = "the sleep is open, and `at` is not before its `wake_at`"

    type: Literal["sleep-completed"] = "sleep-completed"


class OpenSleep(Open):
    """A sleep that has not ended."""

    __slots__ = ("wake_at",)
    kind = "sleep"

    def __init__(self, wake_at: int, now: int) -> None:
        self.since = now
        self.wake_at = wake_at

    @property
    def when_due(self) -> str:
        return "sleep-completed"

    @property
    def due_at(self) -> int | None:
        return due(self.wake_at)

    def words(self, step_id: str) -> str:
        return f"sleep {step_id!r} {until(self.wake_at)}"

    def wait(self, run_id: str, step_id: str) -> Wait:
        return Wait(f"the end of sleep {step_id!r}", self.kind, step_id, utc(self.since), ending(self.wake_at), "the clock")


def _scheduled(run: RunState, event: dict[str, Any]) -> bool:
    if not is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = OpenSleep(event["wake_at"], run.now)
    return True


def _completed(run: RunState, event: dict[str, Any]) -> bool:
    sleep = run.open.get(event["step_id"])
    if not isinstance(sleep, OpenSleep) or event["at"] < sleep.wake_at:
        return False
    del run.open[event["step_id"]]
    deliver(run, event["step_id"], "woken", None)
    return True


def _woken(call: SleepCall, step_id: str, value: Any) -> None:
    return None


class SleepCall(Call):
    """Wake after `delay_ms`, or at `wake_at` (ms since 1970) if `delay_ms` is None."""

    __slots__ = ("delay_ms", "wake_at")
    kind = "sleep"
    words = "a sleep"
    settles: ClassVar = {"woken": _woken}

    def __init__(self, delay_ms: int | None, wake_at: int | None) -> None:
        self.delay_ms = delay_ms
        self.wake_at = wake_at

    @property
    def lasts_ms(self) -> int | None:
        return self.delay_ms

    def begin(self, step_id: str, now: int, new_id: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        return "sleep-scheduled", {"wake_at": self.wake_at or 0 if self.delay_ms is None else within(now + self.delay_ms)}


def sleep_of_timer(delay_s: float) -> SleepCall:
    """The sleep that a timer of asyncio's is."""
    delay_ms = timer_ms(delay_s)
    return SleepCall(delay_ms, None if delay_ms is not None else NEVER_MS)


def _tell_scheduled(line: Line, event: SleepScheduled, at: int) -> None:
    line.points.append((at, "began"))
    line.until = event.wake_at


def _tell_completed(line: Line, event: SleepCompleted, at: int) -> None:
    line.points.append((at, "ended"))


def _tell_woken(line: Line, value: Any, at: int) -> None:
    line.became = "done"


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    last = line.points[-1][0]
    if line.became == "done":
        return f"slept {span(last - line.points[0][0])}"
    return "" if line.until is None else end_beside(line.until, last, beside)


KIND = Kind(
    "sleep",
    records=(SleepScheduled, SleepCompleted),
    rules={"sleep-scheduled": _scheduled, "sleep-completed": _completed},
    open=OpenSleep,
    call=SleepCall,
    tells={"sleep-scheduled": _tell_scheduled, "sleep-completed": _tell_completed},
    ends={"woken": _tell_woken},
    note=_note,
)
