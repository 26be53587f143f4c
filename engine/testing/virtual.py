"""Virtual time: an asyncio event loop that jumps to the next timer instead of waiting for it.

The whole engine runs on it, with the memory log, in one thread: years of timers pass in seconds, and the same program
does the same things in the same order each time (tasks and futures hash by creation number, as in a workflow).
The loop has no sockets, and runs functions for other threads inline. When nothing can happen any more, it does not wait for
ever but raises `VirtualDeadlock`, which says what each run and each task waits for.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
import os
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar, cast

from ..client.status import waiting_words
from ..replay.frames import frames_of
from ..replay.futures import DeterministicFuture, DeterministicTask
from ..worker.owner.owner import Owner

T = TypeVar("T")

_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep

START_MS = 1_893_456_000_000
"""2030-01-01T00:00Z, in milliseconds since 1970."""

HORIZON_S = 10_000 * 366 * 86_400.0
"""Ten times the longest sleep. A timer beyond it is never due."""
SAID_RUNS = 5
RESOLUTION_S = 1e-6
"""Timers within this time are due together. It must not be below the precision of a float that holds years (`select` raises it
after centuries), or the loop would wait for a timer for ever."""


class VirtualDeadlock(RuntimeError):
    """Nothing is ready, no timer is set, and yet the program has not ended."""


class _Timer(asyncio.TimerHandle):
    __slots__ = ("number",)

    def __init__(self, number: int, *args: Any) -> None:
        super().__init__(*args)
        self.number = number

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return (self.when(), self.number) < (other.when(), cast("_Timer", other).number)


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An event loop whose `time()` starts at 0 and moves only when nothing is ready, straight to the next timer.

    `start_ms`: the value of `clock()` at time 0, in milliseconds since 1970, UTC.
    """

    virtual = True  # tells the engine to use nothing that takes real time, such as a thread
    _scheduled: list[asyncio.TimerHandle]  # BaseEventLoop's heap

    def __init__(self, start_ms: int = START_MS) -> None:
        super().__init__()
        self.start_ms = start_ms
        self._now = 0.0
        self._timers_made = 0
        self._futures_made = 0
        self._tasks_made = 0
        self._selector = self  # BaseEventLoop calls `select` on it between two rounds
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def clock(self) -> int:
        """The virtual date: milliseconds since 1970, UTC."""
        # A microsecond of tolerance: 0.3 s made of 0.1 s and 0.2 s is 300 ms.
        return self.start_ms + math.floor(self._now * 1000 + 0.001)

    def select(self, timeout: float | None) -> list[Any]:
        """Jump to the next timer. Raises VirtualDeadlock if there is none."""
        if timeout is None or (timeout > 0 and self._scheduled[0].when() > HORIZON_S):
            raise VirtualDeadlock(self._what_is_waited_for())
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when())
            self._clock_resolution = max(RESOLUTION_S, 2 * math.ulp(self._now))
        return []

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's; timers of the same time run in the order of these calls."""
        self._timers_made += 1
        timer = _Timer(self._timers_made, when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def create_future(self) -> DeterministicFuture[Any]:
        """As asyncio's; it hashes by creation number."""
        future: DeterministicFuture[Any] = DeterministicFuture(loop=self)
        future.creation_hash = self.next_future_hash()
        return future

    def next_future_hash(self) -> int:
        """The hash for a future that asyncio makes without `create_future`."""
        self._futures_made += 1
        return self._futures_made

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_: object,
    ) -> DeterministicTask[T]:
        """As asyncio's; it never starts eagerly."""
        self._tasks_made += 1
        name = f"Task-{self._tasks_made}" if name is None else str(name)
        return DeterministicTask(coro, creation_hash=self._tasks_made, loop=self, name=name, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run the function now, in this thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # as an executor returns it
            future.set_exception(error)
        return future

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def _what_is_waited_for(self) -> str:
        runs = self._where_runs_wait()
        if runs:
            more = f"; and {len(runs) - SAID_RUNS} more runs" if len(runs) > SAID_RUNS else ""
            return f"nothing is left to do: {'; '.join(runs[:SAID_RUNS])}{more}. {self._where_tasks_wait()}"
        return f"nothing is ready and no timer is set, so nothing can happen any more. {self._where_tasks_wait()}"

    def _where_runs_wait(self) -> list[str]:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        owners = dict.fromkeys(frame.f_locals.get("self") for task in tasks for frame in frames_of(task))
        return [
            f"run {run.id} waits for {', '.join(waiting_words(run, owned=True))}"
            for owner in owners
            if isinstance(owner, Owner) and owner.active and owner.state is not None
            for run in map(owner.state.runs.peek, owner.state.runs.ids())
        ]

    def _where_tasks_wait(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        waits = (f"\n  {task.get_name()} at {_line(task)}" for task in tasks if not task.get_name().startswith("stepfold-"))
        return f"These tasks wait:{''.join(waits)}"


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: VirtualTimeLoop, *args: Any, **options: Any) -> Any:
        raise RuntimeError(
            f"virtual time has no sockets, pipes, processes or signals, and this asks for loop.{name}: run it in real time "
            f"(asyncio.run), or put something that needs none in its place"
        )

    refuse.__name__ = name
    return refuse


_REAL = ("add_", "connect_", "create_", "remove_", "sendfile", "sock_", "start_tls", "subprocess_")
for _name in dir(asyncio.AbstractEventLoop):
    if _name.startswith(_REAL) and _name not in vars(VirtualTimeLoop):
        setattr(VirtualTimeLoop, _name, _refusing(_name))


def _line(task: asyncio.Task[Any]) -> str:
    """The line where a task waits: the innermost one that is not asyncio's."""
    lines = [f"{f.f_code.co_filename}:{f.f_lineno}" for f in frames_of(task) if not f.f_code.co_filename.startswith(_ASYNCIO)]
    return lines[-1] if lines else "its beginning"


def run_virtual(main: Coroutine[Any, Any, T], *, start_ms: int = START_MS) -> T:
    """As `asyncio.run`, in virtual time. Raises `VirtualDeadlock` if nothing can happen any more before `main` ends."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start_ms)) as runner:
        return runner.run(main)


def virtual_clock() -> int:
    """The virtual date, in milliseconds since 1970, for `MemoryDriver(clock=virtual_clock)`. Raises RuntimeError in real time."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise RuntimeError("virtual_clock tells the time of run_virtual, and this runs in real time")
    return loop.clock()
