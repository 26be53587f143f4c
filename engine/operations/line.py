"""One operation as a line of its run's story. Pure."""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ErrorInfo

Became = Literal["open", "done", "failed", "dropped", "timed out"]
Mark = Literal["queued", "began", "failed", "lost", "ended", "timed out"]


class Line:
    """One operation. Times are the log's, in milliseconds since 1970; None: not known, or there is none."""

    __slots__ = (
        "at_line",
        "attempts",
        "became",
        "by",
        "child",
        "detached",
        "ended_as",
        "error",
        "heartbeat",
        "heartbeat_at",
        "heartbeat_by",
        "input",
        "input_note",
        "kind",
        "left",
        "lost",
        "next_at",
        "points",
        "polls",
        "queued_ms",
        "ran_ms",
        "request",
        "result",
        "returned",
        "running_since",
        "signal",
        "step_id",
        "until",
        "why",
        "worker",
        "workflow",
    )

    def __init__(self, step_id: str, kind: str) -> None:
        self.step_id = step_id
        self.kind = kind
        self.became: Became = "open"
        self.points: list[tuple[int, Mark]] = []
        self.result: Any = (
            None  # of a step; the data of a signal or answer; the last state of a condition; which limit a callback has passed
        )
        self.error: ErrorInfo | None = None  # of the last attempt that failed
        self.attempts = 0  # attempts that are over
        self.polls = 0  # of a condition: the checks that returned a state
        self.queued_ms: int | None = None  # how long the last attempt that is over waited for a slot, by the worker's clock
        self.ran_ms: int | None = None  # how long it ran
        self.lost = 0  # lost attempts, which are among `attempts`
        self.next_at: int | None = None  # when the next attempt is due
        self.running_since: int | None = None  # time of the first record of the running attempt
        self.worker: str | None = None  # the worker that wrote the last record
        self.left = False  # `worker` no longer owns the partition: no record says whether its attempt still runs
        self.input: list[Any] | None = None  # of the last attempt whose input was recorded
        self.input_note: str | None = None
        self.heartbeat: Any = None
        self.heartbeat_at: int | None = None
        self.heartbeat_by: int | None = None  # when the next heartbeat must have come, by the log's clock
        self.until: int | None = None  # the end of a sleep, or the time-out of a wait, callback, condition or child
        self.child: str | None = None  # the run id of a child
        self.workflow: str | None = None  # of the child
        self.detached = False  # nobody waits for the end of the child
        self.ended_as: str | None = None  # the state in which the child ended, or why there is no child
        self.signal: str | None = None  # the name of the signal that a wait waits for
        self.at_line: str | None = None  # the line of the code that asked for it
        self.request: str | None = None  # the id of the request that ended it
        self.by: str | None = None  # who made that request, and why
        self.why: str | None = None
        self.returned = False  # the wait was dropped, and its signal went back to the queue
