"""One attempt of one step on its way through the worker, and the heartbeats it sends.

Runs nothing: the owner makes it, the worker runs it, and its result goes back to the owner.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from .codec import dumps
from .errors import PayloadTooLarge
from .execution import Op, StepCall
from .fold import OpenStep, RunState

MAX_HEARTBEAT_BYTES = 100_000
HEARTBEAT_S = 1.0


class Reports(Protocol):
    """Who is told how an attempt goes."""

    loop: asyncio.AbstractEventLoop

    def completed(self, attempt: Attempt, result: bytes) -> None: ...
    def failed(self, attempt: Attempt, error: BaseException) -> None: ...
    def heartbeat(self, attempt: Attempt, details: Any) -> None: ...
    def announce(self, attempt: Attempt) -> None: ...


class Attempt:
    """One attempt of one step, on its way through the worker."""

    __slots__ = (
        "alone",
        "announced",
        "beats",
        "begun",
        "call",
        "failures",
        "heartbeat",
        "heartbeat_at",
        "number",
        "op",
        "owner",
        "run",
        "task",
    )

    def __init__(self, owner: Reports, run: RunState, op: Op, call: StepCall, known: OpenStep | None) -> None:
        self.owner = owner
        self.run = run
        self.op = op
        self.call = call
        self.task: asyncio.Task[None] | None = None
        self.beats: Heartbeats | None = None
        self.alone = False  # it may be what kills the worker
        self.begun = False  # its function was called
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

    @property
    def step_id(self) -> str:
        return self.op.id

    def beat(self, details: Any) -> None:
        """A heartbeat of the step function; may come from its thread."""
        size = len(dumps(details))
        if size > MAX_HEARTBEAT_BYTES:
            raise PayloadTooLarge(f"heartbeat of step {self.op.id!r}: {size:,} bytes; the limit is {MAX_HEARTBEAT_BYTES:,}")
        if self.beats is None:
            self.beats = Heartbeats(self)
        self.beats.beat(details)


class Heartbeats:
    """The latest details that an attempt reported, on their way to the log about once a second."""

    __slots__ = ("_attempt", "_timer", "details", "fresh")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._timer: asyncio.TimerHandle | None = None
        self.details: Any = None
        self.fresh = False

    def beat(self, details: Any) -> None:
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
