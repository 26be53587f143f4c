"""Tells Ctrl-C from a KeyboardInterrupt that code raised itself: only the first is meant for the process."""

from __future__ import annotations

import asyncio
import signal
import threading
from types import CodeType, TracebackType

_ON_SIGINT: CodeType | None = getattr(vars(asyncio.Runner).get("_on_sigint"), "__code__", None)


def from_keyboard(error: BaseException) -> bool:
    """Whether the handler of SIGINT raised this error.

    Python's own handler leaves no trace: if it is installed, every KeyboardInterrupt in the main thread counts as Ctrl-C.
    """
    if type(error) is not KeyboardInterrupt or threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is _ON_SIGINT
