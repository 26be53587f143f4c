"""Makes invisible characters visible in stepfold's log messages: they hold texts of other programs, and a terminal obeys control
characters.

This is a filter on stepfold's loggers and not a formatter, because the application chooses how log records are written.
"""

from __future__ import annotations

import logging
import traceback

from .values.text import Lines, shown

NAMES = ("stepfold", "stepfold.worker", "stepfold.run", "stepfold.kafka", "stepfold.projections", "stepfold.sqlite")


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


def show_foreign_text() -> None:
    """Add the filter to stepfold's loggers. Idempotent."""
    for name in NAMES:
        logger = logging.getLogger(name)
        if not any(isinstance(one, ShowsForeignText) for one in logger.filters):
            logger.addFilter(ShowsForeignText())
