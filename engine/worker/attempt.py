"""One attempt of one step on its way through the worker, and its heartbeats.

An attempt runs nothing itself: `Running` makes it, the worker runs it, and its result goes back to `Running`.
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
from ..operations.attempted import AttemptsCall, OpenAttempts
from ..replay.execution import Op
from ..values.codec import dumps

MAX_HEARTBEAT_BYTES = 100_000
HEARTBEAT_S = 1.0


class Reports(Protocol):
    """Receives the reports of attempts; `Running` implements it."""

    loop: asyncio.AbstractEventLoop

    def completed(self, attempt: Attempt, result: bytes) -> None: ...
    def failed(self, attempt: Attempt, error: BaseException, info: ErrorInfo | None = None) -> None: ...
    def heartbeat(self, attempt: Attempt, details: orjson.Fragment) -> None: ...
    def ask(self, attempt: Attempt, call: Callable[[], bytes]) -> bytes: ...
    def announce(self, attempt: Attempt) -> None: ...


class Attempt:
    """One attempt of one step. `known` is the step's state in the log; None before its first record."""

    stop_s = math.inf  # the watchdog interrupts the code of runs, never a step
    __slots__ = (
        "announced",
        "beats",
        "began_at",
        "call",
        "dropped",
        "ended_as",
        "failures",
        "heartbeat",
        "heartbeat_at",
        "isolated",
        "lost",
        "number",
        "observed",
        "op",
        "over",
        "owner",
        "queued_at",
        "run",
        "since",
        "started",
        "task",
        "timer",
    )

    def __init__(self, owner: Reports, run: RunState, op: Op, call: AttemptsCall, known: OpenAttempts | None) -> None:
        self.owner = owner
        self.run = run
        self.op = op
        self.call = call
        self.over: asyncio.Future[None] | None = None  # set while the attempt occupies a slot; done when the slot is free
        self.task: asyncio.Task[None] | None = None  # runs the attempt on the loop; None for a plain function
        self.beats: Heartbeats | None = None
        self.isolated = False  # the step may kill workers, so no other such step runs at the same time
        self.started = False  # its function may have been called
        self.queued_at: int | None = None  # when it began to wait for a slot, ms since 1970, by the worker's clock
        self.began_at: int | None = None  # when its function was called, by the same clock
        self.since = 0.0  # start time by the loop's clock, s; without a timeout, when it first waits
        # ends the time of a plain function, or the clean-up time of a cancelled task
        self.timer: asyncio.TimerHandle | None = None
        self.dropped = False  # its code went on after a cancellation and gets no more turns
        self.ended_as: str | None = None  # the type of its error, or "withdrawn"; None: it runs, or has succeeded
        self.observed: Any = None  # the observer's own data about this attempt
        self.announced = False  # `attempt-started` is in the log, or in the append queue
        if known is None:
            self.number = 1
            self.failures = 0
            self.lost = 0  # how many attempts in a row were lost before this one
            self.heartbeat: Any = None
            self.heartbeat_at = 0
        else:
            self.number = known.attempts + 1
            self.failures = known.failures
            self.lost = known.lost
            self.heartbeat = known.heartbeat
            self.heartbeat_at = known.heartbeat_at

    @property
    def run_id(self) -> str:
        return self.run.id

    def named(self) -> tuple[str, dict[str, Any]]:
        """The attempt in words, and as extra fields for a log record."""
        extra = {"run_id": self.run.id, "workflow": self.run.workflow, "step_id": self.op.id, "attempt": self.number}
        return f"step {self.op.id} of run {self.run.id} of {self.run.workflow} (attempt {self.number})", extra

    @property
    def times(self) -> dict[str, int]:
        """The fields of its last record that say when it began, and since when it waited for a slot."""
        if self.began_at is None:
            return {}
        if self.queued_at is None:
            return {"began_at": self.began_at}
        return {"queued_at": self.queued_at, "began_at": self.began_at}

    def timed_out(self) -> TimeoutError:
        """The error of an attempt that exceeded its time-out, or that went on after a cancellation."""
        limit_ms = self.call.timeout_ms
        how = "was cancelled, but is still running" if limit_ms is None else f"took longer than {limit_ms / 1000:g} s"
        return TimeoutError(f"attempt {self.number} of step {self.op.id!r} {how}")

    def end_dropped(self) -> None:
        """Report the attempt as failed, because its code gets no more turns."""
        try:
            raise self.timed_out()  # raised, so that the error has a traceback
        except TimeoutError as error:
            self.owner.failed(self, error)
        if self.beats is not None:
            self.beats.stop()

    def progress(self) -> int:
        """Always 0: an attempt shows no progress."""
        return 0

    @property
    def step_id(self) -> str:
        return self.op.id

    @property
    def key(self) -> str:
        """The idempotency key: names this step of this run, or this poll of a condition, for ever.

        Run ids can be used again; request ids of starts cannot.
        """
        start = hashlib.blake2b((self.run.request or "").encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
        return f"{self.run.id}.{start}/{self.op.id}{self.call.key}"

    def announce(self) -> None:
        """Announce the attempt: its turn to run isolated has come."""
        self.owner.announce(self)

    def ask(self, call: Callable[[], bytes]) -> bytes:
        """Call code that may be the user's, under the watchdog. Raises Stuck if the code does not come back."""
        return self.owner.ask(self, call)

    def beat(self, details: Any) -> None:
        """Record a heartbeat of the step function, also from its thread. Raises ValueInvalid, PayloadTooLarge, and RuntimeError
        after the end."""
        if self.started and self.over is None:
            raise RuntimeError(
                f"attempt {self.number} of step {self.op.id!r} of run {self.run.id!r} has ended, and takes no more heartbeats: "
                "end the threads and tasks that it started before its function returns"
            )
        try:
            data = dumps(details, typed=False)
        except ValueInvalid as error:
            raise ValueInvalid(f"the heartbeat of step {self.op.id!r} cannot be recorded as JSON: {error}") from error
        size = len(data)
        if size > MAX_HEARTBEAT_BYTES:
            raise PayloadTooLarge(f"heartbeat of step {self.op.id!r}: {size:,} bytes; the limit is {MAX_HEARTBEAT_BYTES:,}")
        if self.beats is None:
            self.beats = Heartbeats(self)
        self.beats.beat(orjson.Fragment(data))  # encoded now: the function may change the value later


class Heartbeats:
    """The latest details that an attempt reported. They go to the log at most once per `HEARTBEAT_S`."""

    __slots__ = ("_attempt", "_timer", "details", "fresh")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._timer: asyncio.TimerHandle | None = None
        self.details = orjson.Fragment(b"null")  # encoded when reported
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
