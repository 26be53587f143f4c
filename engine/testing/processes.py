"""Several processes on one virtual-time loop. A test may pause or kill each at any await.

`Process.start` runs a coroutine as part of a process. All tasks, callbacks and timers that it makes belong to the process,
too, by their context. A paused process gets no turn until it goes on. A killed process never gets a turn again, and none of
its clean-up runs, as after SIGKILL. Code that must outlive it, such as a broker, runs in a context of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Literal, TypeVar, cast

from .virtual import START_MS, VirtualTimeLoop

T = TypeVar("T")

_process: ContextVar[Process] = ContextVar("stepfold_simulated_process")

_NO_TURN = "_clear_awaited_by_callback"
"""A callback of `asyncio.shield` from Python 3.14 on. It does not count as a turn, so that all versions count alike."""


class Process:
    """One process from its start to its death. `skew_ms`, the error of its `clock()`, may be changed at any time.

    The loop calls `on_turn` once, before the `turns`-th turn from now; it may pause or kill the process.
    """

    def __init__(self, loop: ProcessLoop, name: str, skew_ms: int = 0) -> None:
        self.loop = loop
        self.name = name
        self.skew_ms = skew_ms
        self.state: Literal["running", "paused", "dead"] = "running"
        self.stopped = False
        self.turns = 0
        self.on_turn: Callable[[], None] = lambda: None
        self.held: list[asyncio.Handle] = []
        self.remains: set[asyncio.Task[Any]] = set()  # its tasks at its death: garbage collection would run their clean-up
        self.context = copy_context()
        self.context.run(_process.set, self)

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.state}>"

    def clock(self) -> int:
        """The time by this process's clock: milliseconds since 1970, UTC."""
        return self.loop.clock() + self.skew_ms

    def start(self, main: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as part of this process."""
        return self.loop.create_task(main, name=name, context=self.context.copy())

    def pause(self) -> None:
        """Give the process no turns until `resume`; callbacks that are due meanwhile wait."""
        if self.state == "running":
            self.state = "paused"
            self.stopped = True

    def resume(self) -> None:
        """End a pause."""
        if self.state == "paused":
            self.state = "running"
            self.stopped = False
            held, self.held = self.held, []
            self.loop.again(held)

    def kill(self) -> None:
        """Give the process no turns any more."""
        if self.state != "dead":
            self.state = "dead"
            self.stopped = True
            self.remains = asyncio.all_tasks(self.loop)
            self.loop.dead.append(self)


def current_process() -> Process | None:
    """The process that has its turn; None outside any."""
    return _process.get(None)


# For speed, these constructors set the attributes that asyncio's constructors set outside debug mode.


class _Handle(asyncio.Handle):
    __slots__ = ("process",)

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: ProcessLoop, context: Context | None
    ) -> None:
        if context is None:
            context = copy_context()
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None
        self.process = context.get(_process)


class _Timer(asyncio.TimerHandle):
    __slots__ = ("process",)

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: ProcessLoop, context: Context | None
    ) -> None:
        if context is None:
            context = copy_context()
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None
        self._when = when
        self._scheduled = False
        self.process = context.get(_process)


class ProcessLoop(VirtualTimeLoop):
    """A virtual-time loop that gives turns to processes."""

    _ready: Any  # BaseEventLoop's deque of handles
    _stopping: bool

    def __init__(self, start_ms: int = START_MS) -> None:
        super().__init__(start_ms)
        self.dead: list[Process] = []
        self._timers: list[tuple[float, int, _Timer]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """As asyncio's."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """As asyncio's; there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's; timers of the same time run in the order of these calls."""
        self._timers_made += 1
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def again(self, handles: list[asyncio.Handle]) -> None:
        """Make the handles ready that a paused process has missed."""
        self._ready.extend(handles)

    def close(self) -> None:
        """As asyncio's. Also drops the tasks of dead processes; their clean-up runs now, and its errors are ignored."""
        self._timers.clear()
        for process in self.dead:
            process.held.clear()
            for task in process.remains:
                if not task.done():
                    left = cast(Any, task)
                    left._log_destroy_pending = False
                    with contextlib.suppress(BaseException):
                        left.get_coro().close()
        super().close()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                self.select(None)  # raises VirtualDeadlock
            self._now = max(self._now, timers[0][0])
        end = self._now + self._clock_resolution
        while timers and timers[0][0] < end:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle.process
            if process is not None:
                if process.turns and getattr(handle._callback, "__name__", "") != _NO_TURN:
                    process.turns -= 1
                    if not process.turns and not process.stopped:
                        process.on_turn()
                if process.stopped:
                    process.held.append(handle)
                    continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  # as asyncio's Handle does
                self.call_exception_handler({"message": f"Exception in {handle!r}", "exception": error, "handle": handle})
            if process is not None and process.stopped and process.state == "dead":  # it died during its turn
                process.remains |= asyncio.all_tasks(self)
