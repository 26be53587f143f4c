"""What stepfold logs about others' runs holds others' texts: they are shown, not sent, whoever's handler writes them down.

A filter on our loggers, and not a formatter, because how records are written is the application's business.
"""

from __future__ import annotations

import logging
import traceback

from .values.text import Lines, shown

NAMES = ("stepfold", "stepfold.worker", "stepfold.run", "stepfold.kafka", "stepfold.projections", "stepfold.sqlite")


class ShowsForeignText(logging.Filter):
    """Changes only records that hold what cannot be seen, or cannot be formatted at all. Lets everything through."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            if isinstance(record.args, tuple):
                record.args = tuple(map(_argument, record.args))
            message = record.getMessage()
            if message != shown(message, lines=True):
                record.msg, record.args = shown(message, lines=True), ()
        except Exception as error:  # noqa: BLE001  # whatever the text of a user's thing raises
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            record.msg, record.args = f"{shown(template)} (cannot be shown: {type(error).__name__})", ()
        if record.exc_info and not record.exc_text:
            try:
                text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            except Exception as error:  # noqa: BLE001  # its text is the user's too
                record.exc_text = f"(the traceback cannot be shown: {type(error).__name__})"
            else:
                if text != shown(text, lines=True):
                    record.exc_text = shown(text, lines=True)
        return True


def _argument(value: object) -> object:
    """Whatever is not shown as it is, as its text on one line. Else it stays: handlers may know what to do with an error."""
    if value is None or isinstance(value, int | float):
        return value
    text, lines = str(value), isinstance(value, Lines)
    return value if text == shown(text, lines=lines) else shown(text, lines=lines)


def show_foreign_text() -> None:
    """Have our loggers show what cannot be seen. Idempotent."""
    for name in NAMES:
        logger = logging.getLogger(name)
        if not any(isinstance(one, ShowsForeignText) for one in logger.filters):
            logger.addFilter(ShowsForeignText())
