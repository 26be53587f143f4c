"""Operations that a worker executes, attempt by attempt: the state and the call that steps and conditions share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from ..core.state import Open
from ..errors import ErrorInfo, StepFailed
from ..values.pace import ON_LOOP, Pace
from ..values.retry import Retry
from ..values.taken import Copies
from ..values.times import FIRST_MS, due
from .call import Call, Raise, Settle
from .line import Line


class OpenAttempts(Open):
    """An operation of which an attempt was announced, sent a heartbeat, failed or was lost.

    `since`: the log's time of the first record of the attempt that runs, or of the end of the last one.
    """

    __slots__ = ("attempts", "error", "failures", "heartbeat", "heartbeat_at", "last_at", "lost", "next_at", "started")

    def __init__(self, now: int) -> None:
        self.since = now
        self.last_at = now  # the log's time of its last record
        self.attempts = 0  # attempts that are over
        self.failures = 0  # failed attempts, which count against max_attempts
        self.lost = 0  # attempts lost in a row, up to now
        self.started = False  # the next attempt was announced
        self.next_at: int | None = None
        self.error: Any = None
        self.heartbeat: Any = None
        self.heartbeat_at = 0  # `at` of the last heartbeat: a repeated or late one must not replace it

    @property
    def due_at(self) -> int | None:
        return due(self.next_at)

    @property
    def ends_at(self) -> int | None:
        """When it is over whatever its attempts do, ms since 1970; None: never."""
        return None

    @property
    def told(self) -> bool:
        return self.next_at is not None

    def resumed(self) -> None:
        self.lost = 0


class Encoder(Protocol):
    """Writes results as JSON, and reads them, as `Codec` does."""

    asks_types: bool

    def at_sight(self, value: Any) -> bytes | None: ...
    def prove(self, value: Any) -> bytes: ...
    def decode(self, value: object) -> Any: ...


def _result(call: AttemptsCall, step_id: str, value: Any) -> Any:
    return call.codec.decode(value)


def _error(call: AttemptsCall, step_id: str, value: Any) -> Raise:
    attempts, error = value
    info = ErrorInfo.from_json(error)
    return Raise(StepFailed(step_id, attempts, ErrorInfo(info.type, info.message, info.traceback, step_id)))


class AttemptsCall(Call):
    """Run `fn(*args)` on a worker."""

    __slots__ = ("args", "at_most_once", "codec", "copies", "fn", "pace", "record_input", "retry", "timeout_ms")
    settles: ClassVar[Mapping[str, Settle]] = {"result": _result, "error": _error}

    @property
    def asks_types(self) -> bool:
        return self.codec.asks_types

    @property
    def key(self) -> str:
        """The part of an attempt's idempotency key behind the id of the operation."""
        return ""

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        retry: Retry,
        timeout_ms: int | None,
        at_most_once: bool,
        codec: Encoder,
        copies: Copies | None = None,
        record_input: bool = False,
        pace: Pace = ON_LOOP,
    ) -> None:
        self.fn = fn
        self.args = args
        self.retry = retry
        self.pace = pace
        self.timeout_ms = timeout_ms
        self.at_most_once = at_most_once
        self.codec = codec
        self.copies = copies  # makes `fn` and `args` anew for each attempt, if they are data
        self.record_input = record_input


class Timed(Protocol):
    """A record of an attempt that is over. By the worker's clock (ms) it ran from `began_at` to `at`."""

    @property
    def at(self) -> int: ...
    @property
    def queued_at(self) -> int | None: ...
    @property
    def began_at(self) -> int | None: ...


def tell_times(line: Line, event: Timed, at: int) -> None:
    """When the attempt was queued and when it began, counted back from the log's time of its end, `at`: clocks may differ."""
    line.queued_ms = line.ran_ms = None
    if event.began_at is None:
        return
    line.ran_ms = max(event.at - event.began_at, 0)
    began = at - line.ran_ms
    line.queued_ms = 0 if event.queued_at is None else max(event.began_at - event.queued_at, 0)
    if line.running_since is None:
        first = line.points[-1][0] if line.points else FIRST_MS
        if line.queued_ms:
            line.points.append((max(began - line.queued_ms, first), "queued"))
        line.points.append((max(began, first), "began"))
