"""The event loop that workflow code runs on: plain asyncio, in an order that every process repeats.

The loop does no I/O, reads no clock and starts no thread. The owner of the loop sets its time (`now_ms`, the time of the
log). The loop reports timers to the owner, which makes them durable and fires them. The owner alternates: it delivers one
event (resolves a future or fires a timer), then calls `run_until_idle`.

The order is the same everywhere because of these rules:
- callbacks run first in, first out;
- `asyncio.wait`, `as_completed`, `TaskGroup` and `all_tasks` iterate sets, so tasks and futures hash by creation number;
- every call that reaches outside (sockets, threads, processes, signals) raises `NonDeterminism`. The loop keeps the error in
  `violations`, so that the owner sees it even if the code swallows it.

The loop runs nested in the worker's loop: it is the running loop only while `run_until_idle` is on the stack.

Importing this module changes asyncio for the whole process: it replaces the hash of the future that `asyncio.gather` returns
(see the end of the module). Futures of other loops keep the usual hash.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import math
import os
import sys
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from pathlib import Path
from types import CodeType, CoroutineType, FrameType
from typing import Any, NamedTuple, TypeVar, cast

from ..errors import NonDeterminism
from .contexts import contexts

T = TypeVar("T")

_getframe = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; inspect.currentframe is slower
_get_running_loop = asyncio.events._get_running_loop
_set_running_loop = asyncio.events._set_running_loop
# From 3.14 on the current task belongs to the thread, not to the loop: put the worker's task aside while this loop runs.
_swap_current_task: Callable[[Any, Any], Any] = (
    vars(asyncio.tasks)["_swap_current_task"] if sys.version_info >= (3, 14) else lambda loop, task: None
)
_enter_task: Callable[[Any, Any], None] = vars(asyncio.tasks)["_enter_task"]
_leave_task: Callable[[Any, Any], None] = vars(asyncio.tasks)["_leave_task"]
# From 3.14 on a future knows the tasks that wait for it, and forgets a task only when the task runs again.
_forget_waiter: Callable[[asyncio.Future[Any], asyncio.Task[Any]], None] = (
    vars(asyncio.futures)["future_discard_from_awaited_by"] if sys.version_info >= (3, 14) else lambda future, task: None
)

ENGINE = str(Path(__file__).parents[1]) + os.sep
_STDLIB = str(Path(os.__file__).parent) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

_KEPT = 100
"""The limit for the violations, and for the unhandled errors, that a loop keeps. The first one matters most."""


_ANOTHER_RUN = "by the code of another run"
_NOTHING: tuple[Any, Any, Any, Any] = (None, None, None, None)


def _copied() -> contextvars.Context:
    return contexts()()


class Host(NamedTuple):
    """The surroundings of a loop.

    `from_keyboard`: whether an error is a KeyboardInterrupt that must end the process. `wake`: makes the owner call `check`;
    any thread may call it. `max_turns`: the limit of callbacks for one `run_until_idle`. `context`: makes the run's context.
    """

    from_keyboard: Callable[[BaseException], bool]
    wake: Callable[[], None]
    max_turns: int = 1_000_000
    context: Callable[[], contextvars.Context] = _copied


def _is_keyboard_interrupt(error: BaseException) -> bool:
    return type(error) is KeyboardInterrupt


HOST = Host(_is_keyboard_interrupt, lambda: None)
"""The host of a loop without a worker."""


class Unhandled(NamedTuple):
    """An exception that no code has handled: of a callback, or of a task whose outcome no code has read."""

    message: str
    error: BaseException | None


class Handle:
    """A callback in the ready queue."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def get_context(self) -> contextvars.Context:
        return self.context


