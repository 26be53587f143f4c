"""Threads for plain step functions: a turn of the loop hands over all that it has, and is told of the results together.

For a short function the way to a thread and back is all that it costs. So one thread takes what a turn of the loop hands
over, one call after another, and the loop waits for it, `WAIT_S` at most and without the interpreter: nobody has to be woken
up. What has not begun by then gets a thread each, and so does from the start what is known to take longer; the loop waits for
none of it.

A thread cannot be stopped. Who waits for what it does may give up, and the thread does no harm: it takes nobody's place,
and the end of the process waits for none. Only there, once its worker has stopped, is Python code in it ended.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol
from weakref import WeakSet

from ..errors import ErrorInfo
from .attempt import Attempt
from .watchdog import send_to

logger = logging.getLogger("stepfold.worker")

QUICK_S = 0.0002
"""The loop waits for functions that take less than this, on average."""
WAIT_S = 0.001
AGAIN_S = 1.0
EXIT_S = 0.25
"""So long the end of the process tries to end the code that threads still run."""
_numbers = itertools.count(1)
_left_behind: WeakSet[threading.Thread] = WeakSet()
"""Threads of workers that have stopped: those that still live run a step."""


def _end_left_behind() -> None:
    """End what they run, if that is Python code: `finally` has its turn.

    Soon a thread that wants the interpreter is torn off its stack, and where Rust or C++ is on that (pydantic calls a
    serializer, say) the process aborts.
    """
    until = time.monotonic() + EXIT_S
    while (alive := [thread.ident for thread in _left_behind if thread.is_alive()]) and time.monotonic() < until:
        for thread_id in alive:
            send_to(thread_id or 0, SystemExit)
        time.sleep(0.005)


if sys.version_info < (3, 14):  # which lets such threads hang
    atexit.register(_end_left_behind)


class Failure(NamedTuple):
    """A plain function has raised this; `info`: as it was described where it ran."""

    error: BaseException
    info: ErrorInfo | None


class Pending(NamedTuple):
    """A plain function has returned this instead of a value."""

    awaitable: Awaitable[object]


Outcome = bytes | Failure | Pending


class Job:
    """One call for an attempt, in a context of its own."""

    __slots__ = ("_call", "_pace", "attempt", "began", "context", "outcome")

    def __init__(self, call: Callable[[Attempt], Outcome], attempt: Attempt, context: contextvars.Context) -> None:
        self.attempt = attempt
        self.context = context
        self.began: float | None = None
        self.outcome: Outcome | None = None
        self._call = call
        self._pace = attempt.call.pace

    @property
    def is_quick(self) -> bool:
        """Whether it can be waited for, as far as is known."""
        return self._pace.mean_s < QUICK_S

    def run(self) -> None:
        """Call it, unless nobody wants to know any more."""
        if self.attempt.over is None:
            return
        self.began = time.perf_counter()
        self.outcome = self.context.run(self._call, self.attempt)
        self._pace.add(time.perf_counter() - self.began)

    def is_late(self) -> None:
        """The loop has waited. If it has begun, no other call is waited for before it comes back: that may be never."""
        if self.began is not None and self.outcome is None:
            self._pace.mean_s = max(self._pace.mean_s, QUICK_S)


Report = Callable[[Job], None]


class Threads(Protocol):
    """Who runs jobs, and reports them on the loop."""

    def give(self, job: Job) -> None: ...
    def close(self) -> None: ...


class StepThreads:
    """Make it and use it on one event loop. What its threads share with it has atomic methods."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._todo: deque[Job] = deque()
        self._done: deque[Job] = deque()
        self._quick: list[Job] = []  # no thread has been woken for them yet
        self._wanted = 0  # the loop waits for so many results
        self._gate = threading.Lock()  # where it waits
        self._told = False  # the loop knows that there are results, or is about to look
        self._threads: WeakSet[threading.Thread] = WeakSet()
        self._idle: list[threading.Lock] = []  # each thread waits at a bell of its own
        self._closed = False

    def give(self, job: Job) -> None:
        """Have it run; it is reported."""
        self._todo.append(job)
        if not job.is_quick:
            self._wake()
            return
        self._quick.append(job)
        if len(self._quick) == 1:
            self._loop.call_soon(self._begin)  # after all that is ready in this turn and may give more

    def close(self) -> None:
        """Idle threads end; the others when they have done what they do."""
        self._closed = True
        _left_behind.update(self._threads)
        while self._idle:
            self._idle.pop().release()

    def _wake(self) -> None:
        """See that one more thread looks for what is to be done."""
        if self._idle:
            self._idle.pop().release()  # the one that slept last
            return
        thread = threading.Thread(target=self._serve, name=f"stepfold-step-{next(_numbers)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more
            logger.warning("no thread for a plain step function: %s; trying again in %g s", error, AGAIN_S)
            self._loop.call_later(AGAIN_S, self._wake)
        else:
            self._threads.add(thread)

    def _begin(self) -> None:
        """Have a thread do what is quick, and wait a moment for it."""
        gate = self._gate = threading.Lock()  # a new one: a thread that was late may still open the last one
        gate.acquire()
        self._told = True
        jobs, self._quick = self._quick, []
        self._wanted = len(self._done) + len(jobs)
        try:
            self._wake()
            if not gate.acquire(timeout=WAIT_S):
                for job in jobs:
                    job.is_late()
                for _ in range(len(self._todo)):
                    self._wake()
        finally:
            self._wanted = 0
            self._collect()

    def _collect(self) -> None:
        self._told = False  # before it looks: whoever comes later tells again
        while self._done:
            self._report(self._done.popleft())

    def _serve(self) -> None:
        """In a thread."""
        bell = threading.Lock()
        bell.acquire()
        while not self._closed:
            while self._work():
                pass
            self._idle.append(bell)
            if self._wanted and len(self._done) >= self._wanted:
                with contextlib.suppress(RuntimeError):  # another thread has opened it
                    self._gate.release()
            if not self._closed:
                bell.acquire()

    def _work(self) -> bool:
        """Do one job; whether there was one. Nothing of it is kept while the thread waits."""
        try:
            job = self._todo.popleft()
        except IndexError:
            return False
        try:
            job.run()
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it
            job.outcome = Failure(error, None)
        self._done.append(job)
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._collect)
        return True


class Inline:
    """The same on the loop, where time would not wait for a thread: each job takes `delay_s`."""

    def __init__(self, report: Report, delay_s: float = 0.0) -> None:
        self._report = report
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()

    def give(self, job: Job) -> None:
        """Have it run; it is reported."""
        self._loop.call_later(self._delay_s, self._run, job)

    def close(self) -> None:
        """There is nothing to close."""

    def _run(self, job: Job) -> None:
        job.run()
        self._report(job)
