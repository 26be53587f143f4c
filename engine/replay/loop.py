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

Importing this module changes asyncio for the whole process: see `futures`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import sys
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar, cast

from ..errors import NonDeterminism
from . import refusals
from .closing import close_task
from .contexts import contexts
from .frames import frames_of
from .futures import DeterministicFuture, DeterministicTask
from .handles import Handle, Timer
from .refusals import CodeRefusal

T = TypeVar("T")

_getframe = sys._getframe  # pyright: ignore[reportPrivateUsage]  # documented; inspect.currentframe is slower
_get_running_loop = asyncio.events._get_running_loop
_set_running_loop = asyncio.events._set_running_loop
# From 3.14 on the current task belongs to the thread, not to the loop: put the worker's task aside while this loop runs.
_swap_current_task: Callable[[Any, Any], Any] = (
    vars(asyncio.tasks)["_swap_current_task"] if sys.version_info >= (3, 14) else lambda loop, task: None
)


def set_loop_aside() -> tuple[Any, Any]:
    """Leave the thread without a running loop and a current task. `bring_loop_back` takes what this returns."""
    outer = _get_running_loop()
    outer_task = _swap_current_task(outer, None) if outer is not None else None
    _set_running_loop(None)
    return outer, outer_task


def bring_loop_back(outer: Any, outer_task: Any) -> None:
    _set_running_loop(outer)
    if outer is not None:
        _swap_current_task(outer, outer_task)


_KEPT = 100
"""The limit for the violations, and for the unhandled errors, that a loop keeps. The first one matters most."""


_ANOTHER_RUN = "by the code of another run"
_NOTHING: tuple[Any, Any, Any, Any] = (None, None, None, None)


def _copied() -> contextvars.Context:
    return contexts()()


class Host(NamedTuple):
    """The surroundings of a loop.

    `from_keyboard`: whether an error is a KeyboardInterrupt that must end the process. `wake`: makes the owner call `check`;
    any thread may call it. `max_turns`: the limit of callbacks until the loop is idle. `context`: makes the run's context.
    `max_told`: after how many things that the code tells in one turn the loop pauses; None: never.
    """

    from_keyboard: Callable[[BaseException], bool]
    wake: Callable[[], None]
    max_turns: int = 1_000_000
    context: Callable[[], contextvars.Context] = _copied
    max_told: int | None = None


def _is_keyboard_interrupt(error: BaseException) -> bool:
    return type(error) is KeyboardInterrupt


HOST = Host(_is_keyboard_interrupt, lambda: None)
"""The host of a loop without a worker."""


class Unhandled(NamedTuple):
    """An exception that no code has handled: of a callback, or of a task whose outcome no code has read."""

    message: str
    error: BaseException | None


