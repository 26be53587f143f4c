"""The state of one run, as its events tell it: what changes it are the rules. Knows no kind of operation. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

EXPECTED = "expected"
"""The phase of a run that has not begun, for which signals have come."""


class Delivery(NamedTuple):
    """One entry of the journal: what it brings to the code is for the room of its `kind`. `now`: the run's time, ms."""

    step_id: str
    kind: str
    now: int
    value: Any


class Open:
    """An operation that has begun in a run and is not over. A subclass belongs to one kind, and a snapshot keeps its slots."""

    __slots__ = ()
    kind: ClassVar[str] = ""
    when_due: ClassVar[str | None] = None
    """The decision that its time calls for; None: the code that asked for it is seen to again."""

    @property
    def due_at(self) -> int | None:
        """When something must happen to it, ms; None: never."""
        return None

    @property
    def told(self) -> bool:
        """Whether the state tells all that is awaited: of a step that may be running it does not."""
        return True

    def resumed(self) -> None:
        """The run goes on after a quarantine."""

    def words(self, step_id: str) -> str:
        """What is waited for, for people."""
        return f"{self.kind} {step_id!r}"


class RunState:
    """One run, as its events tell it."""

    __slots__ = (
        "awaits_worker",
        "cancel_requested",
        "decided",
        "digest",
        "done",
        "ended_at",
        "error",
        "executed",
        "folded",
        "given",
        "id",
        "idle",
        "input",
        "journal",
        "now",
        "open",
        "phase",
        "reason",
        "request",
        "requests",
        "result",
        "signals",
        "start",
        "started_at",
        "stored",
        "suspected",
        "suspected_by",
        "trigger",
        "version",
        "workflow",
    )

    def __init__(self, run_id: str, workflow: str, version: str | None, input: Any, start: int, now: int) -> None:
        self.id = run_id
        self.workflow = workflow
        self.version = version
        self.input = self.given = input  # as it is now, and as the start gave it; of an expected one: what came, [time, signal]
        self.digest = 0  # of workflow and input, where `started` came from an inbox
        self.trigger: Any = None
        self.start = start  # offset of `started`
        self.started_at = now
        self.now = now
        self.phase = "open"  # open | quarantined | completed | failed | cancelled | expected
        self.decided = False  # some worker has decided something
        self.awaits_worker = False  # the last owner did not know the workflow
        self.cancel_requested = False
        self.suspected = 0  # how often its code was announced as what may kill its worker, since it last decided something
        self.suspected_by = -1  # while it is suspected: the claim of the last such announcement
        self.journal: list[Delivery] = []
        self.done: set[str] = set()  # steps, sleeps and waits that are over
        self.open: dict[str, Open] = {}  # those that have begun, in that order
        self.signals: dict[str, list[list[Any]]] = {}  # not yet taken: signal -> [[data, request], ...]
        self.request: str | None = None  # the id of `started`, known for the life of the run
        self.requests: dict[str, int] = {}  # ids of the other requests that were accepted and are remembered -> the run's time
        self.result: Any = None
        self.error: Any = None
        self.reason: str | None = None
        self.ended_at: int | None = None
        # What an owner knows besides; no part of the packed value.
        self.folded = start + 1  # records of this run below this offset are in a snapshot it was made from
        self.idle = False  # its code has run as far as the journal goes and waits only for what is open
        self.executed = -1  # how many entries of the journal its code is known to have seen
        self.stored = -1  # the claim under which a snapshot of it is stored

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def remembers(self, request: str, memory_ms: int) -> bool:
        """Whether a request of this id has been accepted, and is not past remembering."""
        at = self.requests.get(request)
        return request == self.request or (at is not None and self.now < at + memory_ms)

    def forget(self, memory_ms: int) -> None:
        """Drop the requests that are past remembering."""
        past: list[str] = []
        for request, at in self.requests.items():  # the oldest first; no copy of them all, since each request comes here
            if self.now < at + memory_ms:
                break
            past.append(request)
        for request in past:
            del self.requests[request]


def is_new(run: RunState, step_id: str) -> bool:
    """Whether an operation of this id may begin."""
    return bool(step_id) and step_id not in run.open and step_id not in run.done


def deliver(run: RunState, step_id: str, kind: str, value: Any) -> None:
    """Add an entry to the journal; with it the operation is over."""
    run.journal.append(Delivery(step_id, kind, run.now, value))
    if step_id:
        run.done.add(step_id)
