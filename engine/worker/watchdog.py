"""The watchdog: a thread that looks whether code of users gives the worker's loop back, names it where it does not, and stops it.

The loop's thread notes whose code it runs, which costs an attribute, a counter and no clock; the thread looks from time to
time. It warns after `WARN_S`. After `STOP_S` without any progress the code of a run is interrupted by an exception of
`Stuck`, which Python raises between two instructions of that thread. Code that catches it gets another one that comes again
at each instruction where Python looks, also outside of every `try` of that code, until the loop's thread is out of it.
What runs outside of Python's instructions is not interrupted: the watchdog says so, and goes on to look. Nor is code that a
debugger traces.

The exception cannot reach the engine. It is sent only while the loop's thread says that it is inside (`what`, `turn`), and
announced before that is looked at (`armed`); who leaves says so first, looks for an announcement then, waits until it is
decided, and takes back what has not arrived.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Protocol, TypeVar

from ..replay.loop import source_of

logger = logging.getLogger("stepfold.worker")

T = TypeVar("T")

LOOK_S = 0.25
WARN_S = 2.0
STOP_S = 10.0
TRIAL_S = 1.0
"""The same for code that was put aside, and may have been mended since."""
INSIST_S = 0.5
"""Code that has caught the exception for so long is not asked again, but taken out."""
GIVE_UP_S = 5.0
"""Code that is still there so long after it was interrupted is in something that Python cannot interrupt."""


class Stuck(BaseException):
    """Raised into the code of a run that does not come back."""


class Watched(Protocol):
    """Whose code may be run."""

    @property
    def stop_s(self) -> float:
        """After so long it is interrupted."""
        ...

    def named(self) -> tuple[str, dict[str, Any]]:
        """In words, and as extra fields of a log record."""
        ...

    def progress(self) -> int:
        """Changes where it goes on."""
        ...


class Asked:
    """What the engine asks of users' classes (to write a value, to show an error, to check an input): it has to come back."""

    def __init__(self, named: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        self.named = named
        self.stop_s = STOP_S

    def progress(self) -> int:
        """It has none."""
        return 0


class Watch:
    """What the loop's thread notes. By itself nobody looks: for simulations, and where there are no threads."""

    def __init__(self) -> None:
        self.what: Watched | None = None
        self.turn = 0
        self.armed = False  # an interruption was announced
        self.lines: tuple[str, ...] = ()  # where the code was that was interrupted
        self._sending = False  # whether it comes to it is being decided
        self._sent = False
        self._kind: Any = Stuck

    def start(self) -> None:
        """From the thread of the loop."""

    def stop(self) -> None:
        """Nobody looks any more."""

    def held_up(self) -> tuple[str, float] | None:
        """Whose code has the loop, and where, and for how many seconds; None if it is not held up."""
        return None

    def run(self, what: Watched, call: Callable[[], T]) -> T:
        """Run code of users. Raises Stuck where it had to be interrupted, otherwise what it raises."""
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
            # Up to the second line nothing of Python's looks for exceptions of other threads; after it two can still come.
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
        """Ask users' classes something, also from within their code. Raises Stuck as `run` does."""
        return self.run(Asked(named), call)

    def _settle(self) -> None:
        """The loop's thread is out: no interruption comes from here on. Raises Stuck where one was sent."""
        while self._sending:
            time.sleep(0.0001)
        self._take_back()
        self.armed = False
        if self._sent:
            self._sent = False
            raise Stuck

    def _take_back(self) -> None: ...


class Watchdog(Watch):
    """A watch at which somebody looks."""

    def __init__(self) -> None:
        super().__init__()
        self._thread_id = 0
        self._stopped = threading.Event()
        self._looked_at = 0.0
        self._seen: tuple[Any, ...] = ()
        self._busy_s = 0.0
        self._is_traced = False

    def start(self) -> None:
        self._thread_id = threading.get_ident()
        self._is_traced = sys.gettrace() is not None
        self._looked_at = time.monotonic()
        threading.Thread(target=self._look_on, name="stepfold-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def held_up(self) -> tuple[str, float] | None:
        what = self.what
        if what is None:
            return None
        now = time.monotonic()
        busy_s = now - self._looked_at + (self._busy_s if self._mark(what) == self._seen else 0.0)
        return f"{what.named()[0]}, at {_said(self._where())}", busy_s

    # -- in the thread

    def _look_on(self) -> None:
        said: tuple[str, dict[str, Any]] | None = None
        asked = 0
        while not self._stopped.wait(LOOK_S):
            now = time.monotonic()
            passed_s = min(now - self._looked_at, 2 * LOOK_S)  # more is a process that was stopped, or a C call that held us all
            self._looked_at = now
            what = self.what
            mark = self._mark(what)
            if what is None or mark != self._seen:
                if said is not None:
                    logger.warning("%s kept the worker's loop busy for %.1f s", said[0], self._busy_s, extra=said[1])
                self._seen, self._busy_s, said, asked = mark, 0.0, None, 0
                continue
            self._busy_s += passed_s
            if self._busy_s >= WARN_S and said is None:
                said = what.named()
                logger.warning(
                    "%s keeps the worker's loop busy for %.1f s now, at %s: everything else waits; what takes long or blocks "
                    "goes into `await step.run(...)` with a plain function",
                    said[0],
                    self._busy_s,
                    _said(self._where()),
                    extra=said[1],
                )
            if self._busy_s >= what.stop_s and not self._traced():
                over_s = self._busy_s - what.stop_s
                if asked == 0 or (asked == 1 and over_s >= INSIST_S):
                    asked += 1
                    self._send(mark, insist=asked == 2)
                elif asked == 2 and over_s >= GIVE_UP_S:
                    asked += 1
                    name, extra = what.named()
                    logger.error(
                        "%s does not give the worker's loop back and cannot be interrupted, at %s; end the process to go on",
                        name,
                        _said(self._where()),
                        extra=extra,
                    )

    def _mark(self, what: Watched | None) -> tuple[Any, ...]:
        return (self.turn, what, what.progress() if what is not None else 0)

    def _traced(self) -> bool:
        """Whether a debugger, or who measures coverage, is at work there: who sits at a breakpoint is not interrupted."""
        return self._is_traced or any(frame.f_trace is not None for frame in self._frames())

    def _where(self) -> tuple[str, ...]:
        return source_of(self._frames())

    def _frames(self) -> Iterator[FrameType]:
        """Of the code that is watched, innermost first."""
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]  # documented for this
        while frame is not None and frame.f_code is not Watch.run.__code__:
            yield frame
            frame = frame.f_back

    def _send(self, mark: tuple[Any, ...], *, insist: bool) -> None:
        kind: Any = type("Stuck", (Stuck,), {})
        if insist:
            kind.__init__ = staticmethod(partial(send_to, self._thread_id, kind))  # no instruction of Python's: it arrives after
        self.lines = self._where()
        self._sending = True
        self.armed = True
        try:
            self._kind = kind
            if self._mark(self.what) == mark:
                self._sent = True
                send_to(self._thread_id, kind)
        finally:
            self._sending = False

    def _take_back(self) -> None:
        _take_back_from(self._thread_id, None)


def _said(lines: tuple[str, ...]) -> str:
    return ", ".join(lines) or "a place that cannot be told"


def _function(argument: Any) -> Callable[[int, Any], None]:
    function: Any = ctypes.pythonapi["PyThreadState_SetAsyncExc"]  # one of our own, not the one that everybody shares
    function.argtypes = (ctypes.c_ulong, argument)
    function.restype = None
    return function


send_to = _function(ctypes.py_object)
"""Raise a class of exceptions in a thread of this id, between two of its instructions."""
_take_back_from = _function(ctypes.c_void_p)
