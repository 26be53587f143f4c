"""A worker as a process: what SIGINT, SIGTERM and SIGHUP do to it, and how it ends where something in it does not.

A signal's handler runs between two instructions of the main thread, also where code of a user's holds the event loop; what
asyncio would run on the loop would then never come. Nobody else in the engine touches signals or ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, NoReturn

from . import watchdog

logger = logging.getLogger("stepfold.worker")

SIGNALLED_TWICE_S = 0.5
"""A signal that comes again within this time after the first is the same one."""
LOOK_S = 0.5


@contextlib.contextmanager
def told_by_signals(
    told: Callable[[int], None],
    held_up: Callable[[], tuple[str, float] | None] = lambda: None,
    at_once: Callable[[], None] = lambda: None,
) -> Generator[None]:
    """Call `told` on the running loop at the first SIGINT, SIGTERM or SIGHUP; another one ends the process at once, and so does
    the first where code has held the loop up for long, or does from then on: then there is nothing to wait for.

    `at_once` is called before another one ends the process. Does nothing outside of the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    first: dict[int, float] = {}
    over = threading.Event()

    def end_if_held_up(number: int) -> None:
        held = held_up()
        if held is not None and held[1] >= watchdog.WARN_S:
            logger.error("%s has held the worker's loop up for %.1f s: the process ends without waiting", *held)
            end_process(128 + number)

    def look_on(number: int) -> None:
        while not over.wait(LOOK_S):
            end_if_held_up(number)

    def handler(number: int, frame: FrameType | None) -> None:
        end_if_held_up(number)
        now = time.monotonic()
        if not first:
            threading.Thread(target=look_on, args=(number,), name="stepfold-stopping", daemon=True).start()
        elif now - first.get(number, now) >= SIGNALLED_TWICE_S:  # `timeout` and some supervisors signal a process and its group
            at_once()
            if number == signal.SIGINT:
                end_process(128 + number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first.setdefault(number, now)
        with contextlib.suppress(RuntimeError):  # it has been closed
            loop.call_soon_threadsafe(told, number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # its terminal has gone; not on Windows
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # `nohup`, or an application, may want otherwise
        numbers.append(hangup)
    before: dict[int, Any] = {}
    for number in numbers:
        before[number] = signal.getsignal(number)
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, _nothing)  # so that a signal wakes the loop, whichever thread the system gives it to
        signal.signal(number, handler)
    try:
        yield
    finally:
        over.set()
        for number, handling in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handling)


def _nothing() -> None:
    """The handler itself has seen to it."""


def end_process(status: int) -> NoReturn:
    """End at once, whatever runs in other threads; what was logged and printed is written out."""
    for handler in (*logging.getLogger().handlers, *logging.getLogger("stepfold").handlers):
        with contextlib.suppress(Exception):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
