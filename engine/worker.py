"""The worker: owns the partitions it is given, and runs the steps that their owners dispatch.

It reads as: join, own what is assigned, route the inbox where there is one, leave. Steps run on the worker's loop, plain
functions in threads; at most `concurrency` at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import os
import socket
import sys
import types
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from typing import Any, cast

from typing_extensions import TypeVarTuple, Unpack

from .attempt import Attempt
from .backoff import Backoff
from .codec import by_function
from .errors import ConfigError, LogUnavailable, PayloadTooLarge, StepfoldError
from .host import HAND_OVER_S, Settings
from .log import Log, Membership
from .owner import Owner
from .step import RunningStep, StepPorts, current_step_var
from .workflow import Registry, Workflow

logger = logging.getLogger("stepfold.worker")

RETRY_S = (0.2, 5.0)
"""First and longest pause before a partition is tried again after an error."""
ATTEMPTS_PER_TURN = 100
"""So many attempts that have nothing to wait for may run before others on the loop get a turn."""

Ts = TypeVarTuple("Ts")
RunInThread = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]


class Worker:
    """Executes the workflows of a registry until `stop`.

    `run_in_thread` runs a plain step function; `random` and `ids` are the sources of jitter and of nonces and names.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        settings: Settings,
        send_signal: Callable[[str, str, Any, str], Coroutine[Any, Any, None]],
        *,
        random: Random | None = None,
        ids: Callable[[], str] | None = None,
        run_in_thread: RunInThread | None = None,
    ) -> None:
        self.log = log
        self.registry = registry
        self.settings = settings
        self.random = random or Random()
        self.ids = ids or (lambda: uuid.uuid4().hex)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{self.ids()[:8]}"
        self.ports = StepPorts(log.step_ext, send_signal)
        self.ctx_ext = log.ctx_ext
        self.owners: dict[int, Owner] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._handing_over: dict[int, asyncio.Task[None]] = {}
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: deque[Attempt] = deque()
        self._held = False
        self._runner_due = False  # a task has been made and has not begun
        self._running = 0
        self._context = contextvars.copy_context()
        self._alone: deque[Attempt] = deque()  # the first one's turn it is
        self._threads: ThreadPoolExecutor | None = None
        self._run_in_thread = run_in_thread or self._thread
        self._stopped = asyncio.Event()
        self.failure: BaseException | None = None

    # -- its life

    async def start(self) -> None:
        """Join and begin to serve. Raises LogUnavailable and ConfigError."""
        self._membership = await self.log.join(self.name)
        self.registry.on_change.append(self._workflows_changed)
        self._tasks = [asyncio.create_task(self._guard(self._owning, self._membership), name="stepfold-assignments")]
        inbox = self.log.inbox()
        if inbox is not None:
            from .router import Router

            router = Router(self.log, inbox, self.registry, self.settings.max_payload_bytes)
            self._tasks.append(asyncio.create_task(self._guard(router.run), name="stepfold-router"))

    async def stop(self, grace_s: float) -> None:
        """Leave in good order; steps still running after `grace_s` are abandoned to the next worker. Idempotent.

        Others are assigned everything at once, and each partition is theirs as soon as its own steps have ended.
        """
        membership, self._membership = self._membership, None
        if membership is None:
            return
        self.registry.on_change.remove(self._workflows_changed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for partition in list(self._serving):
            self._give_up(partition, grace_s)
        await asyncio.gather(self._retire(membership), *self._handing_over.values(), return_exceptions=True)
        try:
            await membership.leave()
        finally:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
            self._stopped.set()

    async def _retire(self, membership: Membership) -> None:
        try:
            await membership.retire()
        except Exception as error:  # the others are then assigned nothing before this worker has left
            logger.warning("%s: retiring: %s", self.log.name, error, exc_info=not isinstance(error, StepfoldError))

    async def wait(self) -> None:
        """Until the worker stops. Raises what it cannot go on with."""
        await self._stopped.wait()
        if self.failure is not None:
            raise self.failure

    async def _guard(self, part: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        try:
            await part(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, `wait` raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            logger.error("the worker cannot go on: %s", error, exc_info=not isinstance(error, StepfoldError))
        self._stopped.set()

    async def _owning(self, membership: Membership) -> None:
        """Own what is assigned, as it comes and goes. An owner's folded state is kept for when it comes back."""
        while True:
            try:
                assigned = await membership.assigned()
            except LogUnavailable as error:  # what is owned stays so as long as nobody else claims it
                logger.warning("%s: no member any more: %s", self.log.name, error)
                membership = await self._join_again(membership)
                continue
            logger.info("%s: partitions %s", self.log.name, sorted(assigned))
            for partition in self._serving.keys() - assigned:
                self._give_up(partition, self.settings.grace_s)
            for partition in sorted(assigned - self._serving.keys()):
                owner = self.owners.get(partition) or Owner(self.log, partition, self)
                self.owners[partition] = owner
                serving = self._serve(owner, self._handing_over.get(partition))
                self._serving[partition] = asyncio.create_task(serving, name=f"stepfold-owner-{partition}")

    async def _join_again(self, membership: Membership) -> Membership:
        backoff = Backoff(*RETRY_S, self.random)
        while True:
            await asyncio.sleep(backoff.next_s())
            try:
                await membership.leave()
                self._membership = await self.log.join(self.name)
            except LogUnavailable as error:
                logger.warning("%s: joining again: %s", self.log.name, error)
            else:
                return self._membership

    def _give_up(self, partition: int, grace_s: float) -> None:
        """Begin to hand a partition over; others go on meanwhile."""
        before = self._handing_over.get(partition)
        handing_over = self._hand_over(partition, grace_s, self._serving.pop(partition), before)
        self._handing_over[partition] = asyncio.create_task(handing_over, name=f"stepfold-leave-{partition}")

    async def _hand_over(
        self, partition: int, grace_s: float, serving: asyncio.Task[None], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s + HAND_OVER_S  # then whoever comes next claims it all the same
        backoff = Backoff(*RETRY_S, self.random)
        while True:
            pause_s = backoff.next_s()
            try:
                await self.owners[partition].leave(max(min(grace_s, until - loop.time()), 0))
                break
            except LogUnavailable as error:
                logger.warning("%s partition %d: leaving: %s", self.log.name, partition, error)
                if self._membership is None or loop.time() + pause_s > until:
                    break
            except Exception:
                logger.exception("%s partition %d: leaving", self.log.name, partition)
                break
            await asyncio.sleep(pause_s)
        serving.cancel()
        await asyncio.wait([serving])
        if self._handing_over.get(partition) is asyncio.current_task():
            del self._handing_over[partition]

    async def is_live(self, name: str) -> bool:
        """Whether another worker is alive, as far as the log knows. Who is about to stop takes nothing away from anybody."""
        return self._membership is None or await self._membership.is_live(name)

    async def _serve(self, owner: Owner, handing_over: asyncio.Task[None] | None) -> None:
        """Own one partition, again after every loss, until told to leave it."""
        if handing_over is not None:  # it comes back before it was gone
            await asyncio.wait([handing_over])
        backoff = Backoff(*RETRY_S, self.random)
        owner.leaving = False
        while not owner.leaving:
            pause_s = backoff.next_s()
            try:
                await owner.run()
                backoff.reset()
                pause_s = backoff.next_s()
            except asyncio.CancelledError:
                raise
            except LogUnavailable as error:
                logger.warning("%s partition %d: %s; trying again in %.1f s", self.log.name, owner.partition, error, pause_s)
            except ConfigError as error:
                self._fail(error)
                return
            except Exception:
                owner.state = None  # do not trust what led here: fold again
                logger.exception("%s partition %d: recovering in %.1f s", self.log.name, owner.partition, pause_s)
            await asyncio.sleep(pause_s)

    @property
    def caught_up(self) -> bool:
        """Whether every partition assigned to this worker is owned and recovered."""
        return all(self.owners[partition].caught_up.is_set() for partition in self._serving)

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None:
        """The workflow, if this worker knows it."""
        return self.registry.find(workflow_id, version)

    def _workflows_changed(self) -> None:
        for owner in self.owners.values():
            owner.workflows_changed()

    # -- steps

    def hold(self) -> None:
        """What is dispatched from here on waits for `release`."""
        self._held = True

    def release(self) -> None:
        """Run what was dispatched meanwhile, at once if this Python can."""
        self._held = False
        self._go_on(_start_at_once)

    def dispatch(self, attempt: Attempt) -> None:
        """Run an attempt, now or when there is a place."""
        self._queue.append(attempt)
        if not self._held:
            self._go_on()

    def dispatch_alone(self, attempt: Attempt) -> None:
        """Run an attempt that may end this process, while no other such attempt of this worker is announced or runs."""
        attempt.alone = True
        self._alone.append(attempt)
        if len(self._alone) == 1:
            attempt.owner.announce(attempt)

    def settled(self, attempt: Attempt) -> None:
        """How an attempt that runs alone has ended is in the log, or does not matter any more."""
        attempt.alone = False
        had_its_turn = self._alone[0] is attempt
        self._alone.remove(attempt)
        if had_its_turn and self._alone:
            self._alone[0].owner.announce(self._alone[0])

    def withdraw(self, attempt: Attempt) -> None:
        """The attempt's result is of no interest any more."""
        if attempt.alone:
            self.settled(attempt)
        if attempt.task is not None:
            attempt.task.cancel()
        else:
            with contextlib.suppress(ValueError):
                self._queue.remove(attempt)

    def _go_on(self, start: Callable[[Coroutine[Any, Any, None]], object] | None = None) -> None:
        """See that somebody runs what is queued, if there is a place."""
        if self._queue and not self._runner_due and self._running < self.settings.concurrency:
            self._runner_due = True
            (start or asyncio.get_running_loop().create_task)(self._run_queued())

    async def _run_queued(self) -> None:
        """Run queued attempts, one after another as long as none has to wait; from then on the next task goes on."""
        self._runner_due = False
        task = asyncio.current_task()
        try:
            for _ in range(ATTEMPTS_PER_TURN):
                if not self._queue or self._running >= self.settings.concurrency:
                    break
                attempt = self._queue.popleft()
                attempt.task = task
                attempt.begun = True
                self._running += 1
                try:
                    if await in_context(self._context.copy(), self._attempt(attempt), self._go_on):
                        break
                finally:
                    attempt.task = None
                    self._running -= 1
        finally:
            self._go_on()

    async def _attempt(self, attempt: Attempt) -> None:
        """Run one attempt and report how it ended; a cancelled one reports nothing."""
        call = attempt.call
        owner = attempt.owner
        current_step_var.set(RunningStep(attempt))
        try:
            if call.timeout_ms is None:
                value = await self._call(call.fn, call.args)
            else:
                timeout = asyncio.timeout(call.timeout_ms / 1000)
                try:
                    async with timeout:
                        value = await self._call(call.fn, call.args)
                except TimeoutError as error:
                    if not timeout.expired():
                        raise
                    raise TimeoutError(
                        f"attempt {attempt.number} of step {attempt.op.id!r} took longer than {call.timeout_ms / 1000:g} s"
                    ) from error
            try:
                result = call.codec.encode(value)
            except Exception as error:
                raise TypeError(f"the result of step {attempt.op.id!r} cannot be recorded as JSON: {error}") from error
            if len(result) > self.settings.max_payload_bytes:
                limit = self.settings.max_payload_bytes
                raise PayloadTooLarge(
                    f"the result of step {attempt.op.id!r} is {len(result):,} bytes; the limit is {limit:,}. "
                    f"Store it elsewhere and return a reference to it"
                )
        except asyncio.CancelledError:
            if attempt.task is not None and attempt.task.cancelling():
                raise
            owner.failed(attempt, RuntimeError(f"step {attempt.op.id!r} cancelled itself"))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001  # whatever a step raises fails the attempt
            owner.failed(attempt, error)
        else:
            owner.completed(attempt, result)
        finally:
            if attempt.beats is not None:
                attempt.beats.stop()

    async def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if is_async(fn):
            return await fn(*args)
        value = await self._run_in_thread(partial(_plain_call, fn, args))
        return await value if inspect.isawaitable(value) else value

    async def _thread(self, call: Callable[[], Any]) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.settings.concurrency, "stepfold-step")
        return await asyncio.get_running_loop().run_in_executor(self._threads, contextvars.copy_context().run, call)


def _plain_call(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return fn(*args)
    except StopIteration as error:  # no future can hold it
        raise RuntimeError("the step function raised StopIteration") from error


@by_function
def is_async(fn: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine: an async function, a partial of one, or an object whose __call__ is one."""
    while isinstance(fn, partial):
        fn = cast(Callable[..., Any], fn.func)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004  # the method itself is wanted


@types.coroutine
def in_context(
    context: contextvars.Context, coro: Coroutine[Any, Any, None], on_wait: Callable[[], None]
) -> Generator[Any, Any, bool]:
    """Await `coro` in a context of its own, in this task; whether it had to wait, which `on_wait` is told when it first does."""
    try:
        waits_for = context.run(coro.send, None)
    except StopIteration:
        return False
    on_wait()
    while True:
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001  # the task's word to the coroutine, whatever it is
            resume = partial(coro.throw, error)
        else:
            resume = partial(coro.send, value)
        try:
            waits_for = context.run(resume)
        except StopIteration:
            return True


if sys.version_info >= (3, 12):

    def _start_at_once(coro: Coroutine[Any, Any, None]) -> object:
        return asyncio.Task(coro, loop=asyncio.get_running_loop(), eager_start=True)

else:
    _start_at_once = None
