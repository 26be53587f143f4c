"""The pool: the attempts that wait for a slot, and those that run, at most `concurrency` at a time.

Async steps run on the worker's loop, plain functions in threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, cast

from ..authoring.step import current_attempt
from ..errors import ErrorInfo, PayloadTooLarge, ValueInvalid, message_of
from ..replay.closing import keep_for_ever
from ..values.pace import ON_LOOP
from .attempt import Attempt
from .fair import FairQueue
from .host import Settings
from .interrupts import from_keyboard
from .observer import Observer
from .threads import Failure, Inline, Job, Outcome, Pending, Report, StepThreads, Threads
from .turns import Turns
from .watchdog import Asked, Stuck, Watch

logger = logging.getLogger("stepfold.worker")

CLEAN_UP_S = 1.0
"""How long a stopping worker lets cancelled steps clean up."""
ATTEMPTS_PER_TURN = 100
"""How many attempts that need not wait may run before other tasks on the loop get a turn."""


class Pool:
    """Runs the attempts of one worker and reports how they end.

    `is_cancelled` says whether the worker itself is being cancelled. `now`: the worker's clock, ms since 1970. `threads` makes
    the object that runs plain functions.
    """

    def __init__(
        self,
        settings: Settings,
        watch: Watch,
        is_cancelled: Callable[[], bool],
        now: Callable[[], int],
        threads: Callable[[Report], Threads] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.running = 0  # attempts that hold a slot
        self.abandoned = 0  # steps that ran on after the grace
        self.turns = Turns()
        self._settings = settings
        self._watch = watch
        self._is_cancelled = is_cancelled
        self._now = now
        self._observer = observer
        self._queue = FairQueue()
        self._held = False
        self._runner_due = False  # a task for the queue exists and has not started
        self._new_context = watch.new_context
        if threads is None:
            threads = Inline if getattr(asyncio.get_running_loop(), "virtual", False) else StepThreads
        self._threads = threads(self._came_back)
        self._call_plain = partial(_plain_call, settings.max_payload_bytes, now)
        self._withdrawn: set[Attempt] = set()  # cancelled and still running

    def __len__(self) -> int:
        """The number of attempts that wait, run, or have a turn."""
        return self.running + self._queue.size + len(self.turns)

    def hold(self) -> None:
        """Keep dispatched attempts in the queue, and give no turn, until `release`, which starts them together."""
        self._held = True
        self.turns.hold()

    def release(self) -> None:
        """Run the queued attempts; the first starts at once if this Python has eager tasks."""
        self._held = False
        self.turns.release()
        self._go_on(_start_at_once)

    def dispatch(self, attempt: Attempt) -> None:
        """Run an attempt when there is a slot."""
        if self.running + self._queue.size >= self._settings.concurrency and attempt.queued_at is None:
            attempt.queued_at = self._now()
        self._queue.add(attempt)
        if not self._held:
            self._go_on()

    def dispatch_isolated(self, attempt: Attempt) -> None:
        """Run an attempt that may end this process; at most one such attempt of this worker is announced or runs."""
        attempt.isolated = True
        attempt.queued_at = self._now()
        self.turns.wait(attempt)

    def withdraw(self, attempt: Attempt) -> None:
        """Cancel the attempt or take it out of the queue, because nobody needs its result."""
        attempt.ended_as = "withdrawn"
        if attempt.isolated:
            self.turns.settled(attempt)
        if attempt.task is not None:
            attempt.task.cancel()
            self._withdrawn.add(attempt)
            self._drop_later(attempt)
        elif attempt.over is not None:  # a plain function: its thread goes on, its slot is free
            self._end_plain(attempt)
        else:
            self._queue.remove(attempt)

    def abandon(self, attempt: Attempt) -> None:
        """Warn that an attempt goes on although its partition is released; the next owner runs the step again."""
        self.abandoned += 1
        name, extra = attempt.named()
        for_s = asyncio.get_running_loop().time() - attempt.since
        logger.warning("%s is abandoned; it has run for %.1f s and did not end in time", name, for_s, extra=extra)

    def _is_withdrawn(self, attempt: Attempt) -> bool:
        """Whether the worker, or the end of its loop, has cancelled the attempt; otherwise its own code has."""
        return attempt in self._withdrawn or self._is_cancelled()

    def _drop_later(self, attempt: Attempt) -> None:
        """Give an attempt that was just cancelled `grace_s` to clean up, counted from now, however long the loop was held up."""
        attempt.timer = attempt.owner.loop.call_later(self._settings.grace_s, self._drop, attempt)

    def _drop(self, attempt: Attempt) -> None:
        """Drop a cancelled attempt whose clean-up time is over."""
        if attempt.task is not None and not attempt.dropped:
            attempt.dropped = True
            attempt.task.cancel()
            name, extra = attempt.named()
            logger.warning("%s is still running although it was cancelled: its code gets no more turns", name, extra=extra)

    async def let_go(self) -> None:
        """Drop cancelled tasks that do not end: they would keep the caller's loop from closing."""
        for _ in range(2):
            tasks = [attempt.task for attempt in self._withdrawn if attempt.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=CLEAN_UP_S)
                for attempt in list(self._withdrawn):
                    self._drop(attempt)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _go_on(self, start: Callable[[Coroutine[Any, Any, None]], object] | None = None) -> None:
        """Start a task for the queue if there is an async attempt and a slot for it."""
        if self._queue.next and not self._runner_due and self._hand_out():
            self._runner_due = True
            (start or asyncio.get_running_loop().create_task)(self._run_queued())

    def _hand_out(self) -> bool:
        """Start plain functions at the head of the queue in threads. Returns whether an async attempt is next and has a slot."""
        while self._queue.next and self.running < self._settings.concurrency:
            if self._queue.next[0].call.pace is ON_LOOP:
                return True
            self._begin_plain(self._queue.take())
        return False

    async def _run_queued(self) -> None:
        """Run queued attempts one after another until one has to wait; from then on another task serves the queue."""
        self._runner_due = False
        task = asyncio.current_task()
        try:
            for _ in range(ATTEMPTS_PER_TURN):
                if not self._hand_out():
                    break
                attempt = self._queue.take()
                attempt.over = attempt.task = task
                attempt.started = True
                attempt.began_at = self._now()
                if attempt.call.timeout_ms is not None:
                    attempt.since = asyncio.get_running_loop().time()
                self.running += 1
                context = self._new_context()
                if self._observer is not None:
                    self._observer.begins(attempt, context)
                try:
                    waited = await in_context(context, self._attempt(attempt), self._go_on, self._watch, attempt)
                    if waited or (task is not None and task.cancelling()):  # this task belongs to its attempt now
                        break
                finally:
                    self._leave_place(attempt)
        finally:
            self._go_on()

    def _leave_place(self, attempt: Attempt) -> None:
        attempt.over = attempt.task = None
        self.running -= 1
        if attempt.timer is not None:
            attempt.timer.cancel()
        if self._withdrawn:
            self._withdrawn.discard(attempt)
        if attempt.observed is not None:
            assert self._observer is not None
            self._observer.ended(attempt)

    def _begin_plain(self, attempt: Attempt) -> None:
        """Run a plain function in a thread, without a task."""
        loop = attempt.owner.loop
        attempt.over = loop.create_future()
        attempt.started = True
        attempt.since = loop.time()
        self.running += 1
        if attempt.call.timeout_ms is not None:
            attempt.timer = loop.call_later(attempt.call.timeout_ms / 1000, self._over_time, attempt)
        context = self._new_context()
        if self._observer is not None:
            self._observer.begins(attempt, context)
        self._threads.give(Job(self._call_plain, attempt, context))

    def _over_time(self, attempt: Attempt) -> None:
        """Fail the attempt of a plain function whose time is over. Its thread goes on."""
        attempt.end_dropped()
        self._end_plain(attempt)

    def _came_back(self, job: Job) -> None:
        """Handle the return of a plain function, or an attempt that gave its slot up before the thread began."""
        attempt = job.attempt
        outcome, job.outcome = job.outcome, None
        if type(outcome) is Failure:
            if attempt.over is not None:
                attempt.owner.failed(attempt, outcome.error, outcome.info)
                self._end_plain(attempt)
            outcome = [outcome]  # the error holds the frames of the function, and the objects in them
            self._watch.free(Asked(attempt.named), outcome)
        elif attempt.over is None or outcome is None:
            return
        elif type(outcome) is Pending:
            self._see_through(attempt, outcome.awaitable, job.context)
        else:
            attempt.owner.completed(attempt, cast(bytes, outcome))
            self._end_plain(attempt)

    def _see_through(self, attempt: Attempt, awaitable: Awaitable[Any], context: contextvars.Context) -> None:
        """Await the awaitable that a plain function returned. That takes a task; the attempt keeps its slot."""
        if attempt.timer is not None:
            attempt.timer.cancel()

        async def go_on() -> None:
            await in_context(context, self._attempt(attempt, awaitable), lambda: None, self._watch, attempt)

        attempt.task = asyncio.get_running_loop().create_task(go_on())
        attempt.task.add_done_callback(lambda _: self._end_plain(attempt))

    def _end_plain(self, attempt: Attempt) -> None:
        """Free the slot of a plain function, unless its run was quarantined and has freed it."""
        over = attempt.over
        if over is None:
            return
        self._leave_place(attempt)
        over.set_result(None)
        if attempt.beats is not None:
            attempt.beats.stop()
        if not self._held:
            self._go_on()

    async def _attempt(self, attempt: Attempt, rest: Awaitable[Any] | None = None) -> None:
        """Run one attempt, or await the `rest` of it, and report how it ended. A withdrawn attempt reports nothing."""
        call = attempt.call
        owner = attempt.owner
        current_attempt.set(attempt)
        try:
            if call.timeout_ms is None:
                value = await _called(attempt, rest)
            else:
                until = attempt.since + call.timeout_ms / 1000
                timeout = asyncio.timeout_at(until)
                clean_up = asyncio.get_running_loop().call_at(until, self._drop_later, attempt)
                try:
                    async with timeout:
                        value = await _called(attempt, rest)
                except (TimeoutError, asyncio.CancelledError) as error:
                    if not timeout.expired() or self._is_withdrawn(attempt):
                        raise
                    raise attempt.timed_out() from error
                finally:
                    clean_up.cancel()
            result = _encoded(attempt, value, self._settings.max_payload_bytes, attempt.ask)
        except asyncio.CancelledError:
            if self._is_withdrawn(attempt):
                raise
            owner.failed(attempt, _cancelled_itself(attempt))
        except BaseException as error:  # anything that a step raises fails the attempt
            if from_keyboard(error) or (type(error) is GeneratorExit and not _goes_on(attempt.task)):
                raise
            owner.failed(attempt, error)
        else:
            owner.completed(attempt, result)
        finally:
            if attempt.beats is not None:
                attempt.beats.stop()


