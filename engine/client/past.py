"""A run at any of its events: its records as far as they have been read, and the state of the fold at some of them.

The newest state costs the new records only, and an earlier one the records since the last state kept before it. Events become
models only where somebody looks at them. The state is always the one that the fold of all records from the first on gives. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, cast, overload

from ..core.fold import PartitionState
from ..core.records import OperationDecision, Request
from ..core.snapshot import copied
from ..core.state import Delivery, RunState
from ..errors import RunNotFound
from ..events import TYPES, Event, decode, parse
from ..log import Log, Record
from ..operations.line import Line
from .story import story
from .view import RunView

EVERY = 500
STATES_KEPT = 32
"""After how many records the state is kept, until there are this many states; then every second one goes."""
RECORD_BYTES = 700
COPIES = 3
"""The memory that a record costs here: so much, and its bytes so many times."""

_OPERATIONS = frozenset(name for name, model in TYPES.items() if issubclass(model, OperationDecision))
_REQUESTS = frozenset(name for name, model in TYPES.items() if issubclass(model, Request))


class _Kept:
    """A view as it was behind `count` records. The journal is that of the run that goes on, up to `length`."""

    def __init__(self, view: RunView, count: int) -> None:
        self.count = count
        run = view.run
        self._journal: list[Delivery] = [] if run is None else run.journal
        self._length = len(self._journal)
        self._view = _copy(view, [])
        if self._view.run is not None:
            self._view.run.done.difference_update(delivery.step_id for delivery in self._journal)

    def view(self) -> RunView:
        return _copy(self._view, self._journal[: self._length])


def _copy(view: RunView, journal: list[Delivery]) -> RunView:
    """A view that does not change with this one; its run gets this journal."""
    twin = RunView(view.run_id, view.state.without_runs())
    twin.changed_at = view.changed_at
    run = view.run
    if run is not None:
        twin.run = copied(run, journal)
        twin.run.done.update(delivery.step_id for delivery in journal if delivery.step_id)
        twin.run.done.difference_update(run.open)
        if run.id in view.state.runs and view.state.runs.peek(run.id) is run:
            twin.state.runs.add(twin.run)
    for run_id in view.state.runs.ids():
        other = view.state.runs.peek(run_id)
        if other is not run:
            twin.state.runs.add(copied(other, list(other.journal)))
    return twin


class _Index:
    """Where in the records the events of one run are, and which of them belong together. It only grows."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._numbers: list[int] = []  # of the records
        self.offsets: list[int] = []
        self.types: dict[str, list[int]] = {}  # of events: their numbers, rising
        self.steps: dict[str, list[int]] = {}
        self.requests: dict[str, list[int]] = {}
        self.lines: list[str] = []  # step ids of the operations, in the order of their first events
        self.begins: list[int] = []  # the numbers of those events
        self._lined: set[str] = set()

    def add(self, number: int, event: dict[str, Any]) -> None:
        """Note an accepted event."""
        nth, kind = len(self._numbers), event["type"]
        self._numbers.append(number)
        self.offsets.append(self._records[number].offset)
        self.types.setdefault(kind, []).append(nth)
        if kind in _REQUESTS:
            self.requests.setdefault(event["request"], []).append(nth)
        step_id = event.get("step_id")
        if step_id is None:
            return
        self.steps.setdefault(step_id, []).append(nth)
        if kind in _OPERATIONS and step_id not in self._lined:
            self._lined.add(step_id)
            self.lines.append(step_id)
            self.begins.append(nth)

    def event(self, nth: int) -> Event:
        record = self._records[self._numbers[nth]]
        return parse(cast("dict[str, Any]", decode(record.value)), record.offset, record.timestamp)


