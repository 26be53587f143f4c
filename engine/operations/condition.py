"""Conditions: a worker runs a check until one says `Done`, each time on the state that the last one returned. Pure.

Each check is a poll. One that says `Done` ends the condition with `step-completed`; any other leaves one record,
`condition-polled`, with the new state and the time of the next check. An attempt at a check that fails is `step-failed`, as of
a step. `condition-started` comes first only if the first check does not succeed at once. `attempt` counts all attempts of all
checks.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Generic, Literal, TypeGuard, TypeVar

import orjson

from .. import errors
from ..core.records import FORMAT, Clock, FromCode
from ..core.state import Open, RunState, deliver, is_new
from ..errors import ErrorInfo
from ..values.backoff import Backoff
from ..values.codec import Codec
from ..values.pace import Pace
from ..values.retry import Retry
from ..values.times import due, said, until, utc, within
from ..values.wait import Wait, ending
from ..values.words import Beside, end_beside, joined, short
from .attempted import AttemptsCall, OpenAttempts, tell_times
from .call import Differs, Raise
from .kind import Kind
from .line import Line

T = TypeVar("T")

POINTS = 400
"""The most points in the story of a condition: earlier checks become one."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """Returned by a check: the condition holds, and `step.wait_for_condition` returns `value`."""

    value: T


class ConditionStarted(FromCode):
    """A condition whose first check has failed, may have been lost, sends a heartbeat or is announced.

    `timeout_at`: the time-out, ms since 1970.
    """

    counts_if = "the `step_id` is new in the run"

    type: Literal["condition-started"] = "condition-started"
    timeout_at: int | None

    def detail(self, beside: Beside) -> str:
        return "" if self.timeout_at is None else end_beside(self.timeout_at, self.at, beside)


class ConditionPolled(FromCode):
    """A check returned the `state` for the next one, which is due at `next_at` (ms). `poll` counts these from 1.

    `timeout_at`: the time-out, ms since 1970; only the first record of the condition sets it. `queued_at`, `began_at`: as in
    `step-completed`.
    """

    is_result = True
    counts_if = (
        "the `step_id` is new in the run or an open condition, and `attempt` and `poll` are the next ones: 1, or 1 more than "
        "its attempts that are over, and its polls"
    )

    type: Literal["condition-polled"] = "condition-polled"
    attempt: int
    poll: int
    state: Any
    next_at: int
    timeout_at: int | None
    queued_at: Clock = None
    began_at: Clock = None

    def detail(self, beside: Beside) -> str:
        return f"poll {self.poll}: {short(self.state)}; again at {beside(self.next_at, self.at)}"


class ConditionTimedOut(FromCode):
    """The time of a condition is up, or the last poll that it may have (`kind` "attempts") returned this `state`.

    `poll`: how many there were. `attempt`: that of the last poll; null if the time is up.
    """

    is_result = True
    tone = "trouble"
    counts_if = (
        "of kind `timeout`: the condition is open, and `at` is not before its `timeout_at`; of kind `attempts`: as for "
        "`condition-polled`"
    )

    type: Literal["condition-timed-out"] = "condition-timed-out"
    kind: Literal["timeout", "attempts"]
    attempt: int | None
    poll: int
    state: Any

    def detail(self, beside: Beside) -> str:
        return f"{'no more polls' if self.kind == 'attempts' else 'no more time'}, after {_polls(self.poll)}"


def _polls(count: int) -> str:
    return f"{count} poll{'' if count == 1 else 's'}"


class OpenCondition(OpenAttempts):
    """A condition that no check has found to hold. `next_at`: the time of the next check, or of its next attempt."""

    __slots__ = ("polls", "state", "timeout_at")
    kind = "condition"

    def __init__(self, timeout_at: int | None, now: int) -> None:
        super().__init__(now)
        self.polls = 0
        self.state: Any = None  # that the last poll returned
        self.timeout_at = timeout_at

    @property
    def due_at(self) -> int | None:
        return min((at for at in (due(self.next_at), due(self.timeout_at)) if at is not None), default=None)

    @property
    def when_due(self) -> str | None:
        return "condition-timed-out" if self.due_at == due(self.timeout_at) else None

    @property
    def ends_at(self) -> int | None:
        return due(self.timeout_at)

    def due_fields(self, by_log: bool) -> dict[str, Any]:
        return {"v": FORMAT, "kind": "timeout", "attempt": None, "poll": self.polls, "state": None}

    def words(self, step_id: str) -> str:
        check = f"condition {step_id!r}: check {self.polls + 1}"
        at = "" if self.next_at is None else f" at {said(self.next_at)}"
        limit = "" if self.timeout_at is None else until(self.timeout_at)
        return f"{check}{at}, {joined(self._last or 'the first', limit)}"

    @property
    def _last(self) -> str:
        """The last thing that happened, in words."""
        failed = "" if self.error is None else f"an attempt failed: {ErrorInfo.from_json(self.error)}"
        lost = f"an attempt was lost with its worker, {self.lost} in a row" if self.lost else ""
        return joined(failed, lost, f"{_polls(self.polls)}, the last gave {short(self.state)}" if self.polls else "")

    def wait(self, run_id: str, step_id: str) -> Wait:
        on = f"check {self.polls + 1} of condition {step_id!r}"
        who = "the worker that runs it" if self.next_at is None else "the clock"
        return Wait(on, self.kind, step_id, utc(self.since), ending(self.due_at), who, self._last or None, utc(self.last_at))


def _next(run: RunState, event: dict[str, Any]) -> OpenCondition | None:
    """The condition, if the event tells of its next attempt and poll; a new one if there is none yet."""
    step_id = event["step_id"]
    op: Open | None = OpenCondition(event.get("timeout_at"), run.now) if is_new(run, step_id) else run.open.get(step_id)
    if not isinstance(op, OpenCondition) or event["attempt"] != op.attempts + 1 or event["poll"] != op.polls + 1:
        return None
    return op


def _started(run: RunState, event: dict[str, Any]) -> bool:
    if not is_new(run, event["step_id"]):
        return False
    run.open[event["step_id"]] = OpenCondition(event["timeout_at"], run.now)
    return True


def _polled(run: RunState, event: dict[str, Any]) -> bool:
    op = _next(run, event)
    if op is None:
        return False
    run.open[event["step_id"]] = op
    op.since = op.last_at = run.now
    op.attempts += 1
    op.polls += 1
    op.state = event["state"]
    op.next_at = event["next_at"]
    op.failures = op.lost = 0
    op.started = False
    op.error = op.heartbeat = None
    return True


def _timed_out(run: RunState, event: dict[str, Any]) -> bool:
    step_id, kind = event["step_id"], event["kind"]
    if kind == "attempts":
        op = _next(run, event)
        if op is None:
            return False
        polls, state = event["poll"], event["state"]
    else:
        op = run.open.get(step_id)
        if not isinstance(op, OpenCondition) or op.timeout_at is None or event["at"] < op.timeout_at:
            return False
        polls, state = op.polls, op.state
    run.open.pop(step_id, None)
    deliver(run, step_id, "condition-timed-out", [kind, polls, state])
    return True


class Final(bytes):
    """The value of a `Done` as JSON; a state is plain `bytes`."""


def _is_done(value: object) -> TypeGuard[Done[Any]]:
    return isinstance(value, Done)


class CheckCodec:
    """Writes what a check returns, a state or a `Done`, each by a codec of its own."""

    __slots__ = ("asks_types", "state", "value")

    def __init__(self, state: Codec, value: Codec) -> None:
        self.state = state
        self.value = value
        self.asks_types = state.asks_types or value.asks_types

    def at_sight(self, value: Any) -> bytes | None:
        """As `Codec.at_sight`."""
        if not _is_done(value):
            return self.state.at_sight(value)
        data = self.value.at_sight(value.value)
        return None if data is None else Final(data)

    def prove(self, value: Any) -> bytes:
        """As `Codec.prove`; JSON of a type that needs no proof is never asked for it."""
        return Final(self.value.prove(value.value)) if _is_done(value) else self.state.prove(value)

    def decode(self, value: object) -> Any:
        """The value of a `Done`, as `Codec.decode`."""
        return self.value.decode(value)


def _too_late(call: ConditionCall, step_id: str, value: Any) -> Raise:
    kind, polls, state = value
    return Raise(errors.ConditionTimedOut(step_id, kind, polls, call.state_of(polls, state)))


class ConditionCall(AttemptsCall):
    """Run `fn(state)` on a worker again and again. `initial`: the first state as JSON.

    The code asks for it once; `attempt` makes the call of each attempt, whose `poll` is the number of its check.
    """

    __slots__ = ("every", "initial", "limit_ms", "max_polls", "poll", "state")
    kind = "condition"
    words = "a condition"
    settles: ClassVar = {**AttemptsCall.settles, "condition-timed-out": _too_late}

    def __init__(
        self,
        fn: Callable[..., Any],
        initial: bytes,
        every: Backoff,
        limits: tuple[int | None, int | None],
        retry: Retry,
        codec: CheckCodec,
        pace: Pace,
    ) -> None:
        super().__init__(fn, (), retry, None, False, codec, pace=pace)
        self.state = codec.state
        self.initial = initial
        self.every = every
        self.limit_ms, self.max_polls = limits
        self.poll = 0

    @property
    def lasts_ms(self) -> int | None:
        return self.limit_ms

    @property
    def key(self) -> str:
        return f"#poll{self.poll}"

    def state_of(self, polls: int, state: Any) -> Any:
        """The state after so many polls, as the check gets it."""
        return self.state.decode(state if polls else orjson.loads(self.initial))

    def check(self, known: Open) -> None:
        assert isinstance(known, OpenCondition)
        try:
            self.state_of(known.polls, known.state)
        except ValueError as error:
            raise Differs(f"with the state {short(known.state)}", "does not take that state today") from error

    def attempt(self, known: OpenAttempts | None, left_ms: int | None) -> ConditionCall:
        """The call of the next attempt, on the state of the open condition, which may last for `left_ms`.

        An attempt that takes longer fails 1 ms later, so that the time of the condition is up then.
        """
        polls, state = (known.polls, known.state) if isinstance(known, OpenCondition) else (0, None)
        made = copy(self)
        made.poll = polls + 1
        made.timeout_ms = None if left_ms is None else max(left_ms, 0) + 1
        made.copies = lambda: (self.fn, (self.state_of(polls, state),))
        return made

    def first(self, timeout_at: int | None) -> tuple[str, dict[str, Any]]:
        """Type and fields of the record before all others of a condition whose first check does not succeed at once."""
        return "condition-started", {"v": FORMAT, "timeout_at": timeout_at}

    def polled(self, state: bytes, now: int, random: Random, timeout_at: int | None) -> tuple[str, dict[str, Any], int | None]:
        """Type and fields of the record of this attempt, which returned a state, and the pause until the next poll, in ms."""
        fields: dict[str, Any] = {"v": FORMAT, "poll": self.poll, "state": orjson.Fragment(state)}
        if self.max_polls is not None and self.poll >= self.max_polls:
            return "condition-timed-out", {**fields, "kind": "attempts"}, None
        pause = self.every.pause_ms(self.poll, random)
        return "condition-polled", {**fields, "next_at": within(now + pause), "timeout_at": timeout_at}, pause


def _tell_started(line: Line, event: ConditionStarted, at: int) -> None:
    line.until = event.timeout_at


def _tell_polled(line: Line, event: ConditionPolled, at: int) -> None:
    tell_times(line, event, at)
    line.points.append((at, "ended"))
    if len(line.points) > POINTS:
        del line.points[1:3]
    if not line.polls:
        line.until = event.timeout_at
    line.attempts, line.polls, line.result = event.attempt, event.poll, event.state
    line.next_at, line.running_since, line.error = event.next_at, None, None


def _tell_timed_out(line: Line, event: ConditionTimedOut, at: int) -> None:
    line.points.append((at, "timed out"))
    line.attempts = line.attempts if event.attempt is None else event.attempt


def _tell_too_late(line: Line, value: Any, at: int) -> None:
    line.became = "timed out"
    _, line.polls, line.result = value


def _note(line: Line, now_ms: int, beside: Beside) -> str:
    polls = "" if not line.polls else _polls(line.polls)
    state = "" if not line.polls else f"the last gave {short(line.result, 40)}"
    if line.became == "done":
        return joined("" if line.result is None else short(line.result, 48), polls)
    failed = "" if line.error is None else f"{line.error}"
    if line.became == "failed":
        return joined(failed, polls)
    if line.became == "timed out":
        return joined("it does not hold", polls, state)
    when = "" if line.next_at is None else f"next at {beside(line.next_at, now_ms)}"
    end = "" if line.until is None else end_beside(line.until, now_ms, beside)
    return joined(polls, state, when, end, failed)


KIND = Kind(
    "condition",
    records=(ConditionStarted, ConditionPolled, ConditionTimedOut),
    rules={"condition-started": _started, "condition-polled": _polled, "condition-timed-out": _timed_out},
    open=OpenCondition,
    call=ConditionCall,
    tells={"condition-started": _tell_started, "condition-polled": _tell_polled, "condition-timed-out": _tell_timed_out},
    ends={"condition-timed-out": _tell_too_late},
    note=_note,
    attempts=True,
)
