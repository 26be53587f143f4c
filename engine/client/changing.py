"""The changes of one run for those who follow it: values that its code publishes, and its state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, NamedTuple

from ..log import CLAIM_KEY, Log, Record
from ..operations import publish
from ..values.codec import own
from .status import State, run_state
from .tail import NEWS_S, READ_RECORDS
from .view import RunView, state_for


class Published(NamedTuple):
    """The code of the run has published `value` under `key`. `position`: the offset behind the record in the run's partition."""

    key: str
    value: Any
    position: int


class StateChanged(NamedTuple):
    """The state of the run is another one, as `RunStatus.state` has it. `position`: as for `Published`."""

    state: State
    position: int


class _Followed(RunView):
    """A run whose state was told."""

    __slots__ = ("_told",)

    def __init__(self, run_id: str, log: Log) -> None:
        super().__init__(run_id, state_for(log, run_id))
        self._told: State | None = None

    def changes(self, records: Iterable[Record]) -> list[Published | StateChanged]:
        """Fold records of the run and the claims among them. Earlier runs of this id ended long ago: they are no news."""
        changes: list[Published | StateChanged] = []
        for record in records:
            if record.key not in (self.run_id, CLAIM_KEY):
                continue
            before, change, position = self.run, self.take(record), record.offset + 1
            if change is None or change.early is not None or self.run is None:
                continue
            if self.run is not before:
                changes, self._told = [], None
            told = None if change.run is None else publish.value_of(change.event)
            if told is not None:
                changes.append(Published(told[0], own(told[1]), position))
            state = run_state(self.run, self.owner is not None)
            if state != self._told:
                self._told = state
                changes.append(StateChanged(state, position))
        return changes


async def changes(log: Log, run_id: str, after: int) -> AsyncGenerator[Published | StateChanged]:
    """Yield the changes of the run behind a position, as they come; stops with the end of the run.

    Raises LogUnavailable, and RunNotFound.
    """
    run = _Followed(run_id, log)
    partition = run.state.partition
    _, end = await log.bounds(partition)
    past = run.changes(await log.find(partition, (run_id, CLAIM_KEY)))
    run.found(log)
    for change in past:
        if change.position > after:
            yield change
    reader = log.reader(partition, end)
    try:
        while not run.found(log).ended:
            for change in run.changes(await reader.read(READ_RECORDS, NEWS_S)):
                if change.position > after:
                    yield change
    finally:
        await reader.close()