class Timer(Handle):
    """A durable timer, which the code made directly or through `sleep`, `timeout`, `wait_for` and the like.

    `number` counts the timers of the loop from 1. `delay_s`: seconds from the loop's time at its making, above 0. (A timer
    without a delay has number 0 and is not durable.)
    """

    __slots__ = ("_loop", "_when", "delay_s", "fired", "number", "reported")

    def __init__(
        self,
        loop: DeterministicLoop,
        number: int,
        delay_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        super().__init__(callback, args, context)
        self._loop = loop
        self._when = loop.time() + delay_s
        self.number = number
        self.delay_s = delay_s
        self.reported = False
        self.fired = False

    @property
    def id(self) -> str:
        """`@timer`, `@timer#2`, …"""
        return "@timer" if self.number == 1 else f"@timer#{self.number}"

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        # Python 3.11 cancels the handle of a timer that has fired, later versions do not. Both must behave alike.
        if self.callback is not None and self.reported and not self.fired:
            self._loop.timer_cancelled(self)
        super().cancel()


def _seconds(number: float) -> float:
    """The number as a float; infinity means for ever. Raises ValueError for NaN, TypeError for an object that is not a number."""
    try:
        number = float(number)
    except OverflowError:  # an int of 400 digits
        number = math.inf if number > 0 else -math.inf
    if math.isnan(number):
        raise ValueError("a time must be a number of seconds, not NaN")
    return number


class DeterministicFuture(asyncio.Future[T]):
    """A future that hashes by its creation number."""

    __slots__ = ("creation_hash",)

    creation_hash: int

    def __hash__(self) -> int:
        return self.creation_hash


class DeterministicTask(asyncio.Task[T]):
    """A task that hashes by its creation number.

    `shielded` counts the shields around it. While it is above 0, the cancellation of the run does not reach the task, not even
    through `gather` or a `TaskGroup`. A task that is made inside a shield is shielded from its beginning.
    """

    __slots__ = ("creation_hash", "shielded")

    creation_hash: int
    shielded: int

    def __init__(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        creation_hash: int,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: contextvars.Context | None = None,
        shielded: int = 0,
    ) -> None:
        # First: asyncio's constructor adds the task to a set.
        self.creation_hash = creation_hash
        self.shielded = shielded
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self.creation_hash

    def cancel(self, msg: Any = None) -> bool:
        if self.shielded and cast("DeterministicLoop", self.get_loop()).pressing:
            return False
        return super().cancel(msg)

    @property
    def waits_for(self) -> asyncio.Future[Any] | None:
        """The future that a blocked task waits for."""
        return getattr(self, "_fut_waiter", None)


class DeterministicLoop(asyncio.AbstractEventLoop):
    """The event loop of one run.

    `seed` (the run id) only spreads the hashes of many runs' tasks over asyncio's process-wide set of tasks.

    When the loop becomes idle, it calls `on_timer_cancelled` for every reported timer that the code has cancelled since, in
    the order of cancelling, and then `on_timer` for every new timer that is not cancelled, in the order of creation.
    """

    def __init__(
        self,
        seed: str,
        on_timer: Callable[[Timer], None],
        on_timer_cancelled: Callable[[Timer], None],
        host: Host = HOST,
    ) -> None:
        self.now_ms = 0
        self.host = host
        self.attended = True  # the owner is at work; a callback that becomes ready at another time comes from outside the run
        self.pressing = False  # tasks are being cancelled because the run is; shielded tasks ignore that
        self.violations: list[NonDeterminism] = []
        self.unhandled: list[Unhandled] = []
        self._on_timer = on_timer
        self._on_timer_cancelled = on_timer_cancelled
        self._ready: list[Handle] = []
        self._new_timers: list[Timer] = []
        self._cancelled_timers: list[Timer] = []
        self._timers_made = 0
        # The low bits are a counter, so that a small set iterates in the order of creation for every seed.
        self._task_hash = self._future_hash = self._hash_base = zlib.crc32(seed.encode("utf-8", "surrogatepass")) << 12
        self._tasks: list[DeterministicTask[Any]] = []
        self._prune_at = 16
        self._running = False
        self._outer = _NOTHING  # while it runs: the outer loop, its task and its two async generator hooks
        self._abandoned = False
        self.foreign = ""  # the cause outside the run that has made a callback ready, in words

    # Called by the owner.

    def check(self) -> None:
        """Raise the first violation, if there is any."""
        if self.foreign and not self.violations:
            frames = [frame for task in self.blocked_tasks()[:1] for frame in reversed(list(frames_of(task)))]
            if self.foreign == _ANOTHER_RUN:
                self.shared(frames)
            else:
                self._violation(
                    f"an awaitable of workflow code was completed {self.foreign}, outside of the history, so no replay repeats "
                    "it; move that work into `await step.run(...)` and use what it returns",
                    frames,
                    found=f"a wake-up {self.foreign}",
                )
        if self.violations:
            raise self.violations[0]

    def run_until_idle(self) -> None:
        """Run callbacks until none is ready; then report the timers.

        Raises `NonDeterminism` after `max_turns` callbacks: the code spins without awaiting anything durable. After that, and
        after a KeyboardInterrupt from the keyboard, the owner can only abandon the run.
        """
        if self._running:
            raise RuntimeError("this loop is already running")
        left = self.host.max_turns
        outer = _get_running_loop()
        outer_task = _swap_current_task(outer, None) if outer is not None else None
        first_iteration, finalizer = sys.get_asyncgen_hooks()  # unpacked: the garbage collector does not look into the pair
        self._outer = (outer, outer_task, first_iteration, finalizer)
        self._running = True
        try:
            _set_running_loop(self)
            sys.set_asyncgen_hooks(None, self._close_generator)
            while batch := self._ready:
                self._ready = []
                left -= len(batch)
                if left < 0:
                    raise self._spins(batch)
                for handle in batch:
                    callback = handle.callback
                    if callback is not None:
                        try:
                            handle.context.run(callback, *handle.args)
                        except BaseException as error:  # SystemExit too: a workflow may not stop its worker
                            if type(error) is KeyboardInterrupt and self.host.from_keyboard(error):
                                raise
                            self._collect("exception in a callback", error)
                # The traceback of a kept error keeps this frame alive, so release the callbacks.
                batch.clear()
                handle = callback = None
        finally:  # as in `leave`
            sys.set_asyncgen_hooks(first_iteration, finalizer)
            _set_running_loop(outer)
            if outer is not None:
                _swap_current_task(outer, outer_task)
            self._running = False
            self._outer = _NOTHING
        if (self._cancelled_timers or self._new_timers) and not self._abandoned:
            self._report_timers()

    def leave(self) -> None:
        """Restore the outer loop, task and hooks. The owner calls this after an exception from outside has cut a turn short."""
        if self._running:
            outer, outer_task, first_iteration, finalizer = self._outer
            sys.set_asyncgen_hooks(first_iteration, finalizer)
            _set_running_loop(outer)
            if outer is not None:
                _swap_current_task(outer, outer_task)
            self._running = False
            self._outer = _NOTHING  # last, so that the owner can call this again if it is cut short, too

    def fire(self, timer: Timer) -> None:
        """Make a timer's callback ready. Does nothing if the timer was fired or cancelled."""
        if timer.callback is not None and not timer.fired and not self._abandoned:
            timer.fired = True
            self._ready.append(timer)

    def blocked_tasks(self) -> list[DeterministicTask[Any]]:
        """The tasks that are not done, in the order of creation."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return list(self._tasks)

    def abandon(self, context: contextvars.Context | None = None) -> None:
        """Drop the run from memory, quietly. Its `finally` blocks run in `context`, but nothing that they await ever comes.

        Also for an ended run: this frees its memory without the garbage collector. Idempotent.
        """
        if self._running:
            raise RuntimeError("a loop cannot be abandoned while it runs")
        tasks = self.blocked_tasks()
        self._abandoned = True
        self._on_timer = self._on_timer_cancelled = _nobody
        self._tasks = []
        context = contextvars.copy_context() if context is None else context
        self._ready = [Handle(_close, (task,), context) for task in reversed(tasks)]
        if tasks:
            self.run_until_idle()
        self._new_timers, self._cancelled_timers, self.unhandled, self.violations = [], [], [], []
        self.host = HOST  # code that never stops stays in memory, and must not keep the worker there

    @property
    def abandoned(self) -> bool:
        return self._abandoned

    def timer_cancelled(self, timer: Timer) -> None:
        """Called by `Timer`: the code has cancelled a reported timer."""
        self._cancelled_timers.append(timer)

    # Called by asyncio and by the workflow.

    def time(self) -> float:
        return self.now_ms / 1000

    def call_soon(  # pyright: ignore[reportIncompatibleMethodOverride]  # returns a lighter handle
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        if not self._abandoned:
            if not self._running and not self.attended:
                self._woken_from_outside()
            if not args and type(callback).__name__ == "TaskStepMethWrapper":
                self._check_step(callback)
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # pyright: ignore[reportIncompatibleMethodOverride]  # returns a lighter handle
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        if _get_running_loop() is self:
            return self.call_soon(callback, *args, context=context)
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context)
        handle.cancel()  # no error here: the calling thread could not report it; `check` raises it in the run
        if not self._abandoned:
            self.foreign = "by another thread"
            self.host.wake()
        return handle

    def call_later(  # pyright: ignore[reportIncompatibleMethodOverride]  # returns a lighter handle
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Timer:
        delay = _seconds(delay)
        if context is None:
            context = contextvars.copy_context()
        if delay <= 0:
            timer = Timer(self, 0, 0.0, callback, args, context)
            self.fire(timer)
            return timer
        self._timers_made += 1
        timer = Timer(self, self._timers_made, delay, callback, args, context)
        self._new_timers.append(timer)
        return timer

    def call_at(  # pyright: ignore[reportIncompatibleMethodOverride]  # returns a lighter handle
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Timer:
        when = _seconds(when)
        # Round to microseconds: the digits below are noise of the subtraction.
        return self.call_later(round(when - self.time(), 6) if math.isfinite(when) else when, callback, *args, context=context)

    def create_future(self) -> DeterministicFuture[Any]:
        future: DeterministicFuture[Any] = DeterministicFuture(loop=self)
        self._future_hash += 1
        future.creation_hash = self._future_hash
        return future

    def next_future_hash(self) -> int:
        """The hash for a future that asyncio makes without `create_future`."""
        self._future_hash += 1
        return self._future_hash

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        eager_start: bool | None = None,
    ) -> DeterministicTask[T]:
        """As asyncio's, but `eager_start` has no effect, so that the order is the same in every version of Python."""
        caller = _getframe(1).f_code
        if self._abandoned:
            coro.close()
        elif caller is _ENSURE_FUTURE or caller is _ENSURE_FUTURE_311:
            self._refuse_as_completed(coro)
        self._task_hash += 1
        task = DeterministicTask(
            coro,
            creation_hash=self._task_hash,
            loop=self,
            name=f"Task-{self._task_hash - self._hash_base}" if name is None else str(name),
            context=context,
            shielded=getattr(asyncio.current_task(self), "shielded", 0) if self._running else 0,
        )
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._prune_at = max(16, 2 * len(self.blocked_tasks()))
        return task

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._abandoned

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._collect(str(context.get("message", "")), context.get("exception"))

    default_exception_handler = call_exception_handler

    def refusal(self, call: str) -> NonDeterminism:
        """The error for a call that a workflow's loop does not serve. Adds it to the violations."""
        what = next((what for prefix, what in _REAL.items() if call.startswith(prefix)), None)
        if what is None:
            message = (
                f"workflow code called loop.{call}; its event loop is stepfold's, and real work goes into `await step.run(...)`"
            )
        else:
            message = f"workflow code called loop.{call} ({what}) outside a step; move it into `await step.run(...)`"
        return self._violation(message, found=f"loop.{call}")

    def client_refusal(self) -> NonDeterminism:
        """The error for a call of a client's method, which each replay would repeat. Adds it to the violations."""
        return self._violation(
            "workflow code called a client, and each replay would repeat the call: signal another run by `await "
            "step.send_signal(...)`, and do anything else in a step, such as "
            '`await step.run("start", start)` with `async def start(): await client.start_workflow(...)`',
            found="a call of a client",
        )

    def shared(self, frames: Iterable[FrameType]) -> NonDeterminism:
        """The error for an asyncio object that several runs or loops use. Adds it to the violations."""
        return self._violation(
            "workflow code uses an asyncio lock, semaphore, event, queue or future that belongs to another run (or event loop) "
            "and cannot wake this run; create it inside the workflow",
            frames,
            found="an object of another event loop",
        )

    # Inside.

    def _woken_from_outside(self) -> None:
        there = _get_running_loop()
        if isinstance(there, DeterministicLoop):
            there.shared(_stack())
            self.foreign = _ANOTHER_RUN
        else:
            self.foreign = "by a step, or other code outside the workflow"
        self.host.wake()

    def _spins(self, batch: list[Handle]) -> NonDeterminism:
        """The error for code that never becomes idle, with the line of a task that is about to run again."""
        turns = [handle.callback for handle in batch]
        batch.clear()
        held = {id(one) for turn in turns for one in gc.get_referents(turn)}
        tasks = [task for task in self.blocked_tasks() if id(task) in held] or self.blocked_tasks()
        return self._violation(
            f"workflow code ran {self.host.max_turns} callbacks without awaiting anything durable: it spins; "
            f"await a step, a sleep or a signal in the loop",
            [frame for task in tasks[:1] for frame in reversed(list(frames_of(task)))],
            found="a loop that awaits nothing durable",
        )

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        # The code has left an async generator half-way. If the code is not running, the garbage collector came upon the generator
        # at a time that no replay repeats, so it is not closed.
        if self._running and not self._abandoned:
            self.create_task(generator.aclose())

    def _report_timers(self) -> None:
        if self._cancelled_timers:
            cancelled, self._cancelled_timers = self._cancelled_timers, []
            for timer in cancelled:
                self._on_timer_cancelled(timer)
        if self._new_timers:
            new, self._new_timers = self._new_timers, []
            for timer in new:
                if timer.callback is not None:
                    timer.reported = True
                    self._on_timer(timer)

    def _collect(self, message: str, error: BaseException | None) -> None:
        if not self._abandoned and len(self.unhandled) < _KEPT:
            self.unhandled.append(Unhandled(message, error))

    def _violation(self, message: str, frames: Iterable[FrameType] | None = None, found: str = "") -> NonDeterminism:
        source = source_of(_stack() if frames is None else frames)
        at = f" (at {source[0]})" if source else ""
        error = NonDeterminism(message + at, found=found, source=source)
        if len(self.violations) < _KEPT:
            self.violations.append(error)
        return error

    def _check_step(self, step: Callable[..., object]) -> None:
        # `step` is the C object that continues a task. It refers to the task, and to the error to throw into the task, if any.
        task: Any = None
        error: RuntimeError | None = None
        for held in gc.get_referents(step):
            if type(held) is DeterministicTask:
                task = cast("DeterministicTask[Any]", held)
            elif isinstance(held, RuntimeError):
                error = held
        if task is None:
            raise self._violation(
                "workflow code called asyncio.Task; such a task cannot be ordered: use asyncio.create_task", found="asyncio.Task"
            )
        if error is not None and ("different loop" in str(error) or "bad yield" in str(error)):
            violation = self._violation(
                "workflow code awaited something that belongs to another event loop (a connection, a client, a task of the "
                "worker) outside a step; move it into `await step.run(...)`",
                reversed(list(frames_of(task))),
                found="an awaitable of another event loop",
            )
            error.args = (str(violation),)
            error.__cause__ = violation

    def _refuse_as_completed(self, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any]) -> None:
        frame: FrameType | None = _getframe(2)
        while frame is not None and frame.f_code.co_filename == asyncio.tasks.__file__:
            if frame.f_code in _AS_COMPLETED:
                coro.close()
                raise self._violation(
                    "asyncio.as_completed over coroutines starts them in an order that differs between processes; pass tasks: "
                    "asyncio.as_completed([asyncio.create_task(c) for c in coroutines])",
                    found="asyncio.as_completed over coroutines",
                )
            frame = frame.f_back


