"""How a command that cannot do its work ends: one line on stderr and an exit code, never a traceback.

Commands raise `Problem` with an exit code, or let an error pass; `problem_of` gives every error its message and its code, and
`command` in `app.py` calls it. Exit codes, the same for every command (docs/cli.md):

    0  done
    1  done, and the answer is no: the run failed, the file was altered, the topics are wrong
    2  the command cannot be understood: an option, JSON, APP, a URL
    3  the run, workflow, query or dead letter does not exist
    4  the log, or a file, cannot be used: no answer, no such file, topics missing, no room
    5  code of a step has ended the worker
    70  a bug in stepfold
    130  interrupted (Ctrl-C, and SIGTERM in commands that must stop child processes)
    141  the reader of the output has gone
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from ..errors import (
    CallbackIdInvalid,
    ConfigError,
    ErrorInfo,
    InputInvalid,
    LogUnavailable,
    PayloadTooLarge,
    QueryUnknown,
    RunNotFound,
    StepfoldError,
    WorkflowUnknown,
)

TRACEBACK = "STEPFOLD_TRACEBACK"


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    NO = 1
    USAGE = 2
    NOT_FOUND = 3
    LOG = 4
    KILLED = 5
    FAULT = 70
    INTERRUPTED = 130
    UNREAD = 141


class Problem(Exception):
    """A message for the user: what went wrong, where, and what to do about it."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


def problem_of(error: BaseException) -> Problem:
    """The message and the exit code for an error that has ended a command. Prints the traceback of a bug if the user asks."""
    match error:
        case Problem():
            return error
        case StepfoldError():
            return Problem(str(error), _code_of(error))
        case OSError():
            of = f"{error.filename}: " if error.filename is not None else ""
            return Problem(f"{of}{error.strerror or error}", Exit.LOG)
        case MemoryError():
            return Problem("there is not enough memory for this", Exit.LOG)
        case _:
            usage = _usage_problem(error)
            return _bug(error) if usage is None else Problem(usage, Exit.USAGE)


def _code_of(error: StepfoldError) -> Exit:
    match error:
        case RunNotFound() | WorkflowUnknown() | QueryUnknown():
            return Exit.NOT_FOUND
        case LogUnavailable():
            return Exit.LOG
        case ConfigError() | InputInvalid() | PayloadTooLarge() | CallbackIdInvalid():
            return Exit.USAGE
        case _:
            return Exit.NO


def _usage_problem(error: BaseException) -> str | None:
    """The message for a mistake on the command line; None for any other error.

    Depending on its version Typer contains a copy of Click or needs Click itself, so no class name fits both.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return "name a command"  # Typer has printed its help
    say: Callable[[], str] | None = getattr(error, "format_message", None)
    if say is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "stepfold"
    return f"{say().rstrip('.')} (see {command} --help)"


def _bug(error: BaseException) -> Problem:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
        return Problem("", Exit.FAULT)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in last)
    return Problem(
        f"this is a bug in stepfold: {ErrorInfo.of(error)}{where}. "
        f"Please report it with the traceback, which {TRACEBACK}=1 in the environment prints",
        Exit.FAULT,
    )
