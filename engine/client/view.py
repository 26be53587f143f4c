"""One run, read from its records by the same fold as everywhere. Pure.

A run depends only on the claims and its own records. So a reader of one run folds only those, and gets the owner's result.
"""

from __future__ import annotations

from ..core.fold import Change, PartitionState, fold
from ..core.state import RunState
from ..errors import RunNotFound
from ..events import Event, parse
from ..log import Log, Record, partition_of
from ..operations.line import Line
from .story import story


class RunView:
    """The state of one run, folded from its records and the claims of its partition. If the id was used again: of the last run.

    `run`: None until a run of this id has begun; `changed_at`: the offset of the last record that changed it.
    """

    __slots__ = ("changed_at", "run", "run_id", "state")

    def __init__(self, run_id: str, state: PartitionState) -> None:
        self.run_id = run_id
        self.state = state
        self.run: RunState | None = None
        self.changed_at = -1

    @property
    def owner(self) -> str | None:
        """The worker that owns the run's partition."""
        return self.state.owner

    def found(self, log: Log) -> RunState:
        """The run. Raises RunNotFound."""
        if self.run is None:
            raise RunNotFound(self.run_id, log.name, kept=self.state.kept_for(self.run_id, log.now()))
        return self.run

    def take(self, record: Record) -> Change | None:
        """Fold a record of the run, or a claim. Returns the change, or None if the record does not count."""
        change = fold(self.state, record)
        if change is not None and change.run is not None:
            self.run, self.changed_at = change.run, record.offset
        return change


class RunHistory(RunView):
    """A run with its accepted events, the signals that came before it among them. `owners`: offset of a claim -> worker."""

    __slots__ = ("_early", "events", "owners")

    def __init__(self, run_id: str, state: PartitionState) -> None:
        super().__init__(run_id, state)
        self.events: list[Event] = []
        self.owners: dict[int, str | None] = {}
        self._early: list[Event] = []  # signals for the next run of this id

    def take(self, record: Record) -> Change | None:
        run = self.run
        change = super().take(record)
        if change is None:
            return None
        if change.run is None and change.early is None:
            self.owners[record.offset] = self.state.owner
            return change
        event = parse(change.event, record.offset, record.timestamp)
        if change.early is not None:
            self._early.append(event)
        elif change.run is run:
            self.events.append(event)
        else:  # it remembers the requests of those signals that were not forgotten meanwhile: the last ones
            assert change.run is not None
            forgotten = len(self._early) - len(change.run.requests)
            self.events = [*self._early[forgotten:], event]
            self._early = []
        return change

    def story(self) -> list[Line]:
        """The operations of the run, in the order of their first records. None before the run begins."""
        return [] if self.run is None else story(self.run, self.events, self.owners)


def state_for(log: Log, run_id: str) -> PartitionState:
    """An empty state of the run's partition."""
    return PartitionState(partition_of(run_id, log.partitions), log.partitions)
