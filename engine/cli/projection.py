"""`stepfold projection …`: keep tables up to date with the log, rebuild them, and show their lag. `run list` uses this too."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..client.client import Client
from ..errors import ConfigError, ProjectionFailed
from .output import Format, OutputOption, Status, print_rows, remark, table
from .problems import Exit, Problem
from .target import (
    AppOption,
    UrlOption,
    client_of,
    connected,
    import_from_here,
    place_of,
    run_async,
    until_first,
    users_code,
)
from .worker import log_to_stderr

if TYPE_CHECKING:
    from stepfold.projections import Lag, Projection, ProjectionRunner

app = typer.Typer(no_args_is_help=True, help="Keep projections up to date, rebuild them, show how far they are.")

RUNS = "stepfold-runs"
PATIENCE = "10s"
"""How long to try to read a log or a database: as long as a client waits."""

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database of the projections (SQLAlchemy URL). Without it: a SQLite file beside the log.",
    ),
]

ProjectionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--projection",
        metavar="MODULE:CLASS",
        help="A projection of your own, which the server keeps up to date; its `pages` are a dashboard. Can be repeated.",
    ),
]


def yours(names: Sequence[str] | None) -> list[Projection]:
    """The user's own projections of `--projection`. Raises Problem."""
    from stepfold.projections.feed import check

    found = [projection_of(name) for name in names or ()]
    try:
        check(found)
    except ConfigError as error:
        raise Problem(str(error)) from None
    return found


def projection_of(name: str) -> Projection:
    """`stepfold-runs`, or the user's own as `module:Class`. Raises Problem."""
    from stepfold.projections import Projection, RunsProjection

    if name == RUNS:
        return RunsProjection()
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise Problem(f"there is no projection {name!r}: name {RUNS}, or yours as module:Class", Exit.NOT_FOUND)
    module = import_from_here(module_name)
    with users_code(f"making {name}"):
        found = getattr(module, attribute, None)
        if isinstance(found, type) and issubclass(found, Projection):
            found = found()
    if not isinstance(found, Projection):
        raise Problem(f"{name} is not a stepfold.projections.Projection")
    return found


@asynccontextmanager
async def running(
    client: Client, projections: Sequence[Projection], database: str | None, status: Status
) -> AsyncGenerator[ProjectionRunner]:
    """Run these projections during the block, and show their progress. Raises Problem, LogUnavailable and ProjectionFailed."""
    from sqlalchemy.exc import SQLAlchemyError

    from stepfold.projections import ProjectionRunner
    from stepfold.projections.feed import brief

    behind: dict[tuple[str, int], int] = {}

    def tell(lag: Lag) -> None:
        behind[lag.projection, lag.partition] = lag.behind
        status.say(f"reading the log: {sum(behind.values()):,} records to go")

    async with connected(client):
        runner = ProjectionRunner(client, projections, database=database, on_progress=tell, patience=PATIENCE)
        try:
            await runner.__aenter__()
        except ConfigError as error:
            hint = "" if database is not None else ". --database names another one"
            raise Problem(f"{error}{hint}", Exit.LOG) from None
        try:
            yield runner
        except ProjectionFailed as error:
            raise Problem(f"{error}{place_of(error.__cause__)}", Exit.NO) from None
        except SQLAlchemyError as error:
            url = runner.engine.url.render_as_string(hide_password=True)
            raise Problem(f"the projections' database {url} does not answer: {brief(error)}", Exit.LOG) from None
        finally:
            await runner.__aexit__(None, None, None)


Names = Annotated[
    list[str] | None, typer.Argument(metavar="[PROJECTION]...", help=f"{RUNS} (the default), or yours as module:Class.")
]


@app.command("run")
def run_(names: Names = None, database: DatabaseOption = None, app: AppOption = None, url: UrlOption = None) -> None:
    """Keep projections up to date until Ctrl-C or SIGTERM; a service. Exits with 1 when one of them fails."""
    client = client_of(app, url)
    projections = [projection_of(name) for name in names or [RUNS]]
    log_to_stderr()

    async def go() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

        async def told_to_stop() -> None:
            await stop.wait()

        async with running(client, projections, database, Status()) as runner:
            remark(f"{', '.join(projection.name for projection in projections)} of {client.log.name}: up to date from now on")
            try:
                await until_first(runner.wait(), told_to_stop())
            except ProjectionFailed as error:
                raise Problem(f"projection {error.projection!r} has stopped, as was logged", Exit.NO) from None

    run_async(go())


@app.command()
def rebuild(
    names: Names = None,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Empty a projection's tables and apply the whole log again."""
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
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PROJECTION]...", help="Show only these; yours as module:Class.")
    ] = None,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show how far the projections of this log are: position and end of each partition. Does not update them."""
    client = client_of(app, url)
    wanted = {projection_of(name).name if ":" in name else name for name in names or ()}

    async def go() -> list[Lag]:
        with Status() as status:
            async with running(client, [], database, status) as runner:
                return await runner.lag()

    found = run_async(go())
    unknown = wanted - {one.projection for one in found}
    if unknown:
        built = ", ".join(sorted({one.projection for one in found})) or "none"
        raise Problem(
            f"{', '.join(sorted(unknown))} of {client.log.name} has not been built in this database, which has: {built}",
            Exit.NOT_FOUND,
        )
    lags = [one for one in found if not wanted or one.projection in wanted]
    numbers = ("partition", "position", "end", "behind")
    stopped = ["stopped"] if any(one.stopped for one in lags) else []
    made = table("projection", *numbers, *stopped, right=numbers)
    for one in lags:
        words = [one.stopped or ""] if stopped else []
        made.add_row(one.projection, str(one.partition), f"{one.position:,}", f"{one.end:,}", f"{one.behind:,}", *words)
    rows = [one._asdict() | {"behind": one.behind} for one in lags]
    print_rows(output, rows, made, nothing=f"no projection of {client.log.name} has been built there yet")