def _called(attempt: Attempt, rest: Awaitable[Any] | None) -> Awaitable[Any]:
    """Call the step's function, unless it was called in a thread and `rest` is what it returned."""
    if rest is not None:
        return rest
    call = attempt.call
    if call.copies is None:
        return call.fn(*call.args)
    fn, args = call.copies()
    return fn(*args)


def _goes_on(task: asyncio.Task[None] | None) -> bool:
    """Whether the task is running. If it is not, other code is closing its coroutine."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs
        return False


def _plain_call(limit: int, now: Callable[[], int], attempt: Attempt) -> Outcome:
    """Call a plain function, in a thread. Copies, encodes and describes there, so that users' classes cannot hold the loop up."""
    call, step_id = attempt.call, attempt.op.id
    attempt.began_at = now()
    current_attempt.set(attempt)
    try:
        try:
            fn, args = (call.fn, call.args) if call.copies is None else call.copies()
            value = fn(*args)
            return Pending(value) if inspect.isawaitable(value) else _encoded(attempt, value, limit)
        except (StopIteration, GeneratorExit) as error:  # callers handle these in their own way
            raise RuntimeError(f"the step function raised {type(error).__name__}: {error}") from error
        except asyncio.CancelledError as error:
            raise _cancelled_itself(attempt) from error
    except BaseException as error:  # anything that a step raises fails the attempt
        if from_keyboard(error):
            raise
        return Failure(error, ErrorInfo.of(error, step_id))


