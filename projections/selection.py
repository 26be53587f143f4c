"""Which runs an action on many runs would ask: those in the table of runs, and the table's position in each partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import sqlalchemy as sa

from stepfold.client.status import State

from .runner import positions
from .runs import RunFilter, RunsProjection, count_states, list_run_ids, states_of

SAMPLE = 10


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected runs. `states`: how many are in each state; `unknown`: ids that the table does not have; `sample`: the first
    runs, with their states; `position`: `partition:offset` below which the table has all records."""

    states: dict[State, int]
    unknown: list[str]
    sample: Sequence[tuple[str, State]]
    position: list[str]

    @property
    def count(self) -> int:
        """The number of runs, with the unknown ones."""
        return sum(self.states.values()) + len(self.unknown)


def select_runs(connection: sa.Connection, **filters: Unpack[RunFilter]) -> Selection:
    """The runs that fulfil all conditions, without those of stepfold's own workflows."""
    position, ids = _position(connection), list_run_ids(connection, limit=SAMPLE, **filters)
    return Selection(count_states(connection, **filters), [], _in_states(connection, ids), position)


def select_ids(connection: sa.Connection, run_ids: Sequence[str]) -> Selection:
    """The runs with these ids."""
    position, states = _position(connection), states_of(connection, run_ids)
    unknown = [run_id for run_id in run_ids if run_id not in states]
    sample: list[tuple[str, State]] = [(run_id, states[run_id]) for run_id in run_ids if run_id in states]
    return Selection(dict(Counter(states.values())), unknown, sample[:SAMPLE], position)


def snapshot(connection: sa.Connection, limit: int, **filters: Unpack[RunFilter]) -> tuple[list[str], list[str]]:
    """The ids of up to `limit` runs that fulfil all conditions, the newest first, and the table's position as
    `partition:offset`."""
    position = _position(connection)
    return list_run_ids(connection, limit=limit, **filters), position


def _in_states(connection: sa.Connection, ids: Sequence[str]) -> list[tuple[str, State]]:
    states = states_of(connection, ids)
    return [(run_id, states[run_id]) for run_id in ids]


def _position(connection: sa.Connection) -> list[str]:
    """The table's position. Read it before the rows, so that the rows are never older than the position."""
    return [f"{partition}:{position}" for partition, position in positions(connection, RunsProjection.name).items()]