def _seconds(number: float) -> float:
    """The number as a float; infinity means for ever. Raises ValueError for NaN, TypeError for an object that is not a number."""
    try:
        number = float(number)
    except OverflowError:  # an int of 400 digits
        number = math.inf if number > 0 else -math.inf
    if math.isnan(number):
        raise ValueError("a time must be a number of seconds, not NaN")
    return number


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
        self.paused = False  # callbacks are ready, and wait for the next `run_until_idle`
        self._left = 0  # of `max_turns`
        self._running = False
        self._outer = _NOTHING  # while it runs: the outer loop, its task and its two async generator hooks
        self._abandoned = False
        self.asked = False  # a query reads the state of the code: nothing may be requested any more
        self.foreign = ""  # the cause outside the run that has made a callback ready, in words

    # Called by the owner.

    def check(self) -> None:
        """Raise the first violation, if there is any."""
        if self.foreign and not self.violations:
            frames = [frame for task in self.blocked_tasks()[:1] for frame in reversed(list(frames_of(task)))]
            self._violation(refusals.SHARED if self.foreign == _ANOTHER_RUN else refusals.woken(self.foreign), frames)
        if self.violations:
            raise self.violations[0]

    def run_until_idle(self) -> None:
        """Run callbacks until none is ready; then report the timers. Pauses behind the callback that called `pause`.

        Raises `NonDeterminism` after `max_turns` callbacks: the code spins without awaiting anything durable. After that, and
        after a KeyboardInterrupt from the keyboard, the owner can only abandon the run.
        """
        if self._running:
            raise RuntimeError("this loop is already running")
        left = self._left if self.paused else self.host.max_turns
        self.paused = False
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
                    if self.paused:
                        rest = batch[next(at for at, one in enumerate(batch, 1) if one is handle) :]
                        self._left = left + len(rest)
                        self._ready[:0] = rest
                        break
                # The traceback of a kept error keeps this frame alive, so release the callbacks.
                batch.clear()
                handle = callback = None
                if self.paused:
                    return
        finally:  # as in `leave`
            sys.set_asyncgen_hooks(first_iteration, finalizer)
            _set_running_loop(outer)
            if outer is not None:
                _swap_current_task(outer, outer_task)
            self._running = False
            self._outer = _NOTHING
        if (self._cancelled_timers or self._new_timers) and not self._abandoned:
            self._report_timers()

    def pause(self) -> None:
        """Called by the running code: let the owner work before the next callback. Changes nothing in the order of callbacks."""
        self.paused = not self._abandoned

    def within(self, context: contextvars.Context, call: Callable[..., T], *args: Any) -> T:
        """Call a function that may call users' classes: they find this loop, and no task of the worker that they could cancel."""
        outer = _get_running_loop()
        outer_task = _swap_current_task(outer, None) if outer is not None else None
        self._outer = (outer, outer_task, *sys.get_asyncgen_hooks())
        self._running = True
        try:
            _set_running_loop(self)
            return context.run(call, *args)
        finally:
            self.leave()

    def leave(self) -> None:
        """Restore the outer loop, task and hooks. The owner calls this after an exception from outside has cut a turn short."""
        if self._running:
            outer, outer_task, first_iteration, finalizer = self._outer
            sys.set_asyncgen_hooks(first_iteration, finalizer)
            bring_loop_back(outer, outer_task)
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
        self.pressing = False
        self._on_timer = self._on_timer_cancelled = _nobody
        self._tasks = []
        context = contextvars.copy_context() if context is None else context
        self._ready = [Handle(close_task, (task,), context) for task in reversed(tasks)]
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
        return self._violation(refusals.call_of_loop(call))

    def client_refusal(self) -> NonDeterminism:
        """The error for a call of a client's method, which each replay would repeat. Adds it to the violations."""
        return self._violation(refusals.CLIENT)

    def query_refusal(self, asked: str) -> NonDeterminism:
        """The error for a request while a query reads the state of the code. Adds it to the violations."""
        return self._violation(refusals.in_query(asked))

    def shared(self, frames: Iterable[FrameType]) -> NonDeterminism:
        """The error for an asyncio object that several runs or loops use. Adds it to the violations."""
        return self._violation(refusals.SHARED, frames)

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
            refusals.spins(self.host.max_turns), [frame for task in tasks[:1] for frame in reversed(list(frames_of(task)))]
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

    def _violation(self, refusal: CodeRefusal, frames: Iterable[FrameType] | None = None) -> NonDeterminism:
        error = refusal.error(_stack() if frames is None else frames)
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
            raise self._violation(refusals.PLAIN_TASK)
        if error is not None and ("different loop" in str(error) or "bad yield" in str(error)):
            violation = self._violation(refusals.FOREIGN_AWAITABLE, reversed(list(frames_of(task))))
            error.args = (str(violation),)
            error.__cause__ = violation

    def _refuse_as_completed(self, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any]) -> None:
        frame: FrameType | None = _getframe(2)
        while frame is not None and frame.f_code.co_filename == asyncio.tasks.__file__:
            if frame.f_code in _AS_COMPLETED:
                coro.close()
                raise self._violation(refusals.AS_COMPLETED)
            frame = frame.f_back


def _code(name: str) -> CodeType | None:
    function = getattr(asyncio.tasks, name, None)
    return getattr(function.__init__ if isinstance(function, type) else function, "__code__", None)


_ENSURE_FUTURE = _code("ensure_future")
_ENSURE_FUTURE_311 = _code("_ensure_future")
_AS_COMPLETED = (_code("as_completed"), _code("_AsCompletedIterator"))


def _nobody(timer: Timer) -> None:
    """Ignore a timer of an abandoned run."""


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = _getframe(1)
    while frame is not None and frame.f_code is not DeterministicLoop.run_until_idle.__code__:  # outside it are worker frames
        yield frame
        frame = frame.f_back


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
