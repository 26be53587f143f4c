"""How a command that cannot do its work ends: one line on stderr and an exit code, never a traceback.

Exit codes, the same for every command (docs/cli.md):

    0  done
    1  done, and the answer is no: the run failed, the file was altered, the topics are wrong
    2  the command cannot be understood: an option, JSON, APP, a URL
    3  the run, workflow or dead letter does not exist
    4  the log, or a file, cannot be used: no answer, no such file, topics missing, no room
    5  code of a step has ended the worker
    70  a bug in stepfold
    130  interrupted (Ctrl-C, and SIGTERM in commands that must stop child processes)
    141  the reader of the output has gone
"""

from __future__ import annotations

from enum import IntEnum

from ..errors import (
    CallbackIdInvalid,
    ConfigError,
    InputInvalid,
    LogUnavailable,
    NotOwner,
    PayloadTooLarge,
    RunNotFound,
    StepfoldError,
    WorkflowUnknown,
)


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


def code_of(error: StepfoldError) -> Exit:
    """The exit code for an error of the library."""
    if isinstance(error, RunNotFound | WorkflowUnknown):
        return Exit.NOT_FOUND
    if isinstance(error, LogUnavailable | NotOwner):
        return Exit.LOG
    if isinstance(error, ConfigError | InputInvalid | PayloadTooLarge | CallbackIdInvalid):
        return Exit.USAGE
    return Exit.NO
