"""Signals to a run: the fold keeps them in the log's order, and gives each to the oldest wait for its name. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from ..core.records import FromCode, OperationDecision, Request, Words
from ..core.state import Open, RunState, deliver, is_new
from ..values.times import due, until, utc, within
from ..values.wait import Wait, ending, sending
from ..values.words import Beside, end_beside, short
from .call import Call, Differs
from .kind import Kind
from .line import Line


class SignalReceived(Request):
    """Data for the oldest wait for `signal`, now or later; kept in order until a wait takes it."""

    never_ends = True
    comes_early = True
    tone = "message"
    counts_if = "the run is open; one that comes before its run is kept for it, for as long as the memory"

    type: Literal["signal-received"] = "signal-received"
    signal: str
    data: Any
    why: Words = None

    def detail(self, beside: Beside) -> str:
        return f"{self.signal} {short(self.data)}"


class WaitStarted(FromCode):
    """The code waits for a signal, until `timeout_at` (ms) unless that is null."""

    counts_if = "the `step_id` is new in the run"

    type: Literal["wait-started"] = "wait-started"
    signal: str
    timeout_at: int | None

    def detail(self, beside: Beside) -> str:
        return f"for signal {self.signal!r}"


class WaitTimedOut(OperationDecision):
    tone = "trouble"
    counts_if = "the wait is open, and `at` is not before its `timeout_at`"

    type: Literal["wait-timed-out"] = "wait-timed-out"


class OpenWait(Open):
    """A wait for a signal that has not come."""

    __slots__ = ("signal", "timeout_at")
    kind = "wait"

    def __init__(self, signal: str, timeout_at: int | None, now: int) -> None:
        self.since = now
        self.signal = signal
        self.timeout_at = timeout_at

    @property
    def when_due(self) -> str:
        return "wait-timed-out"

    @property
    def due_at(self) -> int | None:
        return due(self.timeout_at)

    def words(self, step_id: str) -> str:
        limit = f", {until(self.timeout_at)}" if self.timeout_at is not None else ""
        return f"signal {self.signal!r} (step {step_id!r}{limit})"

    def wait(self, run_id: str, step_id: str) -> Wait:
        on, who = f"signal {self.signal!r} (step {step_id!r})", "a person or program that sends the signal"
        command = sending("run signal", run_id, self.signal)
        return Wait(on, self.kind, step_id, utc(self.since), ending(self.timeout_at), who, command=command)


def _started(run: RunState, event: dict[str, Any]) -> bool:
    if not is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = OpenWait(event["signal"], event["timeout_at"], run.now)
    _match(run, event["signal"])
    return True


def _timed_out(run: RunState, event: dict[str, Any]) -> bool:
    wait = run.open.get(event["step_id"])
    if not isinstance(wait, OpenWait) or wait.timeout_at is None or event["at"] < wait.timeout_at:
        return False
    del run.open[event["step_id"]]
    deliver(run, event["step_id"], "timeout", None)
    return True


def _received(run: RunState, event: dict[str, Any]) -> bool:
    run.signals.setdefault(event["signal"], []).append([event["data"], event["request"]])
    _match(run, event["signal"])
    return True


def _match(run: RunState, name: str) -> None:
    """Give the oldest signal of this name to the oldest wait for it."""
    waiting = run.signals.get(name)
    if not waiting:
        return
    for step_id, wait in run.open.items():
        if isinstance(wait, OpenWait) and wait.signal == name:
            data, request = waiting.pop(0)
            if not waiting:
                del run.signals[name]
            del run.open[step_id]
            deliver(run, step_id, "signal", [name, data, request])
            return


def _give_back(run: RunState, value: Any) -> None:
    """Put a signal that was delivered after the code had dropped its wait back to the front of its queue."""
    name, data, request = value
    run.signals.setdefault(name, []).insert(0, [data, request])
    _match(run, name)


def _signal(call: WaitCall, step_id: str, value: Any) -> Any:
    call.check_name(value[0])
    return call.make(value[0], value[1])


def _timeout(call: WaitCall, step_id: str, value: Any) -> None:
    return None


class WaitCall(Call):
    """Wait for a signal; the code gets None after `timeout_ms`. `make` makes what the code gets from name and data."""

    __slots__ = ("make", "signal", "timeout_ms")
    kind = "wait"
    words = "a wait for a signal"
    settles: ClassVar = {"signal": _signal, "timeout": _timeout}

    def __init__(self, signal: str, timeout_ms: int | None, make: Callable[[str, Any], Any]) -> None:
        self.signal = signal
        self.timeout_ms = timeout_ms
        self.make = make

    @property
    def lasts_ms(self) -> int | None:
        return self.timeout_ms

    def begin(self, step_id: str, now: int, new_id: Callable[[], str]) -> tuple[str, dict[str, Any]]:
        timeout_at = None if self.timeout_ms is None else within(now + self.timeout_ms)
        return "wait-started", {"signal": self.signal, "timeout_at": timeout_at}

    def check(self, known: Open) -> None:
        assert isinstance(known, OpenWait)
        self.check_name(known.signal)

    def check_name(self, signal: str) -> None:
        """Raise Differs unless this wait is for `signal`."""
        if self.signal != signal:
            raise Differs(f"named {signal!r}", f"named {self.signal!r}")


def _tell_started(line: Line, event: WaitStarted, at: int) -> None:
    line.points.append((at, "began"))
    line.signal, line.until = event.signal, event.timeout_at


def _tell_timed_out(line: Line, event: WaitTimedOut, at: int) -> None:
    line.points.append((at, "timed out"))


def _tell_signal(line: Line, value: Any, at: int) -> None:
    line.became = "done"
    line.signal, line.result, line.request = value
    line.points.append((at, "ended"))


def _tell_timeout(line: Line, value: Any, at: int) -> None:
    line.became = "timed out"


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    if line.became == "dropped":
        return "its signal went back" if line.returned else ""
    if line.became == "done":
        return f"signal {line.signal!r} {short(line.result, 40)}"
    end = "" if line.until is None else f" {end_beside(line.until, line.points[0][0], beside)}"
    return f"no signal: {line.signal!r}{end}" if line.became == "timed out" else f"for signal {line.signal!r}{end}"


KIND = Kind(
    "wait",
    records=(SignalReceived, WaitStarted, WaitTimedOut),
    rules={"signal-received": _received, "wait-started": _started, "wait-timed-out": _timed_out},
    open=OpenWait,
    call=WaitCall,
    tells={"wait-started": _tell_started, "wait-timed-out": _tell_timed_out},
    ends={"signal": _tell_signal, "timeout": _tell_timeout},
    gives_back={"signal": _give_back},
    note=_note,
)
