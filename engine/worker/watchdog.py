"""The watchdog: a thread that checks whether users' code gives the worker's loop back; it names code that does not and stops it.

The loop's thread notes whose code it runs. That costs an attribute and a counter, and reads no clock. The watchdog looks at it
every `LOOK_S` and warns after `WARN_S`. After `STOP_S` without progress it interrupts the code of a run with an exception of
`Stuck`, which Python raises between two instructions of that thread. If the code catches it, the watchdog sends one that comes
again at each instruction where Python checks, also outside every `try`, until the thread is out of that code. Code outside
Python's instructions cannot be interrupted: the watchdog says so and goes on looking. It does not interrupt code that a debugger
traces.

While no code is noted, the watchdog asks the loop for a sign of life at each look, so it also names code that runs where nobody
expects it: a `__del__` that the garbage collector calls, code of the program on the same loop. It does not interrupt such code.
A call that holds the interpreter holds the watchdog up, too, in whatever thread it runs: the watchdog says so afterwards.

The exception cannot reach the engine. The watchdog sets `armed`, then checks that the loop's thread is still inside the same
code (`what`, `turn`), and only then sends. The loop's thread first notes that it is out, then looks at `armed`. If that is set,
it waits until the watchdog has decided, and withdraws an exception that has not arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from types import FrameType
from typing import Any, Protocol, TypeVar

from ..replay.contexts import contexts
from ..replay.frames import ENGINE, source_of
from ..replay.loop import bring_loop_back, set_loop_aside
from .forks import end_child, end_in_child

logger = logging.getLogger("stepfold.worker")

T = TypeVar("T")

LOOK_S = 0.25
WARN_S = 2.0
STOP_S = 10.0
TRIAL_S = 1.0
"""`STOP_S` for a rehearsal of quarantined code that may have been repaired."""
INSIST_S = 0.5
"""Code that still holds the loop this long after the first exception gets the one that comes again."""
GIVE_UP_S = 5.0
"""Code that still holds the loop this long after its interruption is in a call that Python cannot interrupt."""


class Stuck(BaseException):
    """Raised into the code of a run that does not give the loop back."""


class Watched(Protocol):
    """The owner of code that the loop runs: a run, an attempt, or a question to users' classes."""

    @property
    def stop_s(self) -> float:
        """Seconds without progress until the watchdog interrupts the code."""
        ...

    def named(self) -> tuple[str, dict[str, Any]]:
        """The code in words, and as extra fields for a log record."""
        ...

    def progress(self) -> int:
        """A number that changes when the code makes progress."""
        ...


