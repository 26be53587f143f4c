"""The options that choose runs by columns of the table of runs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from ..client.status import State
from ..values import times
from ..values.duration import duration_ms
from .problems import Problem

if TYPE_CHECKING:
    from stepfold.projections import RunFilter

STATES: tuple[str, ...] = get_args(State)
_STATE_HELP = f"Only runs in one of these states: {', '.join(STATES)}."
WorkflowOption = Annotated[str | None, typer.Option("--workflow", metavar="ID", help="Only runs of this workflow.")]
StateOption = Annotated[list[str] | None, typer.Option("--state", metavar="STATE", help=_STATE_HELP)]
SearchOption = Annotated[
    str | None, typer.Option("--search", metavar="TEXT", help="Only runs with this text in id, input, result or error.")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Only runs started since then: 2h, or 2030-01-31T12:00Z.")
]


def filters_of(workflow: str | None, state: list[str] | None, search: str | None, since: str | None, now_ms: int) -> RunFilter:
    """The conditions of these options, as keywords of `list_runs`; empty without options. Raises Problem."""
    from stepfold.projections import RunFilter

    filters = RunFilter()
    for name in state or []:
        if name not in STATES:
            raise Problem(f"--state {name}: the states are {', '.join(STATES)}")
    if state:
        filters["state"] = cast("list[State]", state)
    if workflow is not None:
        filters["workflow"] = workflow
    if search is not None:
        filters["search"] = search
    if since is not None:
        filters["started_after"] = time_of(since, now_ms)
    return filters


def time_of(text: str, now_ms: int) -> datetime:
    """Reads a time, or a duration before now. Raises Problem for any other text."""
    try:
        return times.utc(now_ms - duration_ms(text))
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
        return times.utc(times.ms_of(when if when.tzinfo else when.astimezone()))
    except (ValueError, OverflowError):
        raise Problem(f"--since {text}: a duration such as 90s, 2h or 3d, or a time such as 2030-01-31T12:00Z") from None
