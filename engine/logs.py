"""Prepares stepfold's loggers for the handlers of any application: they show foreign text, and their calls do not raise.

Log messages hold texts of other programs, and a terminal obeys control characters. A filter makes invisible characters visible;
it is not a formatter, because the application chooses how log records are written.

Handlers, filters and record factories belong to the application, and any of them may raise. A line of the log must not change
the course of a run or of a partition, so the error goes to stderr instead. SystemExit does, too: an exit from a log call would
end other runs' work half-way. Only Ctrl-C and the watchdog's interruption pass.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Generator
from typing import Any, cast

from .errors import ErrorInfo, message_of
from .values.text import Lines, shown
from .worker.interrupts import from_keyboard
from .worker.watchdog import Stuck

NAMES = (
    "stepfold",
    "stepfold.worker",
    "stepfold.run",
    "stepfold.kafka",
    "stepfold.projections",
    "stepfold.sqlite",
    "stepfold.http",
)


class ShowsForeignText(logging.Filter):
    """Escapes invisible characters in log records, and replaces records that cannot be formatted. Drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            if isinstance(record.args, tuple):
                record.args = tuple(map(_argument, record.args))
            message = record.getMessage()
            if message != shown(message, lines=True):
                record.msg, record.args = shown(message, lines=True), ()
        except Exception as error:  # noqa: BLE001  # the __str__ of a user's object may raise anything
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            record.msg, record.args = f"{shown(template)} (cannot be shown: {type(error).__name__})", ()
        if record.exc_info and not record.exc_text:
            try:
                text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            except Exception as error:  # noqa: BLE001  # the user's error may raise anything
                record.exc_text = f"(the traceback cannot be shown: {type(error).__name__})"
            else:
                if text != shown(text, lines=True):
                    record.exc_text = shown(text, lines=True)
        return True


def _argument(value: object) -> object:
    """The argument itself if its text is visible as it is (handlers may want the object), else its escaped text."""
    if value is None or isinstance(value, int | float):
        return value
    text, lines = str(value), isinstance(value, Lines)
    return value if text == shown(text, lines=lines) else shown(text, lines=lines)


class Contains(logging.Logger):
    """A logger whose calls raise no error of handlers, filters and record factories."""

    def makeRecord(self, name: str, level: int, *rest: Any, **named: Any) -> logging.LogRecord:  # noqa: N802  # logging's name
        with _contained(self.name):
            return super().makeRecord(name, level, *rest, **named)
        return _plain_record(name, level, *rest, **named)

    def handle(self, record: logging.LogRecord) -> None:
        with _contained(self.name, record):
            super().handle(record)


def _plain_record(
    name: str,
    level: int,
    fn: str,
    lno: int,
    msg: object,
    args: Any,
    exc_info: Any,
    func: str | None = None,
    extra: Any = None,
    sinfo: str | None = None,
) -> logging.LogRecord:
    """A record made without the application's factory, and without extra fields that logging refuses."""
    try:
        record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
    except Exception:  # noqa: BLE001  # logging asks an only argument for its class, which may raise anything
        record = logging.LogRecord(name, level, fn, lno, msg, None, exc_info, func, sinfo)
    with contextlib.suppress(Exception):
        taken = {*vars(record), "message", "asctime"}
        vars(record).update({key: value for key, value in dict(extra or {}).items() if key not in taken})
    return record


_within = threading.local()
_told: set[tuple[type, str, int]] = set()
_TOLD_MOST = 100


@contextlib.contextmanager
def _contained(name: str, record: logging.LogRecord | None = None) -> Generator[None]:
    """Contain the errors of one log call.

    Errors of log calls that a handler makes pass to that handler: contained at each level, a handler that logs to its own logger
    would go on for ever.
    """
    if getattr(_within, "call", False):
        yield
        return
    _within.call = True
    try:
        yield
    except BaseException as error:
        if isinstance(error, Stuck) or from_keyboard(error):
            raise
        with contextlib.suppress(Exception):  # stderr may be the application's, too
            _tell(error, name, record)
    finally:
        _within.call = False


def _tell(error: BaseException, name: str, record: logging.LogRecord | None) -> None:
    """Write an error to stderr, once for each type of error and each line."""
    if not logging.raiseExceptions or not sys.stderr:
        return
    frames = list(traceback.walk_tb(error.__traceback__))
    key = (type(error), frames[-1][0].f_code.co_filename, frames[-1][1])
    if key in _told or len(_told) >= _TOLD_MOST:
        return
    _told.add(key)
    lost = "" if record is None else f" The line that may be missing: {_message(record)}"
    trace = "".join(traceback.format_tb(error.__traceback__))
    text = f"stepfold: logging to {name} failed; all else goes on, and this is said once.{lost}\n{trace}{ErrorInfo.of(error)}"
    sys.stderr.write(f"{shown(text, lines=True)}\n")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().partition("\n")[0]
    except Exception as error:  # noqa: BLE001  # the __str__ of a user's object may raise anything
        return f"(cannot be shown: {message_of(error)})"


def prepare_loggers() -> None:
    """Make stepfold's loggers show foreign text and contain errors. Idempotent."""
    for name in NAMES:
        logger = logging.getLogger(name)
        if not isinstance(logger, Contains):
            kind = type(logger)  # the application may have set a class of its own
            logger.__class__ = cast(Any, type(kind.__name__, (Contains, kind), {}))
        if not any(isinstance(one, ShowsForeignText) for one in logger.filters):
            logger.addFilter(ShowsForeignText())
