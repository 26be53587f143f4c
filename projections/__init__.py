"""Read models that are derived from the log: tables, lists of runs, exports.

    base       Projection: tables, and how an accepted event changes them
    feed       one projection over one partition, exactly once: positions, transactions, the fold's state in the database
    kept       that state, and the positions
    runner     ProjectionRunner: follows the log
    reading    reads the tables, outside the projections' transactions
    runs       the runs, one row each: list, filter, search (`texts`: the search index)
    selection  which runs an action on many runs would ask
    actions    requests: who asked for what, and why
    steps      operations, one row each; groups of errors; counts by minute
    bulk       many rows with one statement
    panels     Number, Chart, TableView: the parts of a projection's dashboard
    audit      a run's history as a chained file: export, verify, replay

The engine does not import this package.
"""

from .actions import ActionFilter, ActionRow, ActionsProjection, list_actions
from .base import Batch, Projection, RunChange, RunSoFar
from .feed import default_database
from .panels import Cell, Chart, Number, Panel, PanelRows, TableView, read_panels
from .runner import Lag, ProjectionRunner, positions
from .runs import Counted, RunFilter, RunRow, RunsProjection, count_runs, count_some, list_runs, states_of
from .selection import Selection, select_ids, select_runs, snapshot
from .steps import ErrorGroup, Minute, StepRow, StepsProjection, list_errors, list_minutes, list_steps

__all__ = [
    "ActionFilter",
    "ActionRow",
    "ActionsProjection",
    "Batch",
    "Cell",
    "Chart",
    "Counted",
    "ErrorGroup",
    "Lag",
    "Minute",
    "Number",
    "Panel",
    "PanelRows",
    "Projection",
    "ProjectionRunner",
    "RunChange",
    "RunFilter",
    "RunRow",
    "RunSoFar",
    "RunsProjection",
    "Selection",
    "StepRow",
    "StepsProjection",
    "TableView",
    "count_runs",
    "count_some",
    "default_database",
    "list_actions",
    "list_errors",
    "list_minutes",
    "list_runs",
    "list_steps",
    "positions",
    "read_panels",
    "select_ids",
    "select_runs",
    "snapshot",
    "states_of",
]
