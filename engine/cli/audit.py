"""`stepfold run export|verify|replay`: export a history with hashes, verify an export, and replay it with today's code."""

from __future__ import annotations

import contextlib
import io
import linecache
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.console import Group, RenderableType

from ..client.requests import checked_run_id
from ..client.story import line_json
from ..values.text import shown_json
from .output import Format, OutputOption, Text, print_object, remark
from .picture import operations_table
from .problems import Exit, Problem
from .target import AppOption, UrlOption, client_of, connected, load, run_async

if TYPE_CHECKING:
    from stepfold.projections.audit import Verification

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", show_default=False)]
File = Annotated[
    str, typer.Argument(metavar="FILE", help="A file that [bold]run export[/] wrote; - for stdin.", show_default=False)
]


def export(
    run_id: RunId,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="The file to write; without it, stdout.")] = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Write a run's history as JSON lines, each with the SHA-256 of itself and of the line before."""
    from stepfold.projections.audit import export_run

    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            written = await export_run(client.log, checked_run_id(run_id), file or seen)
        if file is None:
            _to_stdout(seen.getvalue())
        remark(f"{written.records} records of {run_id}; the head of the chain is {written.head}")

    seen = io.BytesIO()
    try:
        run_async(go())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"{file or 'the standard output'} cannot be written: {error.strerror or error}", Exit.LOG) from None


def _to_stdout(lines: bytes) -> None:
    """Write an export to stdout.

    A terminal gets invisible characters escaped: another spelling of the same JSON, with other hashes.
    """
    if sys.stdout.isatty():
        sys.stdout.write(shown_json(lines.decode()))
    else:
        sys.stdout.buffer.write(lines)
    sys.stdout.flush()


def verify(file: File, output: OutputOption = Format.TABLE) -> None:
    """Check that an exported history is as it was written, and name each line that is not. Exits with 1 if one is not.

    Needs no log. A file that was forged as a whole has another head: compare it with a head that was kept elsewhere.
    """
    from stepfold.projections.audit import verify as verified

    with _opened(file) as opened:
        found = verified(opened)
    value = {
        "ok": found.ok,
        "run_id": found.run_id,
        "records": found.records,
        "head": found.head,
        "findings": [finding._asdict() for finding in found.findings],
        "steps": [] if found.history is None else list(map(line_json, found.history.story())),
    }
    print_object(output, value, Group(*_verified(found)))
    if not found.ok:
        is_export = found.findings[0].problem != "unreadable"
        raise Problem(f"{file} was changed after it was exported" if is_export else f"{file} is not an export", Exit.NO)


def _verified(found: Verification) -> Iterator[RenderableType]:
    """Print the findings; without findings, the run's operations."""
    for finding in found.findings:
        yield Text.assemble(("✗ ", "red"), finding.message)
    if found.history is None or found.history.run is None:
        return
    run, lines = found.history.run, found.history.story()
    yield Text.assemble(
        ("✔ ", "green"), f"{found.records} records of run {found.run_id} are as they were written; head {found.head}"
    )
    if lines:
        yield ""
        yield operations_table(lines, first_ms=run.started_at, now_ms=run.now)


def replay(
    file: File,
    app: Annotated[
        str, typer.Option("--app", "-a", metavar="APP", help="The client whose workflows are replayed: [bold]module:client[/].")
    ],
    output: OutputOption = Format.TABLE,
) -> None:
    """Run today's code over an exported history and check that it still does the same. Exits with 1 if not, and says where.

    Executes no step and writes nothing.
    """
    from stepfold.projections.audit import replay as replayed

    client = load(app)
    with _opened(file) as opened:
        found = replayed(opened, client)
    value = {
        "outcome": found.outcome,
        "run_id": found.run_id,
        "message": found.message,
        "expected": found.expected,
        "found": found.found,
        "source": list(found.source),
        "line": found.line,
    }
    mark = ("✔ ", "green") if found.ok else ("✗ ", "red")
    parts: list[RenderableType] = [Text.assemble(mark, found.message)]
    for place in found.source:
        path, _, number = place.rpartition(":")
        code = linecache.getline(path, int(number)).strip() if number.isdecimal() else ""
        parts.append(Text.assemble(f"  {place}", (f"    {code}" if code else "", "bold")))
    if found.line is not None:
        parts.append(Text(f"  line {found.line} of {file}", "dim"))
    print_object(output, value, Group(*parts))
    if found.outcome == "unknown":
        raise Problem(f"{app} cannot replay {file}", Exit.NOT_FOUND)
    if found.outcome == "damaged":
        raise Problem(f"{file} is not an export, or was changed after it was exported: nothing was replayed", Exit.NO)
    if not found.ok:
        raise Problem(f"today's code does not agree with {file}", Exit.NO)


@contextlib.contextmanager
def _opened(file: str) -> Generator[BinaryIO]:
    """Open a file to read, or stdin. Raises Problem."""
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115  # errors while reading are not about the file's name
    except (OSError, ValueError) as error:
        raise Problem(f"{file} cannot be read: {error.strerror if isinstance(error, OSError) else error}") from None
    with opened:
        yield opened
