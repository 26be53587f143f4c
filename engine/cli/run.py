"""`stepfold run …`: commands for one run, or a list of runs."""

from __future__ import annotations

import contextlib
import sys
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import orjson
import typer

from ..client.client import Client
from ..client.requests import checked_run_id
from ..client.status import status_json, waiting_line
from ..client.story import askers, line_json
from ..client.tail import follow, read_run
from ..core.state import RunState
from ..errors import ErrorInfo, WorkflowCancelled, WorkflowFailed
from ..operations.publish import published_by
from ..values import times
from ..values.codec import Written
from ..values.digits import loads, raw
from ..values.words import iso, short, span
from .audit import RunId, export, replay, verify
from .cancel import cancel
from .output import (
    Format,
    OutputOption,
    Status,
    Text,
    event_json,
    json_text,
    local,
    print_jsonl,
    print_object,
    print_rows,
    remark,
    say,
    table,
    zone,
)
from .output import show as draw
from .picture import (
    STATE_STYLE,
    WINDOW,
    chosen,
    event_line,
    history_table,
    run_picture,
    state_text,
)
from .problems import Exit, Problem
from .projection import DatabaseOption, running
from .selecting import SearchOption, SinceOption, StateOption, WorkflowOption, filters_of
from .target import AppOption, By, UrlOption, Why, asker, client_of, connected, run_async

if TYPE_CHECKING:
    from stepfold.projections import RunRow

app = typer.Typer(no_args_is_help=True, help="Start runs, show them, signal and cancel them.")

_DATA_BYTES = 16 * 1024 * 1024
"""The most bytes to read. A payload is far smaller; the rest is room for white space in its JSON."""
Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="JSON", help="JSON, or @file, or - for stdin. Without it: null.")
]


def json_of(data: str | None, option: str = "--data") -> Written | None:
    """The value of an option with data. Raises Problem."""
    where = option
    text: str | bytes | None = data
    if data is None:
        return None
    if data == "-":
        where, text = "stdin", sys.stdin.buffer.read(_DATA_BYTES + 1)
    elif data.startswith("@"):
        where = data[1:]
        try:
            with Path(where).open("rb") as file:
                text = file.read(_DATA_BYTES + 1)
        except (OSError, ValueError) as error:
            raise Problem(f"{option} {data}: {error.strerror if isinstance(error, OSError) else error}") from None
    assert text is not None
    if len(text) > _DATA_BYTES:
        raise Problem(f"{where} is larger than {_DATA_BYTES:,} bytes; no payload can be that large")
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem(f"{where} is not JSON: {error}. A text needs its quotes: {option} '\"text\"'") from None
    return Written(text.encode() if isinstance(text, str) else text)  # keeps all digits of numbers


