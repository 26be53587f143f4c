"""The state of one run, folded from its events by the rules. Knows no kind of operation. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from ..values.trace import Trace
from ..values.wait import Wait
from .messages import Parent, derived, digest_of_start

EXPECTED = "expected"
"""The phase of a run that has not started, but for which signals have come."""


class Delivery(NamedTuple):
    """One entry of the journal: `value` is what the log holds of the `outcome` of an operation, or of a cancellation ("cancel").

    The module of the operation's kind knows what the code gets for `value`. `now`: the run's time, ms.
    """

    step_id: str
    outcome: str
    now: int
    value: Any


class Open:
    """An operation that has begun and is not over. A subclass belongs to one kind. A snapshot has `since`, and the slots in
    `kept`.

    `since`: the log's time of the record with which it began, ms since 1970.
    """

    __slots__ = ("since",)
    since: int
    kind: ClassVar[str] = ""
    actions: ClassVar[frozenset[str]] = frozenset()
    """The requests that people may send to it, in words."""
    kept: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.kept = (*cls.kept, *cls.__dict__.get("__slots__", ()))

    @property
    def when_due(self) -> str | None:
        """The decision that the owner records when the operation is due; None: the owner dispatches it again."""
        return None

    @property
    def due_at(self) -> int | None:
        """When the operation is due by the owner's clock, ms since 1970; None: never."""
        return None

    @property
    def due_by_log(self) -> int | None:
        """When it is due by the log's clock, ms since 1970; None: never. Requests move it to a later time."""
        return None

    def due_fields(self, by_log: bool) -> dict[str, Any]:
        """The fields of the decision `when_due` that say more than which operation it is about."""
        return {}

    @property
    def told(self) -> bool:
        """Whether this state says all that the operation waits for. False for a step that may have a running attempt."""
        return True

    def resumed(self) -> None:
        """Called when the run goes on after a quarantine."""

    def dropped(self, run: RunState, step_id: str) -> None:
        """Called when the code no longer waits for it."""

    def run_cancelled(self, run: RunState, step_id: str) -> None:
        """Called when the run is asked to end."""

    def words(self, step_id: str) -> str:
        """The thing that the run waits for, in words for people."""
        return f"{self.kind} {step_id!r}"

    def wait(self, run_id: str, step_id: str) -> Wait:
        """The thing that the run waits for."""
        raise NotImplementedError


class RunState:
    """One run, folded from its events."""

    __slots__ = (
        "awaits_worker",
        "cancel_requested",
        "decided",
        "digest",
        "done",
        "ended_at",
        "error",
        "folded",
        "held_at",
        "id",
        "input",
        "journal",
        "kept",
        "now",
        "open",
        "owed",
        "parent",
        "phase",
        "reason",
        "request",
        "requests",
        "result",
        "returned",
        "signals",
        "start",
        "start_input",
        "started_at",
        "suspected",
        "suspected_by",
        "trace",
        "trigger",
        "version",
        "workflow",
    )

    def __init__(self, run_id: str, workflow: str, version: str | None, input: Any, start: int, now: int) -> None:
        self.id = run_id
        self.workflow = workflow
        self.version = version
        self.input = self.start_input = input  # now, and as the start gave it; an expected run: signals kept, [time, event] each
        self.digest = 0  # of workflow and input, if `started` came from an inbox
        self.trigger: Any = None
        self.trace: Trace | None = None  # of the request that started it
        self.parent: Parent | None = None  # the operation of another run that started it
        self.owed: list[dict[str, Any]] | None = None  # messages that the record now being folded causes; not packed
        self.start = start  # offset of `started`
        self.started_at = now
        self.now = now
        self.phase = "open"  # open | quarantined | completed | failed | cancelled | expected
        self.decided = False  # the log holds a decision of the run's code
        self.awaits_worker = False  # the last owner did not know the workflow
        self.held_at = now  # the log's time of the last record that held the run: unknown workflow, first suspicion, quarantine
        self.cancel_requested = False
        self.suspected = 0  # `code-suspected` records since the last decision of the code
        self.suspected_by = -1  # while it is suspected: the claim of the last such record
        self.journal: list[Delivery] = []
        self.done: set[str] = set()  # ids of operations that are over
        self.returned: set[str] = set()  # ids of operations that the code dropped after their delivery, which then went back
        self.open: dict[str, Open] = {}  # operations that have begun and are not over, in the order of their beginning
        self.signals: dict[str, list[list[Any]]] = {}  # not yet taken: name -> [[data, request], ...]
        # what was told: kind -> name -> [how many records of the name counted, and what the kind keeps of the last one]
        self.kept: dict[str, dict[str, list[Any]]] = {}
        self.request: str | None = None  # the request id of `started`, remembered for the life of the run
        self.requests: dict[str, int] = {}  # other accepted requests that are remembered: id -> the run's time then
        self.result: Any = None
        self.error: Any = None
        self.reason: str | None = None
        self.ended_at: int | None = None
        self.folded = start + 1  # a snapshot of the run covers its records below this offset; not packed, so the reader sets it

    def traced(self, parent: object, state: object) -> None:
        """Keep the trace of the request that started the run, if it is valid."""
        self.trace = Trace.of(parent, state)

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def start_digest(self) -> str:
        """The digest of the request that started the run, as messages name it."""
        return digest_of_start(self.request or "")

    def derived(self, verb: str, step_id: str = "") -> str:
        """The request id of a message of this run, or about one of its operations."""
        return f"{verb}/{derived(self.id, self.request or '', step_id)}"

    def owe(self, type: str, run_id: str, **fields: Any) -> None:
        """A rule owes this request to another run, because of the record that it accepts."""
        self.owed = [*(self.owed or ()), {"type": type, "run_id": run_id, **fields}]

    def remembers(self, request: str, memory_ms: int) -> bool:
        """Whether a request of this id was accepted and is still remembered."""
        at = self.requests.get(request)
        return request == self.request or (at is not None and self.now < at + memory_ms)

    def forget(self, memory_ms: int) -> None:
        """Drop the request ids that are older than `memory_ms`."""
        past: list[str] = []
        for request, at in self.requests.items():  # oldest first; without a copy, because every request calls this
            if self.now < at + memory_ms:
                break
            past.append(request)
        for request in past:
            del self.requests[request]


def is_new(run: RunState, step_id: str) -> bool:
    """Whether an operation with this id may begin."""
    return bool(step_id) and step_id not in run.open and step_id not in run.done


def deliver(run: RunState, step_id: str, outcome: str, value: Any, *, over: bool = True) -> None:
    """Append an entry to the journal; the operation, if any, is then over, unless `over` is False."""
    run.journal.append(Delivery(step_id, outcome, run.now, value))
    if step_id and over:
        run.done.add(step_id)
