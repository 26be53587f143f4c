"""A worker as a process: how it handles SIGINT, SIGTERM and SIGHUP, and how it ends if something in it does not end.

The handler of a signal runs between two instructions of the main thread, even while users' code holds the event loop. A
callback on the loop would then never run. No other module of the engine touches signals or ends the process.
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
from _thread import start_new_thread
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, NoReturn

from . import watchdog

logger = logging.getLogger("stepfold.worker")

SIGNALLED_TWICE_S = 0.5
"""A signal that comes again within this time counts as the same signal."""
LOOK_S = 0.5
END_S = 5.0
"""How long a process whose work is done waits for what users' code has left in it."""
LAST_WORDS_S = 1.0

_soon: list[int] = []  # the exit code of a process that ends soon


@contextlib.contextmanager
def told_by_signals(
    told: Callable[[int], None],
    held_up: Callable[[], tuple[str, float] | None] = lambda: None,
    at_once: Callable[[], None] = lambda: None,
) -> Generator[None]:
    """Call `told` on the running loop at the first SIGINT, SIGTERM or SIGHUP. A second signal ends the process at once.

    If code holds the loop up for long (`held_up`), then or later, the first signal ends the process: waiting would be useless.
    `at_once` runs before a second signal ends the process. Does nothing outside the main thread: Python runs signal handlers only
    there.
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
            logger.error("%s has blocked the worker's loop for %.1f s: the process ends without waiting", *held)
            end_process(128 + number)

    def look_on(number: int) -> None:
        while not over.wait(LOOK_S):
            end_if_held_up(number)

    def handler(number: int, frame: FrameType | None) -> None:
        end_if_held_up(number)
        now = time.monotonic()
        if not first:
            with contextlib.suppress(RuntimeError):  # the system has no more threads
                start_new_thread(look_on, (number,))  # `threading` may be patched, or without its `excepthook`
        elif now - first.get(number, now) >= SIGNALLED_TWICE_S:  # `timeout` and some supervisors signal a process and its group
            at_once()
            if number == signal.SIGINT:
                end_process(128 + number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first.setdefault(number, now)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told, number)

    with _handling(loop, handler):
        try:
            yield
        finally:
            over.set()


@contextlib.contextmanager
def _handling(loop: asyncio.AbstractEventLoop, handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Handle the signals that tell the process to stop, and restore the earlier handlers afterwards."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # the terminal is gone; not on Windows
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # `nohup` or an application may have set it
        numbers.append(hangup)
    before: dict[int, Any] = {}
    for number in numbers:
        before[number] = signal.getsignal(number)
        with contextlib.suppress(NotImplementedError):  # Windows
            # so that a signal wakes the loop, whichever thread the system delivers it to
            loop.add_signal_handler(number, _nothing)
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handling in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handling)


def _nothing() -> None:
    """Does nothing: the handler has done the work."""


def end_process(status: int) -> NoReturn:
    """End the process at once, whatever other threads run. Flushes logs and output first."""
    # a handler or a stream of the application may raise anything, and the process ends all the same
    for handler in (*logging.getLogger().handlers, *logging.getLogger("stepfold").handlers):
        with contextlib.suppress(BaseException):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(status)


def end_process_soon(status: int) -> None:
    """End the process with this exit code after `END_S`, unless it has ended by then.

    Threads, tasks that ignore their cancellation and exit handlers of users could keep the process alive for ever. A later call
    changes the exit code only. Without a thread to wait in, the process ends at once.
    """
    begun = bool(_soon)
    _soon[:] = [status]
    if not begun:
        try:
            start_new_thread(_end_later, ())
        except RuntimeError:
            end_process(status)


def _end_later() -> None:
    time.sleep(END_S)
    with contextlib.suppress(RuntimeError):
        start_new_thread(_end_without_words, ())
    main = threading.main_thread()
    left = [thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon and thread.is_alive()]
    what = "threads that are no daemons (" + ", ".join(map(repr, left)) + ")" if left else "an exit handler, or a task,"
    logger.warning("%s kept the process for %g s after its work was done: it ends without waiting", what, END_S)
    end_process(_soon[0])


def _end_without_words() -> None:
    """End the process even if a lock of `logging` is never released, or nobody reads the output."""
    time.sleep(LAST_WORDS_S)
    os._exit(_soon[0])
