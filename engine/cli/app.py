"""`stepfold`, the command. Only declarations and what is cheap to import stands here and in the modules of its groups."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import typer

from ..errors import StepfoldError
from . import inbox, projection, run, topics
from .demo import demo
from .dev import dev
from .problems import Exit, Problem, code_of
from .worker import worker

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Durable workflows on an append-only log: Kafka, SQLite or memory.",
    epilog="Exit codes: 0 done; 1 done, and the answer is no; 2 not understood; 3 not found; 4 the log cannot be used.",
)
app.command()(demo)
app.command()(dev)
app.command()(worker)
app.add_typer(run.app, name="run")
app.add_typer(topics.app, name="topics")
app.add_typer(inbox.app, name="inbox")
app.add_typer(projection.app, name="projection")


def main() -> NoReturn:
    """Run the command line and exit."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this: what would be said there goes nowhere
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ✔ gets a question mark
    try:
        code: object = app(prog_name="stepfold", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _unread()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Click takes it for a failure
            _unread()
        raise
    except Problem as error:
        _fail(str(error), error.code)
    except StepfoldError as error:
        _fail(str(error), code_of(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        usage = _usage_problem(error)
        if usage is None:
            raise
        _fail(usage, Exit.USAGE)
    sys.exit(code if isinstance(code, int) else Exit.OK)


def _unread() -> NoReturn:
    """End as what SIGPIPE kills: whoever read stdout has gone, as `head` does. Python's own last flush goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(Exit.UNREAD)


def _usage_problem(error: Exception) -> str | None:
    """What is wrong with the command line, if that is what the error is about.

    Typer brings a copy of Click or needs Click itself, by its version, so the class has no name that holds for both.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return "name a command"  # its help has been printed
    say: Callable[[], str] | None = getattr(error, "format_message", None)
    if say is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "stepfold"
    return f"{say().rstrip('.')} (see {command} --help)"


def _fail(message: str, code: Exit) -> NoReturn:
    sys.stdout.flush()  # where both go to one file, in the order in which they were said
    print(f"stepfold: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
