"""Threads for plain step functions: one turn of the loop hands its calls over together and gets the results together.

For a short function most of the cost is the hand-over to a thread and back. So one thread takes all calls of a turn, one after
another. The loop waits for it without the interpreter lock, at most `WAIT_S`, so no thread has to wake the loop. Calls that have
not begun by then get a thread each. Functions that are known to take longer get a thread each from the start: the loop does not
wait for them.

A thread cannot be stopped. The waiting side may give up; the thread then occupies no slot, and the process does not wait for
it to end. When the process ends and the worker has stopped, `_end_left_behind` ends the Python code in such threads.
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
from .forks import end_child, end_in_child
from .watchdog import send_to

logger = logging.getLogger("stepfold.worker")

QUICK_S = 0.0002
"""The loop waits only for functions that take less than this on average."""
WAIT_S = 0.001
AGAIN_S = 1.0
EXIT_S = 0.25
"""For how long the end of the process tries to end code in threads."""
_numbers = itertools.count(1)
_left_behind: WeakSet[threading.Thread] = WeakSet()
"""Threads of stopped workers: a thread that is alive runs a step."""


def _end_left_behind() -> None:
    """End the Python code in threads left behind; its `finally` blocks run.

    Soon after, Python tears a thread that wants the interpreter off its stack. If Rust or C++ is on that stack (pydantic that
    calls a serializer, say), the process aborts.
    """
    until = time.monotonic() + EXIT_S
    while (alive := [thread.ident for thread in _left_behind if thread.is_alive()]) and time.monotonic() < until:
        for thread_id in alive:
            send_to(thread_id or 0, SystemExit)
        time.sleep(0.005)


if sys.version_info < (3, 14):  # from 3.14 on Python lets such threads hang
    atexit.register(_end_left_behind)


class Failure(NamedTuple):
    """The error that a plain function raised. `info` describes it, if the thread could do that."""

    error: BaseException
    info: ErrorInfo | None


class Pending(NamedTuple):
    """The awaitable that a plain function returned instead of a value."""

    awaitable: Awaitable[object]


Outcome = bytes | Failure | Pending


class Job:
    """One call for an attempt, in its own context."""

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
        """Whether the loop may wait for it, by its mean time so far."""
        return self._pace.mean_s < QUICK_S

    def run(self) -> None:
        """Call the function, unless the attempt has given its slot up."""
        if self.attempt.over is None:
            return
        self.began = time.perf_counter()
        self.outcome = self.context.run(self._call, self.attempt)
        self._pace.add(time.perf_counter() - self.began)

    def is_late(self) -> None:
        """The loop waited too long. If this call has begun, count its function as slow before it returns: it may never return."""
        if self.began is not None and self.outcome is None:
            self._pace.mean_s = max(self._pace.mean_s, QUICK_S)


Report = Callable[[Job], None]


class Threads(Protocol):
    """Runs jobs and reports them on the loop."""

    def give(self, job: Job) -> None: ...
    def close(self) -> None: ...


class StepThreads:
    """Runs jobs in daemon threads. Make and use it on one event loop; threads and loop share only objects with atomic methods."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._todo: deque[Job] = deque()
        self._done: deque[Job] = deque()
        self._quick: list[Job] = []  # no thread has been woken for them yet
        self._wanted = 0  # the number of results that the loop waits for
        self._gate = threading.Lock()  # the lock at which the loop waits
        self._told = False  # the loop knows that results are there, or is about to look
        self._threads: WeakSet[threading.Thread] = WeakSet()
        self._idle: list[threading.Lock] = []  # the locks of idle threads, one each
        self._closed = False
        self._is_copy = False  # this is the child of a fork
        end_in_child(self)

    def is_copy(self) -> None:
        """End the process when the function that has forked returns."""
        self._is_copy = True

    def give(self, job: Job) -> None:
        """Run a job in a thread and report it on the loop."""
        self._todo.append(job)
        if not job.is_quick:
            self._wake()
            return
        self._quick.append(job)
        if len(self._quick) == 1:
            self._loop.call_soon(self._begin)  # runs after everything that is ready in this turn and may give more jobs

    def close(self) -> None:
        """End idle threads now, and the others after their job."""
        self._closed = True
        _left_behind.update(self._threads)
        while self._idle:
            self._idle.pop().release()

    def _wake(self) -> None:
        """Make one more thread look for jobs."""
        if self._idle:
            self._idle.pop().release()  # the one that slept last
            return
        thread = threading.Thread(target=self._serve, name=f"stepfold-step-{next(_numbers)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            logger.warning("no thread for a plain step function: %s; trying again in %g s", error, AGAIN_S)
            self._loop.call_later(AGAIN_S, self._wake)
        else:
            self._threads.add(thread)

    def _begin(self) -> None:
        """Wake a thread for the quick jobs, and wait a moment for their results."""
        gate = self._gate = threading.Lock()  # a new lock: a late thread may still release the last one
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
        self._told = False  # before it looks: a result that comes later calls again
        while self._done:
            self._report(self._done.popleft())

    def _serve(self) -> None:
        """The loop of one thread."""
        bell = threading.Lock()
        bell.acquire()
        while not self._closed:
            while self._work():
                pass
            self._idle.append(bell)
            if self._wanted and len(self._done) >= self._wanted:
                with contextlib.suppress(RuntimeError):  # another thread has released it
                    self._gate.release()
            if not self._closed:
                bell.acquire()

    def _work(self) -> bool:
        """Do one job. Returns False if there was none. Keeps no reference to the job while the thread waits."""
        try:
            job = self._todo.popleft()
        except IndexError:
            return False
        try:
            job.run()
        except BaseException as error:  # noqa: BLE001  # the attempt reports it
            job.outcome = Failure(error, None)
        if self._is_copy:
            end_child()
        self._done.append(job)
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._collect)
        return True


class Inline:
    """Runs jobs on the loop, for virtual time, which does not wait for threads. Each job takes `delay_s`."""

    def __init__(self, report: Report, delay_s: float = 0.0) -> None:
        self._report = report
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()

    def give(self, job: Job) -> None:
        """Run a job and report it."""
        self._loop.call_later(self._delay_s, self._run, job)

    def close(self) -> None:
        """Does nothing."""

    def _run(self, job: Job) -> None:
        job.run()
        self._report(job)