@app.command()
def start(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's id.", show_default=False)],
    data: Data = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", metavar="ID", help="The run's id. The same id and data again give the same run.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end, print the result, and exit with 1 if there is none.")
    ] = False,
    signal_name: Annotated[
        str | None, typer.Option("--signal", metavar="NAME", help="Send the run this signal, also if it exists already.")
    ] = None,
    signal_data: Annotated[
        str | None, typer.Option("--signal-data", metavar="JSON", help="The data of --signal: JSON, or @file. Without it: null.")
    ] = None,
    by: By = None,
    why: Why = None,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start a run and print its id. The run is durable then, whether or not a worker is there.

    With [bold]--app[/] the command checks the data against the workflow's model first; without it, the worker checks them.
    """
    if signal_name is None and signal_data is not None:
        raise Problem("--signal-data needs --signal NAME")
    value, signal_value = json_of(data), json_of(signal_data, "--signal-data")
    first = None if signal_name is None else (signal_name, signal_value)
    client = client_of(app, url)
    if run_id is not None:
        checked_run_id(run_id)
    if app is not None:  # report bad input before a file is made
        registered = client.registry.find(workflow, None)
        if registered is None:
            known = ", ".join(sorted({one.id for one in client.registry}))
            raise Problem(f"{app} has no workflow {workflow!r}; it has {known or 'none'}", Exit.NOT_FOUND)
        registered.encode_input(value)

    async def go() -> None:
        async with connected(client, may_create=True):
            try:
                run = await client.start_workflow(workflow, value, run_id=run_id, signal=first, by=asker(by), why=why)
            except ValueError as error:
                raise Problem(str(error)) from None
            if wait:
                remark(run.id)
                ended = await _watch(client, run.id)
                print_object(output, status_json(ended, owned=False), Text(json_text(ended.result)))
            elif output is Format.TABLE:
                say(run.id)
                if sys.stdout.isatty():
                    remark(f"follow it: stepfold run watch {run.id}")
            else:
                view = await client.views.read(run.id)
                print_object(output, status_json(view.found(client.log), view.owner is not None), "")

    run_async(go())


@app.command("list")
def list_(
    workflow: WorkflowOption = None,
    state: StateOption = None,
    search: SearchOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="How many of the newest to show.")] = 50,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the runs, the newest first. Brings the projection [bold]stepfold-runs[/] up to date first, and reads it."""
    from stepfold.projections import RunsProjection, list_runs

    client = client_of(app, url)
    filters = filters_of(workflow, state, search, since, client.log.now())

    async def go() -> list[RunRow]:
        with Status() as status:
            async with running(client, [RunsProjection()], database, status) as runner:
                await runner.catch_up()
                return await runner.query(list_runs, limit=limit, **filters)

    rows = run_async(go())
    started = f"started ({zone()})"
    made = table(
        *("run", "workflow", "state", started, "took", "steps", ""),
        right=("took", "steps"),
        spare=("steps", "took", started, "workflow", "", "state"),
    )
    now_ms = client.log.now()
    for row in rows:
        started_ms = times.ms_of(row.started_at)
        lasted = span(max((now_ms if row.ended_at is None else times.ms_of(row.ended_at)) - started_ms, 0))
        said = "; ".join(row.waiting_on) or (row.last_error if row.state == "failed" else row.result) or ""
        note = Text(said if len(said) <= 80 else f"{said[:79]}…", "dim")
        made.add_row(row.run_id, row.workflow, state_text(row.state), local(started_ms), lasted, str(row.steps_completed), note)
    print_rows(output, [row_json(row) for row in rows], made, nothing="no such runs" if filters else "no runs yet")


def row_json(row: RunRow) -> dict[str, Any]:
    """A row as JSON. `input`, `result`: the beginning of their JSON, as text."""
    found = asdict(row)
    for name in ("started_at", "updated_at", "ended_at", "waiting_until"):
        found[name] = None if found[name] is None else iso(times.ms_of(found[name]))
    return found


@app.command()
def show(
    run_id: RunId,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            min=1,
            max=1_000_000,
            help=f"How many of the last steps to show ({WINDOW}; JSON: all); open ones always.",
        ),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only steps with a failed or lost attempt.")] = False,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show the state of a run: what it waits for, its steps with their attempts, how it ended."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            history = await read_run(client.log, checked_run_id(run_id))
            run, owner, lines = history.found(client.log), history.owner, history.story()
            if output is Format.TABLE:
                drawn = chosen(lines, limit or WINDOW, failed=failed)
                draw(run_picture(run, drawn, owner, now_ms=client.log.now(), total=len(lines), asked=askers(history.events)))
            else:
                steps = [line_json(line) for line in chosen(lines, limit, failed=failed)]
                print_object(output, status_json(run, owner is not None) | askers(history.events) | {"steps": steps}, "")

    run_async(go())