class Asked:
    """A call of users' classes by the engine (write a value, show an error, check an input): the call must return."""

    def __init__(self, named: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        self.named = named
        self.stop_s = STOP_S

    def progress(self) -> int:
        """Always 0: a call shows no progress."""
        return 0


class Watch:
    """The notes of the loop's thread, without a thread that looks: for simulations, and where there are no threads."""

    def __init__(self) -> None:
        self.what: Watched | None = None
        self.new_context = contexts()  # for all code of users, so it is made when the worker is
        self.turn = 0
        self.armed = False  # an interruption is announced
        self.lines: tuple[str, ...] = ()  # source lines of the interrupted code
        self.interruptions = 0
        self.gave_up = False  # the code cannot be interrupted
        self._sending = False  # the watchdog is deciding whether to send
        self._sent = False
        self._kind: Any = Stuck
        end_in_child(self)

    def start(self) -> None:
        """Begin to look. Call it in the thread of the loop."""

    def is_copy(self) -> None:
        """End the process when the code that runs now gives control back."""
        object.__setattr__(self, "__class__", _Copy)  # costs nothing where nobody forks

    def stop(self) -> None:
        """Stop looking."""

    def held_up(self) -> tuple[str, float] | None:
        """The code that holds the loop, in words with its source lines, and for how many seconds; None if the loop is free."""
        return None

    def run(self, what: Watched, call: Callable[[], T]) -> T:
        """Run users' code. Raises what the code raises, or Stuck if the watchdog interrupted it."""
        outer = self.what
        try:
            try:
                self.turn += 1
                self.what = what
                return call()
            finally:
                self.what = outer
                if self.armed:
                    self._settle()
        except Stuck:
            # Python checks for exceptions from other threads only after the next two lines; then two can still arrive.
            self.what = outer
            self._kind.__init__ = BaseException.__init__
            try:
                self._settle()
            except Stuck:
                try:
                    self._settle()
                except Stuck:
                    self._settle()
            raise

    def ask(self, named: Callable[[], tuple[str, dict[str, Any]]], call: Callable[[], T]) -> T:
        """Call users' classes, also from within users' code, then in its context. Raises Stuck as `run` does.

        Outside users' code they find no running loop, so that they cannot cancel a task of the worker.
        """
        if self.what is not None:
            return self.run(Asked(named), call)
        aside = set_loop_aside()
        try:
            return self.run(Asked(named), partial(self.new_context().run, call))
        finally:
            bring_loop_back(*aside)

    def free(self, what: Watched, objects: list[Any]) -> None:
        """Drop the last references to objects of users: a `__del__` of their classes is code, too."""
        with contextlib.suppress(Stuck):
            self.run(what, objects.clear)

    def _settle(self) -> None:
        """The loop's thread is out of users' code: no interruption comes after this. Raises Stuck if one was sent."""
        while self._sending:
            time.sleep(0.0001)
        self._take_back()
        self.armed = False
        if self._sent:
            self._sent = False
            raise Stuck

    def _take_back(self) -> None: ...


class _Copy(Watch):
    """The notes in a forked child: the first one ends the child."""

    def __setattr__(self, name: str, value: Any) -> None:
        end_child()


class Watchdog(Watch):
    """A watch with a thread that looks."""

    def __init__(self) -> None:
        super().__init__()
        self._thread_id = 0
        self._stopped = threading.Event()
        self._looked_at = 0.0
        self._computed_at = 0.0
        self._seen: tuple[Any, ...] = ()
        self._busy_s = 0.0
        self._is_traced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signs = 0

    def start(self) -> None:
        self._thread_id = threading.get_ident()
        self._is_traced = sys.gettrace() is not None
        with contextlib.suppress(RuntimeError):  # no loop runs
            self._loop = asyncio.get_running_loop()
        self._looked_at = time.monotonic()
        self._computed_at = time.process_time()
        threading.Thread(target=self._look_on, name="stepfold-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def held_up(self) -> tuple[str, float] | None:
        what = self.what
        lines = self._where(what)
        if what is None and (not lines or self._stopped.is_set()):
            return None
        now = time.monotonic()
        busy_s = now - self._looked_at + (self._busy_s if self._mark(what) == self._seen else 0.0)
        return f"{_named(what)[0]}, at {_said(lines)}", busy_s

    # -- in the thread

    def _look_on(self) -> None:
        said: tuple[str, dict[str, Any]] | None = None
        asked = 0
        while not self._stopped.wait(LOOK_S):
            now = time.monotonic()
            # a longer pause: the process was stopped, or a C call held all threads
            since_s, self._looked_at = now - self._looked_at, now
            passed_s = min(since_s, 2 * LOOK_S)
            self._say_if_late(since_s)
            what = self.what
            mark = self._mark(what)
            if mark != self._seen or (what is None and self._loop is None):
                if said is not None:
                    logger.warning("%s kept the worker's loop busy for %.1f s", said[0], self._busy_s, extra=said[1])
                self._seen, self._busy_s, said, asked = mark, 0.0, None, 0
                if what is None:
                    self._ask_for_a_sign()
                continue
            self._busy_s += passed_s
            if self._busy_s >= WARN_S and said is None and ((lines := self._where(what)) or what is not None):
                said = _named(what)
                logger.warning(
                    "%s has kept the worker's loop busy for %.1f s, at %s: everything else waits; move what takes long or blocks "
                    "into `await step.run(...)` with a plain function",
                    said[0],
                    self._busy_s,
                    _said(lines),
                    extra=said[1],
                )
            if what is not None and self._busy_s >= what.stop_s and not self._traced():
                over_s = self._busy_s - what.stop_s
                if asked == 0 or (asked == 1 and over_s >= INSIST_S):
                    asked += 1
                    self._send(mark, insist=asked == 2)
                elif asked == 2 and over_s >= GIVE_UP_S:
                    asked += 1
                    self.gave_up = True
                    name, extra = what.named()
                    logger.error(
                        "%s does not release the worker's loop and cannot be interrupted, at %s; end the process to continue",
                        name,
                        _said(self._where(what)),
                        extra=extra,
                    )

    def _say_if_late(self, passed_s: float) -> None:
        """Warn if the process computed all the while and let no other thread run. A process that was stopped did not compute."""
        before_s, self._computed_at = self._computed_at, time.process_time()
        if passed_s < WARN_S + LOOK_S or self._computed_at - before_s < passed_s / 4:
            return
        me = threading.get_ident()
        running = [
            _said(lines)
            for thread_id, frame in sys._current_frames().items()  # pyright: ignore[reportPrivateUsage]  # documented for this
            if thread_id != me and (lines := source_of(takewhile(_is_users, _outwards(frame))))
        ]
        logger.warning(
            "a call held the interpreter for %.1f s, so nothing else in this process could run; these lines run now: %s. Move "
            "such work into another process",
            passed_s,
            "; ".join(running) or "none of yours",
        )

    def _mark(self, what: Watched | None) -> tuple[Any, ...]:
        return (self.turn, what, what.progress() if what is not None else self._signs)

    def _ask_for_a_sign(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._sign)

    def _sign(self) -> None:
        self._signs += 1

    def _traced(self) -> bool:
        """Whether a debugger or a coverage tool traces the code: code at a breakpoint must not be interrupted."""
        return self._is_traced or any(frame.f_trace is not None for frame in self._frames())

    def _where(self, what: Watched | None) -> tuple[str, ...]:
        """The lines of the watched code; of other code only if it runs now, above the engine and the loop."""
        return source_of(self._frames() if what is not None else takewhile(_is_users, self._frames()))

    def _frames(self) -> Iterator[FrameType]:
        """The frames of the watched code, innermost first."""
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]  # documented for this
        return takewhile(lambda frame: frame.f_code is not Watch.run.__code__, _outwards(frame))

    def _send(self, mark: tuple[Any, ...], *, insist: bool) -> None:
        kind: Any = type("Stuck", (Stuck,), {})
        if insist:
            # runs no Python instruction, so the next exception arrives only after this one
            kind.__init__ = staticmethod(partial(send_to, self._thread_id, kind))
        lines = self._where(self.what)  # of callbacks that the code has left behind there may be none
        self.lines = (lines or self.lines) if insist else lines
        self._sending = True
        self.armed = True
        try:
            self._kind = kind
            if self._mark(self.what) == mark:
                self._sent = True
                self.interruptions += 1
                send_to(self._thread_id, kind)
        finally:
            self._sending = False

    def _take_back(self) -> None:
        _take_back_from(self._thread_id, None)


def _named(what: Watched | None) -> tuple[str, dict[str, Any]]:
    return ("code outside runs and steps", {}) if what is None else what.named()


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_users(frame: FrameType) -> bool:
    return frame.f_code not in _LOOPS and not frame.f_code.co_filename.startswith(ENGINE)


_LOOPS = (asyncio.BaseEventLoop.run_forever.__code__, asyncio.Handle._run.__code__)


def _said(lines: tuple[str, ...]) -> str:
    return ", ".join(lines) or "an unknown line"


def _function(argument: Any) -> Callable[[int, Any], None]:
    # our own function object: `argtypes` of the shared one would change for everybody
    function: Any = ctypes.pythonapi["PyThreadState_SetAsyncExc"]
    function.argtypes = (ctypes.c_ulong, argument)
    function.restype = None
    return function


send_to = _function(ctypes.py_object)
"""Raise an exception class in the thread of an id, between two of its instructions."""
_take_back_from = _function(ctypes.c_void_p)
