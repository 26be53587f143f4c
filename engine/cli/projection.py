"""`stepfold projection …`: the tables that follow the log, and how far they are. Also reads them for `run list`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..client import Client
from ..errors import ConfigError
from .output import Format, OutputOption, Status, print_rows, remark, table
from .problems import Exit, Problem
from .target import AppOption, UrlOption, check_reachable, client_of, import_from_here, run_async

if TYPE_CHECKING:
    from stepfold.projections import Lag, Projection, ProjectionRunner

app = typer.Typer(no_args_is_help=True, help="Rebuild projections, and see how far they are.")

RUNS = "stepfold-runs"

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help="Where the projections are (SQLAlchemy URL). Without it: a SQLite file beside the log."
    ),
]


def projection_of(name: str) -> Projection:
    """`stepfold-runs`, or the user's own as `module:Class`. Raises Problem."""
    from stepfold.projections import Projection, RunsProjection

    if name == RUNS:
        return RunsProjection()
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise Problem(f"there is no projection {name!r}: name {RUNS}, or yours as module:Class", Exit.NOT_FOUND)
    found = getattr(import_from_here(module_name), attribute, None)
    if isinstance(found, type) and issubclass(found, Projection):
        found = found()
    if not isinstance(found, Projection):
        raise Problem(f"{name} is no stepfold.projections.Projection")
    return found


@asynccontextmanager
async def running(
    client: Client, projections: Sequence[Projection], database: str | None, status: Status
) -> AsyncGenerator[ProjectionRunner]:
    """A runner of these projections, and what it does in the status line. Raises Problem, LogUnavailable, ProjectionFailed."""
    from stepfold.projections import ProjectionRunner

    check_reachable(client, may_create=False)
    behind: dict[tuple[str, int], int] = {}

    def tell(lag: Lag) -> None:
        behind[lag.projection, lag.partition] = lag.behind
        status.say(f"reading the log: {sum(behind.values()):,} records to go")

    runner = ProjectionRunner(client, projections, database=database, on_progress=tell)
    try:
        await runner.__aenter__()
    except ConfigError as error:
        raise Problem(str(error), Exit.LOG) from None
    try:
        yield runner
    finally:
        await runner.__aexit__(None, None, None)


@app.command()
def rebuild(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="PROJECTION", help=f"{RUNS} (the default), or yours as module:Class.")
    ] = None,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Empty a projection's tables and apply the whole log anew."""
    client = client_of(app, url)
    projections = [projection_of(name) for name in names or [RUNS]]

    async def go() -> None:
        with Status() as status:
            async with running(client, projections, database, status) as runner:
                await runner.rebuild()
        remark(f"{', '.join(projection.name for projection in projections)} rebuilt")

    run_async(go())


@app.command()
def lag(
    database: DatabaseOption = None, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE
) -> None:
    """How far the projections of this log are: position and end of each partition. Brings nothing up to date."""
    client = client_of(app, url)

    async def go() -> list[Lag]:
        with Status() as status:
            async with running(client, [], database, status) as runner:
                return await runner.lag()

    lags = run_async(go())
    made = table("projection", "partition", "position", "end", "behind", right=("partition", "position", "end", "behind"))
    for one in lags:
        made.add_row(one.projection, str(one.partition), f"{one.position:,}", f"{one.end:,}", f"{one.behind:,}")
    rows = [one._asdict() | {"behind": one.behind} for one in lags]
    print_rows(output, rows, made, nothing=f"no projection of {client.log.name} has been built there yet")
