"""The worker: owns the partitions that are assigned to it.

Its life: join, own the assigned partitions, route the inbox if there is one, leave. Its pool runs the steps that the owners
dispatch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from typing_extensions import TypeVarTuple, Unpack

from ..authoring.step import StepPorts
from ..authoring.workflow import Registry, Workflow
from ..core.state import RunState
from ..errors import ConfigError, LogUnavailable, StepfoldError
from ..log import InboxMembership, Log, Membership
from ..values.backoff import Pauses
from ..values.duration import words
from ..values.names import BUILT_IN
from .ends import Canary
from .host import HAND_OVER_S, Settings
from .observer import Observer
from .owner.owner import Owner
from .pool import Pool
from .threads import Report, Threads
from .watchdog import Watch

logger = logging.getLogger("stepfold.worker")

RETRY_S = (0.2, 5.0)
"""First and longest pause between two tries for a partition, after an error."""
CLOCKS_AGAIN_S = 3600.0
MAX_UNKNOWN = 1000
"""The number of unknown workflows that the worker remembers having warned of."""

Ts = TypeVarTuple("Ts")


class Worker:
    """Executes the workflows of a registry until `stop`.

    `threads` makes the object that runs plain step functions. `random` is the source of jitter, `ids` of nonces and names.
    `built_in`: workflows that it serves beside those of the registry. `observer` receives its reports.
    """

    def __init__(
        self,
        log: Log,
        registry: Registry,
        settings: Settings,
        send_signal: Callable[[str, str, bytes, str], Coroutine[Any, Any, object]],
        *,
        random: Random | None = None,
        ids: Callable[[], str] | None = None,
        threads: Callable[[Report], Threads] | None = None,
        watch: Watch | None = None,
        built_in: Registry | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.log = log
        self.registry = registry
        self._built_in = built_in or Registry()
        self.settings = settings
        self.random = random or Random()
        self.ids = ids or (lambda: uuid.uuid4().hex)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{self.ids()[:8]}"
        self.watch = watch or Watch()
        self.observer = observer
        self.ports = StepPorts(log.step_ext, send_signal)
        self.ctx_ext = log.ctx_ext
        self.owners: dict[int, Owner] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._handing_over: dict[int, asyncio.Task[None]] = {}
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.pool = Pool(settings, self.watch, self._is_cancelled, log.now, threads, observer)
        self._clocks_told: float | None = None
        self._unknown: set[tuple[str, str | None]] = set()
        self._stopped = asyncio.Event()
        self.failure: BaseException | None = None
        self._cut = False  # code of a step has ended the loop: the claims are kept
        self._cut_said = False
        self.cut_by: str | None = None  # the step, in words

    # -- its life

    async def start(self) -> None:
        """Join and begin to serve. Raises LogUnavailable and ConfigError."""
        self._membership = await self.log.join(self.name)
        logger.info("%s: joined as worker %s", self.log.name, self.name)
        self.watch.start()
        self.registry.on_change.append(self._workflows_changed)
        self._tasks = [Canary(self._guard(self._owning, self._membership), self._cancelled_by, "stepfold-assignments")]
        if isinstance(self._membership, InboxMembership):
            from .router import Router

            router = Router(
                self.log, self._membership.inbox(), self.registry, self.settings.max_payload_bytes, self.watch, self.observer
            )
            self._tasks.append(asyncio.create_task(self._guard(router.run), name="stepfold-router"))

    async def stop(self, grace_s: float) -> None:
        """Leave in good order. Steps that still run after `grace_s` are abandoned: the next owner runs them again. Idempotent.

        Other workers are assigned everything at once. Each partition is released as soon as its own steps have ended. If the
        caller is cancelled meanwhile, the worker waits for nothing more and leaves as if it had died.
        """
        membership, self._membership = self._membership, None
        if membership is None:
            return
        if self._cut and not self._cut_said:
            logger.error("%s has cancelled the tasks of its worker, or ended the loop: the worker keeps its claims", self.cut_by)
        elif not self._cut:
            running = self.pool.running
            steps = f": waiting up to {grace_s:g} s for {running} step{'s' * (running != 1)}" if running else ""
            logger.info("%s: stopping%s", self.log.name, steps)
        self.registry.on_change.remove(self._workflows_changed)
        for task in self._tasks:
            task.cancel()
        try:
            await self._hand_over_all(membership, grace_s)
            await self.pool.let_go()
            await membership.leave()
        except asyncio.CancelledError:
            logger.warning("%s: cancelled while it stopped: it leaves at once", self.log.name)
            await self._keep_claims()
            await membership.leave()
            raise
        finally:
            self.pool.close()
            self.watch.stop()
            logger.info("%s: stopped", self.log.name)
            self._stopped.set()

    async def _hand_over_all(self, membership: Membership, grace_s: float) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._cut:
            await self._keep_claims()
            return
        for partition in list(self._serving):
            self._give_up(partition, grace_s)
        await asyncio.gather(self._retire(membership), *self._handing_over.values(), return_exceptions=True)

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

    def _is_cancelled(self) -> bool:
        """Whether something cancels the worker itself, such as the end of its loop."""
        return any(task.cancelling() for task in self._tasks)

    @property
    def abandoned(self) -> int:
        """The number of steps that ran on after the grace."""
        return self.pool.abandoned

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
        backoff = Pauses(*RETRY_S, self.random)
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
        serving = self._serving.pop(partition)
        handing_over = self._hand_over(partition, grace_s, serving, before)
        task = self._handing_over[partition] = asyncio.create_task(handing_over, name=f"stepfold-leave-{partition}")
        task.add_done_callback(lambda _: serving.cancel())  # also if it is cancelled before it begins

    async def _hand_over(
        self, partition: int, grace_s: float, serving: asyncio.Task[None], before: asyncio.Task[None] | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._leave_partition(partition, grace_s)
        finally:
            serving.cancel()
            await asyncio.wait([serving])
        if self._handing_over.get(partition) is asyncio.current_task():
            del self._handing_over[partition]

    async def _leave_partition(self, partition: int, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s + HAND_OVER_S  # after that, the next owner claims it anyway
        backoff = Pauses(*RETRY_S, self.random)
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
        backoff = Pauses(*RETRY_S, self.random)
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
    def served(self) -> list[Owner]:
        """The owners of the partitions assigned to this worker."""
        return [self.owners[partition] for partition in self._serving]

    @property
    def caught_up(self) -> bool:
        """Whether every partition assigned to this worker is owned and recovered."""
        return all(owner.caught_up.is_set() for owner in self.served)

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None:
        """The workflow, or None if this worker does not know it."""
        registry = self._built_in if workflow_id.startswith(BUILT_IN) else self.registry
        return registry.find(workflow_id, version)

    def _workflows_changed(self) -> None:
        for owner in self.owners.values():
            owner.workflows_changed()

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
