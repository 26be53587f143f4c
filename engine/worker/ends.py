"""Finds out whether code of a step, or a caller who may do so, has ended the worker's event loop or cancelled its tasks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any

from ..authoring.step import current_attempt
from .interrupts import from_keyboard


def is_exit(error: BaseException | None) -> bool:
    """Whether asyncio lets an error of a task or callback end the loop."""
    return isinstance(error, SystemExit | KeyboardInterrupt)


def step_behind(error: BaseException) -> str | None:
    """The step, in words, whose task or callback has raised an error out of asyncio's loop; None if that is not known."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        handle = trace.tb_frame.f_locals.get("self") if trace.tb_frame.f_code.co_name == "_run" else None
        context = getattr(handle, "_context", None) if isinstance(handle, asyncio.Handle) else None
        if isinstance(context, Context):
            return _words(context)
        trace = trace.tb_next
    return None


class Canary(asyncio.Task[None]):
    """A task of the worker that reports when code of a step cancels it, directly or by ending the loop.

    Steps, their tasks and their callbacks have the context of the step. Other code that cancels tasks (`asyncio.run` at its end
    or on Ctrl-C, a shutdown routine of the application) has not.
    """

    def __init__(self, work: Coroutine[Any, Any, None], tell: Callable[[str], None], name: str) -> None:
        self._tell = tell
        super().__init__(work, name=name)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task as any other."""
        who = _words(None)
        error = sys.exception()
        if who is None and error is not None and is_exit(error) and not from_keyboard(error):
            who = step_behind(error)
        if who is not None:
            self._tell(who)
        return super().cancel(msg)


def _words(context: Context | None) -> str | None:
    attempt = current_attempt.get() if context is None else context.get(current_attempt)
    return None if attempt is None else f"step {attempt.step_id} of run {attempt.run_id} (attempt {attempt.number})"