@app.command()
def history(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show all events of a run, in the order of the log."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            history = await read_run(client.log, checked_run_id(run_id))
            history.found(client.log)
            print_rows(output, [event_json(event) for event in history.events], history_table(history.events))

    run_async(go())


@app.command()
def children(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """List the runs that a run has started, as far as its own history knows them."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            found = await client.run(checked_run_id(run_id)).children()
        made = table("child", "workflow", "step", "state")
        for child in found:
            made.add_row(child.id, child.workflow, child.step_id, Text(child.state, STATE_STYLE.get(child.state, "")))
        rows = [{name: getattr(child, name) for name in ("id", "workflow", "step_id", "state", "detached")} for child in found]
        print_rows(output, rows, made, nothing=f"run {run_id} has started no runs")

    run_async(go())


@app.command()
def published(
    run_id: RunId,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Show the last value of this key alone, as JSON.")] = None,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show the last values that a run has published. With a key that has none the exit code is 3."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            view = await client.views.read(checked_run_id(run_id))
            values = published_by(view.found(client.log))
        if key is None:
            now_ms = client.log.now()
            made = table("key", "value", "number", "when", right=("number",))
            for name, last in values.items():
                ago = f"{span(max(now_ms - last.at, 0))} ago"
                made.add_row(name, short(last.value, 200), f"{last.seq:,}", Text(ago, "dim"))
            rows = [{"key": name, "value": last.value, "seq": last.seq, "at": iso(last.at)} for name, last in values.items()]
            print_rows(output, rows, made, nothing=f"run {run_id} has published nothing")
        elif key in values:
            say(json_text(values[key].value))
        else:
            raise Problem(f"run {run_id} has published nothing under {key!r}", Exit.NOT_FOUND)

    run_async(go())


@app.command()
def query(
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The query's name.", show_default=False)],
    app: Annotated[
        str, typer.Option("--app", "-a", metavar="APP", help="The client that has the run's workflow: [bold]module:client[/].")
    ],
    arguments: Annotated[
        str | None,
        typer.Argument(metavar="[ARGUMENTS]", help="A JSON list, or a JSON object by name; or @file, or - for stdin."),
    ] = None,
    until: Annotated[
        int | None, typer.Option("--until", metavar="OFFSET", min=0, help="Answer for the run as it was after this record.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """Answer a query of a run's workflow, as JSON: replays the run's code in this process.

    Executes no step, needs no worker and writes nothing.
    """
    args, kwargs = _arguments(json_of(arguments, "ARGUMENTS"))
    client = client_of(app, url)

    async def go() -> bytes:
        async with connected(client):
            with contextlib.redirect_stdout(sys.stderr):  # of the code that is replayed
                return (await client.inspect(run_id, until=until).answer(name, args, kwargs)).json

    say(json_text(orjson.Fragment(run_async(go()))))


def _arguments(data: Written | None) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a query, by position and by name. Raises Problem."""
    value: object = [] if data is None else loads(data.json)
    if isinstance(value, list):
        return [Written(raw(one)) for one in cast("list[Any]", value)], {}
    if isinstance(value, dict):
        return [], {name: Written(raw(one)) for name, one in cast("dict[str, Any]", value).items()}
    raise Problem("ARGUMENTS must be a JSON list, or a JSON object by name: '[10]' or '{\"limit\": 10}'")


@app.command()
def watch(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Follow a run until it ends, beginning with what it has done so far. Exits with 1 unless it completes."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            await _watch(client, checked_run_id(run_id), output)

    run_async(go())


async def _watch(client: Client, run_id: str, output: Format | None = None) -> RunState:
    """Follow a run to its end, and print its events in the form `output`. None: print on stderr what the run waits for.

    Raises WorkflowFailed and WorkflowCancelled.
    """
    status = Status()
    printed = 0
    run: RunState | None = None
    with status:
        async with aclosing(follow(client.log, run_id)) as all_news:
            async for event, seen, owner, past in all_news:
                run = seen.found(client.log)
                words = waiting_line(run, owner is not None)
                if output is None and not past and not run.ended:
                    status.note(words)
                status.say(words)
                if event is None or output is None:
                    continue
                if output is Format.TABLE:
                    status.print(event_line(event, run.started_at))
                elif output is Format.JSONL:
                    print_jsonl([event_json(event)])
                elif output is Format.JSON:
                    say("," if printed else "[")
                    print_jsonl([event_json(event)])
                printed += 1
    if output is Format.JSON:
        say("]")
    assert run is not None
    if run.phase == "cancelled":
        raise WorkflowCancelled(run.id, run.reason)
    if run.phase != "completed":
        raise WorkflowFailed(run.id, ErrorInfo.from_json(run.error))
    return run


@app.command()
def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="SIGNAL", help="The signal's name.", show_default=False)],
    data: Data = None,
    by: By = None,
    why: Why = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Send a signal to a run. The log keeps it until the run waits for it."""
    value = json_of(data)
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            try:
                await client.run(run_id).signal(name, value, by=asker(by), why=why)
            except ValueError as error:
                raise Problem(str(error)) from None
            remark(f"signal {name!r} is in the history of {run_id}")

    run_async(go())


for _command in (cancel, export, verify, replay):
    app.command()(_command)
