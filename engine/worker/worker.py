"""The worker: owns the partitions that are assigned to it, and runs the steps that their owners dispatch.

Its life: join, own the assigned partitions, route the inbox if there is one, leave. Async steps run on the worker's loop,
plain functions in threads, at most `concurrency` steps at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import socket
import sys
import types
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from random import Random
from typing import Any, cast

from typing_extensions import TypeVarTuple, Unpack

from ..authoring.step import RunningStep, StepPorts, current_step_var
from ..authoring.workflow import Registry, Workflow
from ..core.state import RunState
from ..errors import ConfigError, ErrorInfo, LogUnavailable, PayloadTooLarge, StepfoldError, ValueInvalid, message_of
from ..log import Log, Membership
from ..replay.closing import keep_for_ever
from ..values.backoff import Backoff
from ..values.duration import words
from ..values.pace import ON_LOOP
from .attempt import Attempt
from .ends import Canary
from .fair import FairQueue
from .host import HAND_OVER_S, Settings
from .interrupts import from_keyboard
from .owner.owner import Owner
from .suspects import Suspects
from .threads import Failure, Inline, Job, Outcome, Pending, Report, StepThreads, Threads
from .watchdog import Asked, Stuck, Watch

logger = logging.getLogger("stepfold.worker")

RETRY_S = (0.2, 5.0)
"""First and longest pause between two tries for a partition, after an error."""
CLOCKS_AGAIN_S = 3600.0
MAX_UNKNOWN = 1000
"""The number of unknown workflows that the worker remembers having warned of."""
CLEAN_UP_S = 1.0
"""How long a stopping worker lets cancelled steps clean up."""
ATTEMPTS_PER_TURN = 100
"""How many attempts that need not wait may run before other tasks on the loop get a turn."""

Ts = TypeVarTuple("Ts")


class Worker:
    """Executes the workflows of a registry until `stop`.

    `threads` makes the object that runs plain step functions. `random` is the source of jitter, `ids` of nonces and names.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        settings: Settings,
        send_signal: Callable[[str, str, bytes, str], Coroutine[Any, Any, None]],
        *,
        random: Random | None = None,
        ids: Callable[[], str] | None = None,
        threads: Callable[[Report], Threads] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.log = log
        self.registry = registry
        self.settings = settings
        self.random = random or Random()
        self.ids = ids or (lambda: uuid.uuid4().hex)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{self.ids()[:8]}"
        self.watch = watch or Watch()
        self.ports = StepPorts(log.step_ext, send_signal)
        self.ctx_ext = log.ctx_ext
        self.owners: dict[int, Owner] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._handing_over: dict[int, asyncio.Task[None]] = {}
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._queue = FairQueue()
        self._held = False
        self._runner_due = False  # a task for the queue exists and has not started
        self._running = 0
        self._new_context = self.watch.new_context
        self._alone: deque[Attempt | Suspects] = deque()  # they wait for their turn
        self._turn: Attempt | Suspects | None = None
        if threads is None:
            threads = Inline if getattr(asyncio.get_running_loop(), "virtual", False) else StepThreads
        self._threads = threads(self._came_back)
        self._call_plain = partial(_plain_call, settings.max_payload_bytes)
        self._clocks_told: float | None = None
        self._withdrawn: set[Attempt] = set()  # cancelled and still running
        self._unknown: set[tuple[str, str | None]] = set()
        self.abandoned = 0  # steps that ran on after the grace
        self._stopped = asyncio.Event()
        self.failure: BaseException | None = None
        self._cut = False  # code of a step has ended the loop: the claims are kept
        self._cut_said = False
        self.cut_by: str | None = None  # the step, in words

    # -- its life

    async def start(self) -> None:
        """Join and begin to serve. Raises LogUnavailable and ConfigError."""
        self._membership = await self.log.join(self.name)
        self.watch.start()
        self.registry.on_change.append(self._workflows_changed)
        self._tasks = [Canary(self._guard(self._owning, self._membership), self._cancelled_by, "stepfold-assignments")]
        inbox = self.log.inbox()
        if inbox is not None:
            from .router import Router

            router = Router(self.log, inbox, self.registry, self.settings.max_payload_bytes, self.watch)
            self._tasks.append(asyncio.create_task(self._guard(router.run), name="stepfold-router"))

    async def stop(self, grace_s: float) -> None:
        """Leave in good order. Steps that still run after `grace_s` are abandoned: the next owner runs them again. Idempotent.

        Other workers are assigned everything at once. Each partition is released as soon as its own steps have ended.
        """
        membership, self._membership = self._membership, None
        if membership is None:
            return
        if self._cut and not self._cut_said:
            logger.error("%s has cancelled the tasks of its worker, or ended the loop: the worker keeps its claims", self.cut_by)
        elif not self._cut:
            steps = f": waiting up to {grace_s:g} s for {self._running} step{'s' * (self._running != 1)}" if self._running else ""
            logger.info("%s: stopping%s", self.log.name, steps)
        self.registry.on_change.remove(self._workflows_changed)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._cut:
            await self._keep_claims()
        else:
            for partition in list(self._serving):
                self._give_up(partition, grace_s)
            await asyncio.gather(self._retire(membership), *self._handing_over.values(), return_exceptions=True)
        try:
            await self._let_go()
            await membership.leave()
        finally:
            self._threads.close()
            self.watch.stop()
            logger.info("%s: stopped", self.log.name)
            self._stopped.set()

    async def _retire(self, membership: Membership) -> None:
        try:
            await membership.retire()
        except Exception as error:  # the other workers then get assignments only after this worker has left
            logger.warning("%s: retiring: %s", self.log.name, error, exc_info=not isinstance(error, StepfoldError))

    def cut_off(self) -> None:
        """The code of a step has ended the loop: from now on `stop` keeps the claims, as the death of the process would.

        The next owners then look for lost attempts, and put the run aside if it happens again and again.
        """
        self._cut = self._cut_said = True

    def _cancelled_by(self, who: str) -> None:
        if self._membership is not None and not self._cut:
            self._cut = True
            self.cut_by = who

    async def _keep_claims(self) -> None:
        tasks = [*self._serving.values(), *self._handing_over.values()]
        self._serving.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether the worker has stopped, or cannot go on."""
        return self._stopped.is_set()

    async def wait(self) -> None:
        """Wait until the worker stops. Raises the error that stopped it."""
        await self._stopped.wait()
        if self.failure is not None:
            raise self.failure

    async def _guard(self, part: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        try:
            await part(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # `wait` raises any error
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            logger.error("the worker cannot continue: %s", error, exc_info=not isinstance(error, StepfoldError))
        self._stopped.set()

    async def _owning(self, membership: Membership) -> None:
        """Own the assigned partitions as assignments change. Keeps an owner's folded state for a partition that comes back."""
        while True:
            try:
                assigned = await membership.assigned()
            except LogUnavailable as error:  # owned partitions stay owned until another worker claims them
                logger.warning("%s: no longer a member: %s", self.log.name, error)
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
        """Begin to hand a partition over; other partitions go on."""
        before = self._handing_over.get(partition)
        handing_over = self._hand_over(partition, grace_s, self._serving.pop(partition), before)
        self._handing_over[partition] = asyncio.create_task(handing_over, name=f"stepfold-leave-{partition}")

    async def _hand_over(
        self, partition: int, grace_s: float, serving: asyncio.Task[None], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s + HAND_OVER_S  # after that, the next owner claims it anyway
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
            except ConfigError as error:  # the log was replaced meanwhile, say
                logger.error("%s partition %d: leaving: %s", self.log.name, partition, error)  # noqa: TRY400  # it says it all
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
        """Whether another worker is alive, as far as the log knows.

        A stopping worker reports every worker as alive, so that it never takes a partition over.
        """
        return self._membership is None or await self._membership.is_live(name)

    def clocks_differ(self, ahead_ms: int) -> None:
        """Warn that the log's time is `ahead_ms` ahead of this worker's clock (negative: behind); at most once an hour."""
        now = asyncio.get_running_loop().time()
        if self._clocks_told is not None and now < self._clocks_told + CLOCKS_AGAIN_S:
            return
        self._clocks_told = now
        logger.warning(
            "%s: its time is %s %s this worker's clock. Durations are not affected; but `ctx.now()` and the times shown of runs "
            "are the log's, and `sleep_until` waits for this clock. Synchronise the clocks",
            self.log.name,
            words(abs(ahead_ms)),
            "ahead of" if ahead_ms > 0 else "behind",
            extra={"ahead_ms": ahead_ms},
        )

    async def _serve(self, owner: Owner, handing_over: asyncio.Task[None] | None) -> None:
        """Own one partition, and claim it again after every loss, until the owner shall leave."""
        if handing_over is not None:  # the partition came back before its release was finished
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
                owner.state = None  # the folded state may be the cause: fold again
                logger.exception("%s partition %d: recovering in %.1f s", self.log.name, owner.partition, pause_s)
            await asyncio.sleep(pause_s)

    @property
    def caught_up(self) -> bool:
        """Whether every partition assigned to this worker is owned and recovered."""
        return all(self.owners[partition].caught_up.is_set() for partition in self._serving)

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None:
        """The workflow, or None if this worker does not know it."""
        return self.registry.find(workflow_id, version)

    def _workflows_changed(self) -> None:
        for owner in self.owners.values():
            owner.workflows_changed()

    # -- steps

    def hold(self) -> None:
        """Keep dispatched attempts in the queue, and give no turn, until `release`, which starts them together."""
        self._held = True

    def release(self) -> None:
        """Run the queued attempts; the first starts at once if this Python has eager tasks."""
        self._held = False
        self._next_turn()
        self._go_on(_start_at_once)

    def dispatch(self, attempt: Attempt) -> None:
        """Run an attempt when there is a place."""
        self._queue.add(attempt)
        if not self._held:
            self._go_on()

    def dispatch_alone(self, attempt: Attempt) -> None:
        """Run an attempt that may end this process; at most one such attempt of this worker is announced or runs.

        Those that were lost less often go first: a harmless step then is not the one that dies with its worker each time.
        """
        attempt.alone = True
        self.wait_alone(attempt)

    def wait_alone(self, one: Attempt | Suspects) -> None:
        """Let `one` announce when its turn comes: nothing else is then announced that may end this process."""
        place = len(self._alone)
        while place and isinstance(one, Attempt) and _lost(self._alone[place - 1]) > one.lost:
            place -= 1
        self._alone.insert(place, one)
        self._next_turn()

    def settled(self, one: Attempt | Suspects) -> None:
        """The isolated attempt, or the suspect, is recorded or irrelevant: the next one announces."""
        if isinstance(one, Attempt):
            one.alone = False
        if self._turn is one:
            self._turn = None
            self._next_turn()
        else:
            self._alone.remove(one)

    def _next_turn(self) -> None:
        if self._alone and self._turn is None and not self._held:
            self._turn = self._alone.popleft()
            self._turn.announce()

    def withdraw(self, attempt: Attempt) -> None:
        """Nobody needs the attempt's result: cancel it or take it out of the queue."""
        if attempt.alone:
            self.settled(attempt)
        if attempt.task is not None:
            attempt.task.cancel()
            self._withdrawn.add(attempt)
            self._drop_later(attempt)
        elif attempt.over is not None:  # a plain function: its thread goes on, its place is free
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
        return attempt in self._withdrawn or any(task.cancelling() for task in self._tasks)

    def _drop_later(self, attempt: Attempt) -> None:
        """Give an attempt that was just cancelled `grace_s` to clean up, counted from now, however long the loop was held up."""
        attempt.timer = attempt.owner.loop.call_later(self.settings.grace_s, self._drop, attempt)

    def _drop(self, attempt: Attempt) -> None:
        """Drop a cancelled attempt whose clean-up time is over."""
        if attempt.task is not None and not attempt.dropped:
            attempt.dropped = True
            attempt.task.cancel()
            name, extra = attempt.named()
            logger.warning("%s is still running although it was cancelled: its code gets no more turns", name, extra=extra)

    async def _let_go(self) -> None:
        """Drop cancelled tasks that do not end: they would keep the caller's loop from closing."""
        for _ in range(2):
            tasks = [attempt.task for attempt in self._withdrawn if attempt.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=CLEAN_UP_S)
                for attempt in list(self._withdrawn):
                    self._drop(attempt)

    def unknown(self, run: RunState) -> None:
        """A run waits for a workflow that this worker does not know. Warns once for each workflow and version."""
        wanted = (run.workflow, run.version)
        if wanted not in self._unknown:
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown.add(wanted)
            version = "" if run.version is None else f" version {run.version!r}"
            known = ", ".join(repr(workflow.id) for workflow in self.registry) or "none"
            logger.warning(
                "run %s, and maybe others, wait for a worker that knows workflow %r%s; this one owns their partition of %s and "
                "knows %s. All workers of a log must know all its workflows: give services with workflows of their own a log "
                "(on Kafka: a namespace) each",
                run.id,
                run.workflow,
                version,
                self.log.name,
                known,
                extra={"run_id": run.id, "workflow": run.workflow},
            )

    def _go_on(self, start: Callable[[Coroutine[Any, Any, None]], object] | None = None) -> None:
        """Start a task for the queue if there is an async attempt and a place for it."""
        if self._queue.next and not self._runner_due and self._hand_out():
            self._runner_due = True
            (start or asyncio.get_running_loop().create_task)(self._run_queued())

    def _hand_out(self) -> bool:
        """Start plain functions at the head of the queue in threads. Returns whether an async attempt is next and has a place."""
        while self._queue.next and self._running < self.settings.concurrency:
            if self._queue.next[0].call.pace is ON_LOOP:
                return True
            self._begin_plain(self._queue.take())
        return False

    async def _run_queued(self) -> None:
        """Run queued attempts one after another until one has to wait; from then on another task serves the queue."""
        self._runner_due = False
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            for _ in range(ATTEMPTS_PER_TURN):
                if not self._hand_out():
                    break
                attempt = self._queue.take()
                attempt.over = attempt.task = task
                attempt.begun = True
                attempt.since = loop.time()
                self._running += 1
                try:
                    waited = await in_context(self._new_context(), self._attempt(attempt), self._go_on, self.watch, attempt)
                    if waited or (task is not None and task.cancelling()):  # this task belongs to its attempt now
                        break
                finally:
                    self._leave_place(attempt)
        finally:
            self._go_on()

    def _leave_place(self, attempt: Attempt) -> None:
        attempt.over = attempt.task = None
        self._running -= 1
        if attempt.timer is not None:
            attempt.timer.cancel()
        if self._withdrawn:
            self._withdrawn.discard(attempt)

    def _begin_plain(self, attempt: Attempt) -> None:
        """Run a plain function in a thread, without a task."""
        loop = attempt.owner.loop
        attempt.over = loop.create_future()
        attempt.begun = True
        attempt.since = loop.time()
        self._running += 1
        if attempt.call.timeout_ms is not None:
            attempt.timer = loop.call_later(attempt.call.timeout_ms / 1000, self._over_time, attempt)
        self._threads.give(Job(self._call_plain, attempt, self._new_context()))

    def _over_time(self, attempt: Attempt) -> None:
        """Fail the attempt of a plain function whose time is over. Its thread goes on."""
        attempt.end_dropped()
        self._end_plain(attempt)

    def _came_back(self, job: Job) -> None:
        """A plain function has returned, or its attempt gave its place up before the thread began."""
        attempt = job.attempt
        outcome, job.outcome = job.outcome, None
        if type(outcome) is Failure:
            if attempt.over is not None:
                attempt.owner.failed(attempt, outcome.error, outcome.info)
                self._end_plain(attempt)
            outcome = [outcome]  # the error holds the frames of the function, and the objects in them
            self.watch.free(Asked(attempt.named), outcome)
        elif attempt.over is None or outcome is None:
            return
        elif type(outcome) is Pending:
            self._see_through(attempt, outcome.awaitable, job.context)
        else:
            attempt.owner.completed(attempt, cast(bytes, outcome))
            self._end_plain(attempt)

    def _see_through(self, attempt: Attempt, awaitable: Awaitable[Any], context: contextvars.Context) -> None:
        """Await what a plain function returned. That takes a task; the attempt keeps its place."""
        if attempt.timer is not None:
            attempt.timer.cancel()

        async def go_on() -> None:
            await in_context(context, self._attempt(attempt, awaitable), lambda: None, self.watch, attempt)

        attempt.task = asyncio.get_running_loop().create_task(go_on())
        attempt.task.add_done_callback(lambda _: self._end_plain(attempt))

    def _end_plain(self, attempt: Attempt) -> None:
        """Free the place of a plain function, unless its run was quarantined and has freed it."""
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
        current_step_var.set(RunningStep(attempt))
        try:
            if call.timeout_ms is None:
                result = await self._call(attempt, rest)
            else:
                until = attempt.since + call.timeout_ms / 1000
                timeout = asyncio.timeout_at(until)
                clean_up = asyncio.get_running_loop().call_at(until, self._drop_later, attempt)
                try:
                    async with timeout:
                        result = await self._call(attempt, rest)
                except (TimeoutError, asyncio.CancelledError) as error:
                    if not timeout.expired() or self._is_withdrawn(attempt):
                        raise
                    raise attempt.timed_out() from error
                finally:
                    clean_up.cancel()
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

    async def _call(self, attempt: Attempt, rest: Awaitable[Any] | None) -> bytes:
        """The result of the step's function as JSON."""
        call = attempt.call
        if rest is not None:
            value = await rest
        elif call.given is None:
            value = await call.fn(*call.args)
        else:
            fn, args = call.given()
            value = await fn(*args)
        return _encoded(attempt, value, self.settings.max_payload_bytes, attempt.ask)


def _goes_on(task: asyncio.Task[None] | None) -> bool:
    """Whether the task is running: if not, its coroutine is being closed from outside."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs
        return False


def _lost(one: Attempt | Suspects) -> int:
    """How often an attempt's step was lost in a row; 0 for suspects, whom nothing overtakes."""
    return one.lost if isinstance(one, Attempt) else 0


def _plain_call(limit: int, attempt: Attempt) -> Outcome:
    """Call a plain function, in a thread. Copies, encodes and describes there, so that users' classes cannot hold the loop up."""
    call, step_id = attempt.call, attempt.op.id
    current_step_var.set(RunningStep(attempt))
    try:
        try:
            fn, args = (call.fn, call.args) if call.given is None else call.given()
            value = fn(*args)
            return Pending(value) if inspect.isawaitable(value) else _encoded(attempt, value, limit)
        except (StopIteration, GeneratorExit) as error:  # callers give these a meaning of their own
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
    codec, step_id = attempt.call.codec, attempt.op.id
    try:
        data = codec.at_sight(value)
        if data is None:
            prove = partial(codec.prove, value)
            data = prove() if ask is None else ask(prove)
    except BaseException as error:
        if from_keyboard(error):
            raise
        why = "a method of its type does not return" if issubclass(type(error), Stuck) else message_of(error)
        raise ValueInvalid(f"the result of step {step_id!r} cannot be recorded as JSON: {why}") from error
    if len(data) > limit:
        raise PayloadTooLarge(
            f"the result of step {step_id!r} is {len(data):,} bytes; the limit is {limit:,}. "
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
    on_wait()
    while True:
        try:
            value = yield waits_for
        except BaseException as error:  # noqa: BLE001  # the task throws anything into the coroutine
            if what.dropped and type(error) is asyncio.CancelledError:
                keep_for_ever(coro)
                what.end_dropped()
                return True
            resume, given = coro.throw, error
        else:
            resume, given = coro.send, value
        watch.turn += 1
        watch.what = what
        try:
            waits_for = context.run(resume, given)
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