def _code(name: str) -> CodeType | None:
    function = getattr(asyncio.tasks, name, None)
    return getattr(function.__init__ if isinstance(function, type) else function, "__code__", None)


_ENSURE_FUTURE = _code("ensure_future")
_ENSURE_FUTURE_311 = _code("_ensure_future")
_AS_COMPLETED = (_code("as_completed"), _code("_AsCompletedIterator"))


def _nobody(timer: Timer) -> None:
    """Ignore a timer of an abandoned run."""


def _close(task: asyncio.Task[Any]) -> None:
    coro: Any = task.get_coro()
    chain: list[Coroutine[Any, Any, Any]] = [coro]
    while isinstance(coro := getattr(coro, "cr_await", None), CoroutineType):
        chain.append(cast("Coroutine[Any, Any, Any]", coro))
    # Make it the current task: without one, asyncio.timeout and the like raise, and code that catches everything never ends.
    loop = task.get_loop()
    _enter_task(loop, task)
    try:
        # Innermost first: Python closes an awaited coroutine only once, and complains if it goes on.
        while chain and _stops(chain[-1]):
            del chain[-1]
    finally:
        _leave_task(loop, task)
    if chain:
        keep_for_ever(chain[0])
        return
    # The future and the task refer to each other: break the cycle.
    waiter: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        waiter.cancel()
        _forget_waiter(waiter, task)
    _tell_others(task)