def _cancelled_itself(attempt: Attempt) -> RuntimeError:
    return RuntimeError(f"step {attempt.op.id!r} cancelled itself")


def _encoded(attempt: Attempt, value: Any, limit: int, ask: Callable[[Callable[[], bytes]], bytes] | None = None) -> bytes:
    """A result as JSON. `ask` calls code of users under the watchdog.

    Raises PayloadTooLarge, and ValueInvalid (which is not retried) for any error while the value is encoded.
    """
    codec = attempt.call.codec
    try:
        data = codec.at_sight(value)
        if data is None:
            prove = partial(codec.prove, value)
            data = prove() if ask is None else ask(prove)
    except BaseException as error:
        if from_keyboard(error):
            raise
        why = "a method of its type does not return" if issubclass(type(error), Stuck) else message_of(error)
        raise ValueInvalid(f"the result of {attempt.call.kind} {attempt.op.id!r} cannot be recorded as JSON: {why}") from error
    if len(data) > limit:
        raise PayloadTooLarge(
            f"the result of {attempt.call.kind} {attempt.op.id!r} is {len(data):,} bytes; the limit is {limit:,}. "
            f"Store it elsewhere and return a reference to it"
        )
    return data


@types.coroutine
def in_context(
    context: contextvars.Context, coro: Coroutine[Any, Any, None], on_wait: Callable[[], None], watch: Watch, what: Attempt
) -> Generator[Any, Any, bool]:
    """Await `coro` in its own context, in this task. Returns whether it had to wait; calls `on_wait` when it first does.

    A dropped attempt gets no more turns: it has failed.
    """
    watch.turn += 1
    watch.what = what
    try:
        waits_for = context.run(coro.send, None)
    except StopIteration:
        return False
    finally:
        watch.what = None
    what.since = what.since or asyncio.get_running_loop().time()
    on_wait()
    while True:
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001  # the task throws anything into the coroutine
            if what.dropped and type(error) is asyncio.CancelledError:
                keep_for_ever(coro)
                what.end_dropped()
                return True
            resume, sent = coro.throw, error
        else:
            resume, sent = coro.send, value
        watch.turn += 1
        watch.what = what
        try:
            waits_for = context.run(resume, sent)
        except StopIteration:
            return True
        finally:
            watch.what = None


if sys.version_info >= (3, 12):

    def _start_at_once(coro: Coroutine[Any, Any, None]) -> object:
        return asyncio.Task(coro, loop=asyncio.get_running_loop(), eager_start=True)

else:
    # Before 3.12 asyncio has no eager tasks: the task starts in the loop's next turn.
    _start_at_once = None
