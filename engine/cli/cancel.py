"""`stepfold run cancel`: one run, or a durable job for many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..client.bulk import ACTIONS, MOST, Wanted, job_id_of, start_job
from ..client.client import Client
from ..client.requests import Sender, checked_run_id
from .output import Format, OutputOption, Status, Text, print_object, remark, say
from .problems import Exit, Problem
from .projection import DatabaseOption, running
from .selecting import SearchOption, SinceOption, StateOption, WorkflowOption, filters_of
from .target import AppOption, By, UrlOption, Why, asker, client_of, connected, run_async

if TYPE_CHECKING:
    from stepfold.projections import RunFilter, Selection


def cancel(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="The runs, if no option chooses them.")
    ] = None,
    workflow: WorkflowOption = None,
    state: StateOption = None,
    search: SearchOption = None,
    since: SinceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which runs it would ask, and which not.")] = False,
    by: By = None,
    why: Why = None,
    reason: Annotated[str | None, typer.Option("--reason", hidden=True, help="Another name of --why.")] = None,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask runs to end. Their code may clean up first; [bold]run watch[/] shows when a run has ended.

    One run is asked at once. For several, or those that the options choose, this starts a job and prints its id: a worker carries
    the job out, and [bold]run cancel[/] of its id aborts it.
    """
    client = client_of(app, url)
    filters = filters_of(workflow, state, search, since, client.log.now())
    ids = list(dict.fromkeys(map(checked_run_id, run_ids or ())))
    if bool(ids) == bool(filters):
        raise Problem("name the runs either by their ids, or by --workflow, --state, --search and --since")
    asked = Sender(asker(by), why if why is not None else reason)

    async def one(run_id: str) -> None:
        async with connected(client):
            try:
                await client.run(run_id).cancel(asked.why, by=asked.by)
            except ValueError as error:
                raise Problem(str(error)) from None
            remark(f"{run_id} was asked to end")

    if len(ids) == 1 and not dry_run:
        run_async(one(ids[0]))
    else:
        run_async(_many(client, database, output, filters, ids, asked, dry_run=dry_run))


async def _many(
    client: Client,
    database: str | None,
    output: Format,
    filters: RunFilter,
    ids: Sequence[str],
    asked: Sender,
    *,
    dry_run: bool,
) -> None:
    from stepfold.projections import RunsProjection, select_ids, select_runs, snapshot

    with Status() as status:
        async with running(client, [RunsProjection()], database, status) as runner:
            await runner.catch_up()
            if dry_run:
                selection = await (runner.query(select_ids, ids) if ids else runner.query(select_runs, **filters))
                print_object(output, _json(selection), _words(selection))
                return
            if ids:
                position, said = (await runner.query(select_ids, ())).position, {"ids": list(ids)}
            else:
                ids, position = await runner.query(snapshot, MOST + 1, **filters)
                said = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in filters.items()}
            if not ids:
                raise Problem("no run matches", Exit.NOT_FOUND)
            if len(ids) > MOST:
                raise Problem(f"more than {MOST:,} runs match: narrow the options")
            try:
                job = await start_job(client, job_id_of(client, None), Wanted("cancel", said, asked), ids, position)
            except ValueError as error:
                raise Problem(str(error)) from None
    if output is Format.TABLE:
        say(job.id)
    else:
        print_object(output, {"id": job.id, "count": len(ids), "position": position}, "")
    remark(f"{len(ids):,} {'run' if len(ids) == 1 else 'runs'}, asked by a worker; follow it: stepfold run watch {job.id}")


def _json(selection: Selection) -> dict[str, Any]:
    may = ACTIONS["cancel"].states
    return {
        "count": selection.count,
        "would_ask": sum(count for state, count in selection.states.items() if state in may),
        "states": selection.states,
        "unknown": selection.unknown,
        "sample": [{"run_id": run_id, "state": state} for run_id, state in selection.sample],
        "position": selection.position,
    }


def _words(selection: Selection) -> Text:
    found = _json(selection)
    lines = [f"{found['would_ask']:,} of {selection.count:,} would be asked to end"]
    may = ACTIONS["cancel"].states
    lines += [f"{count:,} not, because they have ended: {state}" for state, count in selection.states.items() if state not in may]
    if selection.unknown:
        lines.append(f"{len(selection.unknown):,} not, because there is no such run")
    lines += [f"  {run_id} ({state})" for run_id, state in selection.sample]
    if selection.count - len(selection.unknown) > len(selection.sample):
        lines.append("  …")
    return Text("\n".join(lines))