def _tell_others(task: asyncio.Task[Any]) -> None:
    """Call the done callbacks that are not asyncio's: a library may stop a thread of the task in one."""
    for callback, context in getattr(task, "_callbacks", None) or ():
        if (getattr(callback, "__module__", None) or "_asyncio").partition(".")[0] not in ("asyncio", "_asyncio"):
            with contextlib.suppress(BaseException):  # the callback may read the task's outcome, and there is none
                context.run(callback, task)


def _stops(coro: Coroutine[Any, Any, Any]) -> bool:
    # Code that catches everything and awaits again needs several errors to stop.
    for _ in range(100):
        try:
            awaited: Any = coro.throw(GeneratorExit)
        except BaseException:  # noqa: BLE001  # stopped; no code is left that could handle the error
            return True
        if isinstance(awaited, asyncio.Future):
            awaited._asyncio_future_blocking = False  # as a task does, so that the code can await it again
    return False


def keep_for_ever(coro: Coroutine[Any, Any, Any]) -> None:
    """Keep code that never stops in memory. Before Python frees a coroutine, at the latest when the process ends, it throws
    GeneratorExit into it, and would then wait for ever."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coro))


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = _getframe(1)
    while frame is not None and frame.f_code is not DeterministicLoop.run_until_idle.__code__:  # outside it are worker frames
        yield frame
        frame = frame.f_back


def frames_of(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a suspended task, outermost first."""
    coro: Any = task.get_coro()
    while isinstance(coro, CoroutineType) and coro.cr_frame is not None:
        yield coro.cr_frame
        coro = coro.cr_await


