"""`stepfold run …`: one run, or a list of them."""

from __future__ import annotations

import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from ..client import Client
from ..errors import ErrorInfo, WorkflowCancelled, WorkflowFailed, WorkflowUnknown
from ..fold import RunState
from ..requests import checked_run_id
from .follow import follow, look
from .output import Format, OutputOption, Status, event_json, print_jsonl, print_object, print_rows, remark
from .picture import event_line, history_table, run_picture, status_json, steps_json, waiting_line
from .problems import Problem
from .target import AppOption, UrlOption, client_of, connected, run_async

app = typer.Typer(no_args_is_help=True, help="Start runs, look at them, signal and cancel them.")

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", show_default=False)]
Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="JSON", help="JSON, or @file, or - for stdin. Without it: null.")
]


def json_of(data: str | None) -> Any:
    """The value that `--data` means. Raises Problem."""
    where = "--data"
    text: str | bytes | None = data
    if data is None:
        return None
    if data == "-":
        where, text = "stdin", sys.stdin.buffer.read()
    elif data.startswith("@"):
        where = data[1:]
        try:
            text = Path(where).read_bytes()
        except OSError as error:
            raise Problem(f"--data {data}: {error.strerror or error}") from None
    assert text is not None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem(f"{where} is not JSON: {error}. A text needs its quotes: --data '\"text\"'") from None


@app.command()
def start(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's id.", show_default=False)],
    data: Data = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="The run's id. The same id and data again give the same run.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end, print the result, and exit with 1 if there is none.")
    ] = False,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start a run; prints its id. It is durable then, whether or not a worker is there.

    With [bold]--app[/] the data are checked against the workflow's model first; without it, when a worker takes the run.
    """
    value = json_of(data)
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client, may_create=True):
            if app is not None and client.registry.find(workflow, None) is None:
                known = ", ".join(sorted({registered.id for registered in client.registry}))
                raise WorkflowUnknown(f"{app} has no workflow {workflow!r}; it has {known or 'none'}")
            run = await client.start_workflow(workflow, value, run_id=run_id)
            if wait:
                ended = await _watch(client, run.id)
                print_object(output, status_json(ended, None), Text(orjson.dumps(ended.result).decode()))
            elif output is Format.TABLE:
                print(run.id)
                if sys.stdout.isatty():
                    remark(f"follow it: stepfold run watch {run.id}")
            else:
                sight = await look(client.log, run.id)
                print_object(output, status_json(sight.run, sight.owner), "")

    run_async(go())


@app.command()
def show(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Where a run stands: what it waits for, its steps with their attempts, how it ended."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            sight = await look(client.log, checked_run_id(run_id))
            value = status_json(sight.run, sight.owner) | {"steps": steps_json(sight.run, sight.events)}
            print_object(output, value, run_picture(*sight, now_ms=client.log.now()))

    run_async(go())


@app.command()
def history(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """All events of a run, in the order of the log."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            _, events, _ = await look(client.log, checked_run_id(run_id))
            print_rows(output, [event_json(event) for event in events], history_table(events))

    run_async(go())


@app.command()
def watch(run_id: RunId, app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Follow a run until it ends, beginning with what it has done so far. Exits with 1 unless it completes."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            await _watch(client, checked_run_id(run_id), output)

    run_async(go())


async def _watch(client: Client, run_id: str, output: Format | None = None) -> RunState:
    """Follow a run to its end, and print its events in the form asked for (None: not at all).

    Raises WorkflowFailed and WorkflowCancelled.
    """
    status = Status()
    printed = 0
    run: RunState | None = None
    with status:
        async with aclosing(follow(client.log, run_id)) as all_news:
            async for event, run, owner in all_news:
                status.say(waiting_line(run, owner))
                if event is None:
                    continue
                if output is Format.TABLE:
                    status.print(event_line(event, run.started_at))
                elif output is Format.JSONL:
                    print_jsonl([event_json(event)])
                elif output is Format.JSON:
                    print("," if printed else "[", orjson.dumps(event_json(event)).decode(), sep="\n", flush=True)
                printed += 1
    if output is Format.JSON:
        print("]")
    assert run is not None
    if run.phase == "cancelled":
        raise WorkflowCancelled(run.id, run.reason)
    if run.phase != "completed":
        raise WorkflowFailed(run.id, ErrorInfo.from_json(run.error))
    return run


@app.command()
def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(metavar="SIGNAL", help="What the run waits for by this name.", show_default=False)],
    data: Data = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Send a run a signal; kept until the run waits for it."""
    value = json_of(data)
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            try:
                await client.run(run_id).signal(name, value)
            except ValueError as error:
                raise Problem(str(error)) from None
            remark(f"signal {name!r} is in the history of {run_id}")

    run_async(go())


@app.command()
def cancel(
    run_id: RunId,
    reason: Annotated[str | None, typer.Option("--reason", help="Kept in the history.")] = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Ask a run to end. Its code may clean up first; `run watch` shows when it has ended."""
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            await client.run(run_id).cancel(reason)
            remark(f"{run_id} was asked to end")

    run_async(go())
