"""One attempt of one step on its way through the worker, and the heartbeats it sends.

Runs nothing: the owner makes it, the worker runs it, and its result goes back to the owner.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from ..core.state import RunState
from ..errors import ErrorInfo, PayloadTooLarge, ValueInvalid
from ..operations.step import OpenStep, StepCall
from ..replay.execution import Op
from ..values.codec import dumps

MAX_HEARTBEAT_BYTES = 100_000
HEARTBEAT_S = 1.0


class Reports(Protocol):
    """Who is told how an attempt goes."""

    loop: asyncio.AbstractEventLoop

    def completed(self, attempt: Attempt, result: bytes) -> None: ...
    def failed(self, attempt: Attempt, error: BaseException, info: ErrorInfo | None = None) -> None: ...
    def heartbeat(self, attempt: Attempt, details: orjson.Fragment) -> None: ...
    def ask(self, attempt: Attempt, call: Callable[[], bytes]) -> bytes: ...
    def announce(self, attempt: Attempt) -> None: ...


class Attempt:
    """One attempt of one step, on its way through the worker."""

    stop_s = math.inf  # a step is not interrupted
    __slots__ = (
        "alone",
        "announced",
        "beats",
        "begun",
        "call",
        "dropped",
        "failures",
        "heartbeat",
        "heartbeat_at",
        "number",
        "op",
        "over",
        "owner",
        "run",
        "since",
        "task",
        "timer",
    )

    def __init__(self, owner: Reports, run: RunState, op: Op, call: StepCall, known: OpenStep | None) -> None:
        self.owner = owner
        self.run = run
        self.op = op
        self.call = call
        self.over: asyncio.Future[None] | None = None  # while it has a place: done when that is free again
        self.task: asyncio.Task[None] | None = None  # which runs it, on the loop
        self.beats: Heartbeats | None = None
        self.alone = False  # it may be what kills the worker
        self.begun = False  # its function was called
        self.since = 0.0  # when, by the loop's time
        self.timer: asyncio.TimerHandle | None = None  # ends a plain function's time, or the time to clean up of a cancelled task
        self.dropped = False  # its code was cancelled and went on: it gets no more turns
        self.announced = False  # that it is about to run is in the log, or on its way there
        if known is None:
            self.number = 1
            self.failures = 0
            self.heartbeat: Any = None
            self.heartbeat_at = 0
        else:
            self.number = known.attempts + 1
            self.failures = known.failures
            self.heartbeat = known.heartbeat
            self.heartbeat_at = known.heartbeat_at

    @property
    def run_id(self) -> str:
        return self.run.id

    def named(self) -> tuple[str, dict[str, Any]]:
        """In words, and as extra fields of a log record."""
        extra = {"run_id": self.run.id, "workflow": self.run.workflow, "step_id": self.op.id, "attempt": self.number}
        return f"step {self.op.id} of run {self.run.id} of {self.run.workflow} (attempt {self.number})", extra

    def timed_out(self) -> TimeoutError:
        """The error of an attempt that took too long, or that went on after it was cancelled."""
        limit_ms = self.call.timeout_ms
        how = "was cancelled, and went on" if limit_ms is None else f"took longer than {limit_ms / 1000:g} s"
        return TimeoutError(f"attempt {self.number} of step {self.op.id!r} {how}")

    def end_dropped(self) -> None:
        """Nobody waits for its code any more: that is how it has failed."""
        try:
            raise self.timed_out()  # so that it has a traceback
        except TimeoutError as error:
            self.owner.failed(self, error)
        if self.beats is not None:
            self.beats.stop()

    def progress(self) -> int:
        """It has none that can be seen."""
        return 0

    @property
    def step_id(self) -> str:
        return self.op.id

    @property
    def key(self) -> str:
        """Says which step of which run, for ever: run ids are used again, requests to start are not."""
        start = hashlib.blake2b((self.run.request or "").encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        return f"{self.run.id}.{start}/{self.op.id}"

    def announce(self) -> None:
        """It is its turn to run alone."""
        self.owner.announce(self)

    def ask(self, call: Callable[[], bytes]) -> bytes:
        """Call what may run code of the user's for this attempt. Raises Stuck where it does not come back."""
        return self.owner.ask(self, call)

    def beat(self, details: Any) -> None:
        """A heartbeat of the step function; may come from its thread."""
        try:
            data = dumps(details)
        except ValueInvalid as error:
            raise ValueInvalid(f"the heartbeat of step {self.op.id!r} cannot be recorded as JSON: {error}") from error
        size = len(data)
        if size > MAX_HEARTBEAT_BYTES:
            raise PayloadTooLarge(f"heartbeat of step {self.op.id!r}: {size:,} bytes; the limit is {MAX_HEARTBEAT_BYTES:,}")
        if self.beats is None:
            self.beats = Heartbeats(self)
        self.beats.beat(orjson.Fragment(data))  # as it is now: the function may go on to change it


class Heartbeats:
    """The latest details that an attempt reported, on their way to the log about once a second."""

    __slots__ = ("_attempt", "_timer", "details", "fresh")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._timer: asyncio.TimerHandle | None = None
        self.details = orjson.Fragment(b"null")  # as they were when they were given
        self.fresh = False

    def beat(self, details: orjson.Fragment) -> None:
        self.details = details
        self.fresh = True
        loop = self._attempt.owner.loop
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            self._record()
        else:
            loop.call_soon_threadsafe(self._record)

    def _record(self) -> None:
        if self._timer is None and self.fresh:
            self.fresh = False
            self._attempt.owner.heartbeat(self._attempt, self.details)
            self._timer = self._attempt.owner.loop.call_later(HEARTBEAT_S, self._again)

    def _again(self) -> None:
        self._timer = None
        self._record()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self.fresh = False