def frames_of_traceback(error: BaseException) -> list[FrameType]:
    """The frames of an error's traceback, innermost first."""
    frames: list[FrameType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames[::-1]


def source_of(frames: Iterable[FrameType]) -> tuple[str, ...]:
    """The user's lines, as `file:line`: the innermost one and, if that is in an installed package, the innermost one outside.

    Skips code that was made from a string, such as the methods of named tuples.
    """
    lines: list[str] = []
    for frame in frames:
        file = frame.f_code.co_filename
        installed = any(part in file for part in _PACKAGES)
        if file.startswith((ENGINE, "<frozen", "<string>")) or (file.startswith(_STDLIB) and not installed):
            continue
        if not lines or not installed:
            lines.append(f"{file}:{frame.f_lineno}")
        if not installed:
            break
    return tuple(lines)


# By prefix, so that the methods of later versions of Python match, too.
_REAL = {
    "add_signal": "a signal",
    "remove_signal": "a signal",
    "add_": "a file descriptor",
    "remove_": "a file descriptor",
    "call_soon_threadsafe": "from another thread",
    "connect_": "a pipe",
    "create_": "a socket",
    "getaddrinfo": "a name look-up",
    "getnameinfo": "a name look-up",
    "run_in_executor": "a thread",
    "run_": "another run of an event loop",
    "sendfile": "a file and a socket",
    "sock_": "a socket",
    "start_tls": "a socket",
    "subprocess_": "a process",
}


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: DeterministicLoop, *args: Any, **options: Any) -> Any:
        # Code that catches the error and tries again for ever gets a future that never ends.
        if self.abandoned or len(self.violations) >= _KEPT:
            return self.create_future()
        raise self.refusal(name)

    return refuse


# Every other method of an event loop refuses, including those that later versions of Python add.
for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in DeterministicLoop.__dict__:
        setattr(DeterministicLoop, _name, _refusing(_name))


def _gathering_hash(future: Any) -> int:
    # `asyncio.gather` makes its future without `create_future`: with the usual hash its place in a set would be random.
    found: int | None = getattr(future, "creation_hash", None)
    if found is None:
        number: Callable[[], int] | None = getattr(future.get_loop(), "next_future_hash", None)
        found = future.creation_hash = object.__hash__(future) if number is None else number()
    return found


# For the whole process: asyncio has no other way to set the hash of this future.
vars(asyncio.tasks)["_GatheringFuture"].__hash__ = _gathering_hash
