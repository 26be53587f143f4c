"""The command `stepfold`. This module and those of its groups hold declarations, and import only modules that load fast."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..worker.stopping import end_process_soon
from . import callback, inbox, projection, run, tokens, topics
from .demo import demo
from .dev import dev
from .output import complain, say
from .problems import Exit, Problem, problem_of
from .serve import serve
from .worker import worker

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Durable workflows on an append-only log: Kafka, SQLite or memory.",
    epilog="Exit codes: 0 done; 1 done, and the answer is no; 2 not understood; 3 not found; 4 the log cannot be used; "
    "5 a step has ended the worker.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"stepfold {metadata.version('stepfold')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version.")] = False,
) -> None:
    pass


app.command()(demo)
app.command()(dev)
app.command()(worker)
app.command()(serve)
app.add_typer(run.app, name="run")
app.add_typer(callback.app, name="callback")
app.add_typer(topics.app, name="topics")
app.add_typer(inbox.app, name="inbox")
app.add_typer(projection.app, name="projection")
app.add_typer(tokens.app, name="token")


def main() -> NoReturn:
    """Run the command line and end the process, even if the user's code leaves threads or exit handlers that never end."""
    try:
        command()
    except SystemExit as end:
        end_process_soon(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException:
        end_process_soon(Exit.FAULT)
        raise


def command() -> NoReturn:
    """Run the command line and exit."""
    _check_surroundings()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the parent process: output goes nowhere
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that does not know ✔ gets a question mark
    try:
        _check_arguments()
        code: object = app(prog_name="stepfold", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Click reads this error as a failure
            _unread()
        raise
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # `problem_of` knows what each error means
        problem = problem_of(error)
        _fail(str(problem), problem.code)
    sys.exit(code if isinstance(code, int) else Exit.OK)


def _check_surroundings() -> None:
    """Remove terminal sizes from the environment that are not positive numbers: rich and Typer do not check them."""
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        width = os.environ.get(name)
        if width is not None and not (width.isascii() and width.isdecimal() and 0 < int(width[:6]) < 100_000):
            del os.environ[name]


def _check_arguments() -> None:
    """Raises Problem for arguments that cannot be written into a log, a database or JSON."""
    sys.argv[1:] = map(_text_of, sys.argv[1:])
    if "STEPFOLD_URL" in os.environ:
        _text_of(os.environ["STEPFOLD_URL"])


def _text_of(argument: str) -> str:
    """The argument as text: UTF-8, even if the locale of the environment has another encoding. Raises Problem."""
    try:
        return os.fsencode(argument).decode() if re.search("[\ud800-\udfff]", argument) else argument
    except UnicodeError:
        raise Problem(f"'{argument}' is not text: neither UTF-8 nor {sys.getfilesystemencoding()}") from None


def _unread() -> NoReturn:
    """Exit like a process that SIGPIPE kills, because the reader of stdout has gone (such as `head`). Discards Python's last
    flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(Exit.UNREAD)


def _fail(message: str, code: Exit) -> NoReturn:
    try:
        if message:
            complain(f"stepfold: {message}")
    except OSError:  # nobody reads stderr; without this, Python's last flush fails and exits with another code
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    sys.exit(code)


if __name__ == "__main__":
    main()