class Past:
    """One run, read so far. If its id was used again, this object keeps the last run, and folds an earlier one anew."""

    def __init__(self, view: RunView) -> None:
        self.records: list[Record] = []
        self.size_bytes = 0
        self._view = view
        self._early: list[int] = []
        self._claims: list[tuple[int, str | None]] = []
        self._begin(None)

    def _begin(self, first: int | None) -> None:
        """Forget the run before. `first`: the number of the records up to the new one's start."""
        self._first = first
        self._index = _Index(self.records)
        self._kept: list[_Kept] = []
        self._every = EVERY

    def take(self, records: Iterable[Record]) -> None:
        """Fold the records behind the last one."""
        last = self.records[-1].offset if self.records else -1
        for record in records:
            if record.offset > last:
                self._take(record)

    def _take(self, record: Record) -> None:
        number, view = len(self.records), self._view
        self.records.append(record)
        self.size_bytes += RECORD_BYTES + COPIES * len(record.value)
        before = view.run
        change = view.take(record)
        if change is not None:
            if change.early is not None:
                self._early.append(number)
            elif change.run is None:
                self._claims.append((record.offset, view.state.owner))
            else:
                if change.run is not before:  # it remembers the requests of the signals that were not forgotten: the last ones
                    forgotten = len(self._early) - len(change.run.requests)
                    self._begin(number + 1)
                    for early in self._early[forgotten:]:
                        self._index.add(early, cast("dict[str, Any]", decode(self.records[early].value)))
                    self._early = []
                self._index.add(number, change.event)
        if self._first is not None:
            self._keep(len(self.records))

    def _keep(self, count: int) -> None:
        if self._kept and count < self._kept[-1].count + self._every:
            return
        self._kept.append(_Kept(self._view, count))
        if len(self._kept) > STATES_KEPT:
            self._every *= 2
            del self._kept[1::2]

    def found(self, log: Log) -> RunState:
        """The run as it is now, which changes as records come. Raises RunNotFound."""
        return self._view.found(log)

    @property
    def offset(self) -> int:
        """The offset behind the last record."""
        return self._view.state.offset

    def now(self) -> Moment:
        """The run as it is now. It must have begun."""
        run = self._view.run
        assert run is not None
        return Moment(self._index, _copy(self._view, list(run.journal)), self._owners(self.offset))

    def after(self, nth: int, log: Log) -> Moment:
        """The run as it was after its nth event, or after the last one. It must have begun. Raises RunNotFound."""
        offsets = self._index.offsets
        return self.at(offsets[min(nth, len(offsets)) - 1], log)

    def at(self, offset: int, log: Log) -> Moment:
        """The run as it was after the record at an offset; if the last run had not begun then, the run before it, folded anew.

        Raises RunNotFound if none had begun.
        """
        count = bisect_right(self.records, offset, key=lambda record: record.offset)
        if self._first is None or count < self._first:
            state, run_id = self._view.state, self._view.run_id
            earlier = Past(RunView(run_id, PartitionState(state.partition, state.partitions)))
            earlier.take(self.records[:count])
            if earlier._first is None:
                raise RunNotFound(run_id, log.name, f"run {run_id!r} had not begun at offset {offset}")
            return earlier.now()
        kept = self._kept[bisect_right(self._kept, count, key=lambda one: one.count) - 1]
        view = kept.view()
        for record in self.records[kept.count : count]:
            view.take(record)
        return Moment(self._index, view, self._owners(view.state.offset))

    def _owners(self, offset: int) -> dict[int, str | None]:
        """The owners by the claims below an offset."""
        return dict(self._claims[: bisect_left(self._claims, offset, key=lambda claim: claim[0])])


class Events(Sequence[Event]):
    """Some of the events of a run, by their numbers, which rise. Each look at one makes its model."""

    def __init__(self, index: _Index, chosen: Sequence[int]) -> None:
        self._index = index
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, at: int) -> Event: ...
    @overload
    def __getitem__(self, at: slice) -> Events: ...
    def __getitem__(self, at: int | slice) -> Event | Events:
        if isinstance(at, slice):
            return Events(self._index, self.chosen[at])
        return self._index.event(self.chosen[at])

    def offset(self, at: int) -> int:
        """The offset of one of them."""
        return self._index.offsets[self.chosen[at]]

    def where(self, fits: Callable[[Event], bool]) -> Events:
        """Those that fit."""
        return Events(self._index, [nth for nth in self.chosen if fits(self._index.event(nth))])

    def has(self, offset: int) -> bool:
        """Whether one of them is at this offset."""
        at = self.from_offset(offset)
        return at < len(self) and self.offset(at) == offset

    def from_offset(self, offset: int) -> int:
        """The index of the first event that is at an offset or behind it."""
        return bisect_left(self.chosen, offset, key=self._index.offsets.__getitem__)


class Moment(RunView):
    """A run with its events, as it was after one of them. Nothing changes it."""

    __slots__ = ("_count", "_index", "events", "owners")

    def __init__(self, index: _Index, view: RunView, owners: dict[int, str | None]) -> None:
        super().__init__(view.run_id, view.state)
        self.run, self.changed_at = view.run, view.changed_at
        self._index = index
        self.owners = owners
        self._count = bisect_left(index.offsets, view.state.offset)
        self.events = Events(index, range(self._count))

    def types(self) -> list[str]:
        """The types of the events."""
        return sorted(kind for kind, numbers in self._index.types.items() if numbers[0] < self._count)

    def select(self, *, step: str | None = None, types: Collection[str] | None = None) -> Events:
        """The events of one step, and of some types."""
        chosen: Sequence[int] = range(self._count) if step is None else self._until(self._index.steps.get(step, ()))
        if types is not None:
            wanted = {nth for kind in types for nth in self._until(self._index.types.get(kind, ()))}
            chosen = [nth for nth in chosen if nth in wanted] if step is not None else sorted(wanted)
        return Events(self._index, chosen)

    def _until(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers[: bisect_left(numbers, self._count)]

    @property
    def operations(self) -> int:
        """The number of the run's operations."""
        return bisect_left(self._index.begins, self._count)

    def has(self, run: RunState) -> bool:
        """Whether this is a moment of that run, and not of one before it."""
        return self.run is not None and self.run.start == run.start

    def story(self, first: int = 0, limit: int | None = None) -> list[Line]:
        """The operations of the run, in the order of their first records, or some of them: the events of others are not read."""
        index, last = self._index, self.operations
        last = last if limit is None else min(last, first + limit)
        numbers = {nth for step_id in index.lines[first:last] for nth in self._until(index.steps[step_id])}
        assert self.run is not None
        return story(self.run, Events(index, sorted(numbers)), self.owners, self._request)

    def _request(self, request: str) -> Request | None:
        numbers = self._until(self._index.requests.get(request, ()))
        return cast(Request, self._index.event(numbers[-1])) if numbers else None
