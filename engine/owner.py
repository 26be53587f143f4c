"""The owner of one partition: folds what is in the log, runs the code over it, and appends what follows from that.

The walk of one step:

1. `_take` folds a record (`started`, or the result before) and `_advance` delivers it: the code runs until it is idle.
2. `_begin` turns what the code asked for into work: a sleep or wait is recorded, a step is dispatched to the worker.
3. The step ends (`_attempt`), and `_emit` puts `step-completed` into the outbox.
4. `_appending` appends what is in the outbox, all of it at once, while the next fills.
5. The acknowledged record follows directly on what has been folded, or the reader brings it; back to 1.

Nothing acts on a result that has not come back through the fold. Whoever owns the partition is decided there too: the
owner writes under its claim and stops as soon as the fold has seen another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any

import orjson

from .attempt import Attempt
from .checkpoint import Checkpoint
from .claiming import READ_RECORDS, Claiming
from .duration import words
from .errors import ErrorInfo, NonDeterminism, PayloadTooLarge, StepInterrupted
from .events import FORMAT, encode
from .execution import Execution, Op, Outcome, SleepCall, StepCall, WaitCall
from .fold import Change, OpenSleep, OpenStep, OpenWait, PartitionState, RunState, fold
from .host import HAND_OVER_S, Worker
from .log import Entry, Log, Reader, Record
from .timers import Timers, due_at
from .workflow import Workflow

logger = logging.getLogger("stepfold.worker")

LOST_LIMIT = 5
"""A run is quarantined when one of its steps has been lost with its worker this often in a row."""
SUSPECT_AFTER = 2
"""A step that has been lost this often in a row may be what kills its worker, or may only have run beside that. From then on
its attempts are announced, and run one at a time: what was not announced was not lost."""
TIMER_CHECK_S = 60.0
"""The clock may jump: a timer is looked at again this often, or after a thousandth of what is left."""
RESUME_RUNS = 100
ROOM_CHECK_S = 0.05
"""Where the code of all runs in memory is busy, it is looked at again this often whether some have become idle."""


class Live:
    """A run whose code is in memory."""

    __slots__ = ("attempts", "execution", "finished", "run", "workflow")

    def __init__(self, run: RunState, workflow: Workflow[Any, Any], execution: Execution) -> None:
        self.run = run
        self.workflow = workflow
        self.execution = execution
        self.finished = False
        self.attempts: dict[str, Attempt] = {}  # by step id: waiting for a place, running, or their result is on its way


class Owner:
    """One partition in one worker. `run` owns it until `stop`, another claim, or a log that fails."""

    def __init__(self, log: Log, partition: int, worker: Worker) -> None:
        self.log = log
        self.partition = partition
        self.worker = worker
        self.state: PartitionState | None = None
        self.claim = -1
        self.active = False
        self.leaving = False  # it was told to give the partition up, and begins nothing any more
        self.caught_up = asyncio.Event()
        self.live: dict[str, Live] = {}
        self.waiting: dict[str, bool] = {}  # runs whose workflow is not known here; whether their last owner died
        self._checkpoint = Checkpoint(log, partition, self._is_idle)
        self._claiming = Claiming(
            log,
            partition,
            worker.name,
            ids=worker.ids,
            is_live=worker.is_live,
            is_leaving=lambda: self.leaving,
            fold_one=self._fold_one,
        )
        self._outbox: list[Entry] = []
        self._appending_now = False
        self._drained = asyncio.Event()  # set, if anybody waits for it, once nothing is left to append
        self._wake_append = asyncio.Event()
        self._timers = Timers()
        self._timer: asyncio.TimerHandle | None = None
        self._since_checkpoint = 0
        self._checkpoint_due = asyncio.Event()
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._checkpoint_lock = asyncio.Lock()
        self._crashed = False  # while recovering: the owner before did not leave in good order
        self._recovery: asyncio.Task[None] | None = None
        self._unrecovered: dict[str, bool] = {}  # while recovering: runs of the owner before that may have work to do
        self._unbegun: set[tuple[str, str, int]] = set()  # run, step, attempt: announced by this owner, and never ran
        self._ended: asyncio.Future[None] | None = None
        self._reader: Reader | None = None
        self.loop = asyncio.get_running_loop()
        self._most_live = max(worker.settings.live_runs, 2 * worker.settings.concurrency)
        self._evict_at = 0.0
        self._deferred: OrderedDict[str, bool] = OrderedDict()  # runs whose code waits for room -> whether after a crash
        self._bring_in_timer: asyncio.TimerHandle | None = None

    # -- its life

    async def run(self) -> None:
        """Claim the partition, recover its runs, and serve them.

        Returns when another worker's claim is seen, or when told to leave before it claims. Raises LogUnavailable and
        ConfigError. Cancel it to stop at once; call `leave` first to stop in good order; after that `leaving` says that it
        shall not be owned again.
        """
        if self.state is not None and self.state.offset < (await self.log.bounds(self.partition))[0]:
            self.state = None  # what followed on it is gone; a checkpoint may cover that
        if self.state is None:
            self.state = await self._checkpoint.load()
        reader = self._reader = self.log.reader(self.partition, self.state.offset)
        self._ended = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[None]] = []
        try:
            patience_s = self.worker.settings.grace_s + HAND_OVER_S
            claimed = await self._claiming.claim(self.state, reader, patience_s)
            if claimed is None:
                return
            self.claim, previous, rest = claimed
            if previous not in (None, self.worker.name):
                self._checkpoint.unsure = True
            self._crashed = previous is not None and (previous != self.worker.name or self._crashed)
            self._unrecovered = dict.fromkeys(self.state.runs.at_hand, True)
            self.active = True
            self._claiming.decided.set()
            tasks = [
                asyncio.create_task(self._guard(part, *args), name=f"stepfold-{name}-{self.partition}")
                for name, part, *args in (
                    ("read", self._reading, reader, rest),
                    ("append", self._appending, reader),
                    ("recover", self._recovering, self.state),
                    ("checkpoint", self._checkpointing, self.state),
                )
            ]
            self._recovery = tasks[2]
            await asyncio.shield(self._ended)
        finally:
            self._claiming.decided.set()
            self._down()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await reader.close()

    async def _guard(self, part: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """What fails in one part ends the owner."""
        try:
            await part(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, `run` raises it
            self._end(error)

    def _end(self, error: BaseException | None = None) -> None:
        self.active = False
        self._drained.set()
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    def _down(self) -> None:
        """Stop acting. The folded state stays: it is a true prefix of the log, whoever owns the partition."""
        self.active = False
        self._drained.set()
        self.caught_up.clear()
        if self._ended is not None and not self._ended.done():
            self._ended.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._checkpoint_timer is not None:
            self._checkpoint_timer.cancel()
            self._checkpoint_timer = None
        for live in list(self.live.values()):
            self._unbegun.update((live.run.id, attempt.op.id, attempt.number) for attempt in _unbegun(live))
            self._close(live)
        self._outbox.clear()
        self._timers.clear()
        if self._bring_in_timer is not None:
            self._bring_in_timer.cancel()
            self._bring_in_timer = None
        self._deferred.clear()
        self._unrecovered.clear()
        self.waiting.clear()

    async def leave(self, grace_s: float) -> None:
        """Stop in good order: no new steps, up to `grace_s` for those that run, then a checkpoint, and the claim is given up.

        Raises LogUnavailable, and may then be called again.
        """
        self.leaving = True
        if self.state is None:
            return
        with contextlib.suppress(TimeoutError):  # what becomes of it must be known, or whoever comes next waits for a release
            async with asyncio.timeout(HAND_OVER_S):
                await self._claiming.decided.wait()
        if not self.active:  # the log was away
            if self.state.owner == self.worker.name and self.state.claim == self.claim:
                await self._release()
            return
        for live in self.live.values():
            for attempt in _unbegun(live):
                self._emit(live.run, "attempt-lost", step_id=attempt.op.id, attempt=attempt.number)
            for attempt in live.attempts.values():
                if attempt.task is None:
                    self.worker.withdraw(attempt)
        running = [a.task for live in self.live.values() for a in live.attempts.values() if a.task is not None]
        if self._crashed and self._recovery is not None:
            running.append(self._recovery)
        if running:
            await asyncio.wait(running, timeout=grace_s)
        await self._flushed()
        if not self.active:
            return
        for live in list(self.live.values()):
            self._close(live)
        await self._write_checkpoint(self.state)
        await self._release()
        self._end()

    async def _release(self) -> None:
        """Give the claim up; not before all is known that a crash has left, which whoever comes next would not look for."""
        if not self._crashed and not any(self._deferred.values()):
            release = self._claiming.entry(self.claim, None, self.worker.ids())
            await self.log.append(self.partition, [release])
            self.claim = -1

    async def _flushed(self) -> None:
        """Until everything in the outbox is durable."""
        while self.active and (self._outbox or self._appending_now):
            self._drained.clear()
            await self._drained.wait()

    def _fold_one(self, state: PartitionState, record: Record) -> Change | None:
        self._checkpoint.touch(record.key, state)
        self._since_checkpoint += 1
        change = fold(state, record)
        if change is not None and change.run is not None:
            change.run.idle = False
        elif change is not None and state.owner != self.worker.name and record.offset >= self._checkpoint.known:
            self._checkpoint.unsure = True
        return change

    # -- the log comes in

    async def _reading(self, reader: Reader, records: Sequence[Record]) -> None:
        self._take(records)
        while True:
            self._take(await reader.read(READ_RECORDS, None))

    def _take(self, records: Iterable[Record]) -> None:
        """Fold records and do what follows from each."""
        state = self.state
        assert state is not None
        self.worker.hold()
        try:
            for record in records:
                if self._unrecovered and self._unrecovered.get(record.key, False):
                    self._recover(state, record.key)  # as the owner before left it
                change = self._fold_one(state, record)
                if change is None or not self.active:
                    continue
                run = change.run
                if run is None:
                    if state.claim != self.claim:
                        logger.info("%s partition %d: now owned by %s", self.log.name, self.partition, state.owner or "nobody")
                        self._end()
                    continue
                self._react(change.event, run)
            if self._deferred:
                self._bring_in()
        finally:
            self.worker.release()
        if self._checkpoint_timer is None:
            self._checkpoint_timer = self.loop.call_later(self.worker.settings.checkpoint_s, self._checkpoint_due.set)
        if self._since_checkpoint >= self.worker.settings.checkpoint_records:
            self._checkpoint_due.set()

    def _react(self, event: dict[str, Any], run: RunState) -> None:
        live = self.live.get(run.id)
        kind = event["type"]
        if kind == "step-completed" and live is not None:  # nine in ten
            attempt = live.attempts.pop(event["step_id"], None)
            if attempt is not None and attempt.alone:
                self.worker.settled(attempt)
            self._advance(live)
            return
        if run.ended:
            if live is not None:
                self._close(live)
            self.waiting.pop(run.id, None)
            return
        if live is None:
            if kind in _STANDS_STILL and run.cancel_requested and self._stands_still(run):
                self._emit(run, "cancelled", reason=run.reason)
            elif run.phase == "open" and not self.leaving and (kind in _WAKES or len(run.journal) > run.executed):
                self._revive(run)
            for step_id in run.open if kind == "resumed" else (event.get("step_id"),):
                self._arm(run, step_id)
            return
        if kind in ("attempt-lost", "attempt-started", "step-failed"):
            step_id = event["step_id"]
            attempt = live.attempts.get(step_id)
            if kind == "attempt-started" and attempt is not None:
                if not self.leaving:
                    self.worker.dispatch(attempt)
                return
            live.attempts.pop(step_id, None)
            if attempt is not None and attempt.alone:
                self.worker.settled(attempt)
            op = live.execution.ops.get(step_id)
            if kind == "attempt-lost" and op is not None:
                self._dispatch(live, op)
        elif kind == "quarantined":
            self._close(live)
            return
        self._arm(run, event.get("step_id"))
        if len(run.journal) > live.execution.position:
            self._advance(live)

    # -- the code runs

    def _revive(self, run: RunState, crashed: bool = False) -> Live | None:
        """Bring a run's code into memory: replay it, and see to what it waits for."""
        state = self.state
        assert state is not None
        workflow = self.worker.find(run.workflow, run.version)
        if workflow is None:
            self.waiting[run.id] = crashed or self.waiting.get(run.id, False)
            if not run.awaits_worker:
                self._emit(run, "workflow-unknown")
            return None
        crashed = self.waiting.pop(run.id, False) or self._deferred.pop(run.id, False) or crashed
        if not self._has_room(state):
            self._deferred[run.id] = crashed
            state.runs.put_away(run.id)
            self._bring_in_later(ROOM_CHECK_S)
            return None
        worker = self.worker

        def handler(execution: Execution) -> Coroutine[Any, Any, Any]:
            return workflow.start(execution, worker.ports, worker.ctx_ext)

        execution = Execution(run, handler, run.executed)
        live = Live(run, workflow, execution)
        self.live[run.id] = live
        self._advance(live, crashed)
        return live

    def _has_room(self, state: PartitionState) -> bool:
        """Whether the code of one more run may come into memory. Idle ones give way; if all are busy, it has to wait.

        It must not wait while there are places for steps: what is busy might wait for it.
        """
        if len(self.live) >= self.worker.settings.live_runs and self.loop.time() >= self._evict_at:
            self._evict(state)
        return len(self.live) < self._most_live

    def _bring_in_later(self, delay_s: float) -> None:
        if self._bring_in_timer is None:
            self._bring_in_timer = self.loop.call_later(delay_s, self._bring_in_now)

    def _bring_in_now(self) -> None:
        self._bring_in_timer = None
        self._bring_in()

    def _bring_in(self) -> None:
        """Runs whose code had to wait for room have their turn, some of them."""
        state = self.state
        if state is None or not self.active or self.leaving:
            return
        for _ in range(min(RESUME_RUNS, len(self._deferred))):
            if not self._has_room(state):
                self._bring_in_later(ROOM_CHECK_S)
                return
            run_id, crashed = self._deferred.popitem(last=False)
            run = state.runs.get(run_id)
            if run is not None and run.phase == "open" and run_id not in self.live:
                self._revive(run, crashed)
        if self._deferred:
            self._bring_in_later(0)

    def _advance(self, live: Live, crashed: bool = False) -> None:
        execution = live.execution
        try:
            execution.advance()
        except NonDeterminism as error:
            self._quarantine(live, error)
            return
        except Exception as error:  # noqa: BLE001  # whatever it is: the partition's other runs go on
            cause = f"{type(error).__name__}: {error}"
            self._quarantine(live, NonDeterminism(f"run {live.run.id!r} cannot be replayed: {cause}", found=cause))
            return
        for op in execution.take_dropped():
            attempt = live.attempts.pop(op.id, None)
            if attempt is not None:
                self.worker.withdraw(attempt)
            if op.recorded and execution.outcome is None:
                self._emit(live.run, "step-cancelled", step_id=op.id)
        for op in execution.take_requested():
            self._begin(live, op, crashed)
            if self.live.get(live.run.id) is not live:
                return
        if execution.outcome is not None and not live.finished:
            live.finished = True
            self._finish(live, execution.outcome)

    def _begin(self, live: Live, op: Op, crashed: bool) -> None:
        """See to what the code asked for. `op.recorded`: the log knows of it already."""
        call = op.call
        run = live.run
        if isinstance(call, StepCall):
            known = run.open.get(op.id)
            step = known if isinstance(known, OpenStep) else None
            if step is not None and step.next_at is not None and step.next_at > self.log.now():
                self._timers.push(step.next_at, run.id, op.id)
                self._set_timer()
            elif step is not None and step.started and call.at_most_once:
                if (run.id, op.id, step.attempts + 1) in self._unbegun:
                    attempt = live.attempts[op.id] = Attempt(self, run, op, call, step)
                    attempt.announced = True
                    self.worker.dispatch(attempt)
                else:
                    self._interrupted(live, op, call, step)
            elif crashed and not call.at_most_once and (step is None or step.started or step.lost < SUSPECT_AFTER):
                self._lost(live, op, call, step)
            else:
                self._dispatch(live, op)
        elif op.recorded:
            return
        elif isinstance(call, SleepCall):
            op.recorded = True
            now = max(run.now, self.log.now())
            wake_at = now + call.delay_ms if call.delay_ms is not None else call.wake_at
            self._emit(run, "sleep-scheduled", step_id=op.id, wake_at=wake_at)
        elif isinstance(call, WaitCall):  # pyright: ignore[reportUnnecessaryIsInstance]  # reads as the two above
            op.recorded = True
            timeout_at = None if call.timeout_ms is None else max(run.now, self.log.now()) + call.timeout_ms
            self._emit(run, "wait-started", step_id=op.id, signal=call.signal, timeout_at=timeout_at)

    def _lost(self, live: Live, op: Op, call: StepCall, step: OpenStep | None) -> None:
        """The attempt was under way, for all we know, when the last owner died."""
        lost = step.lost if step is not None else 0
        if lost + 1 >= LOST_LIMIT:
            message = (
                f"step {op.id!r} was lost with its worker {lost + 1} times in a row: it may be what kills it. "
                f"Cancel the run, mend the step, and start it again under another run id"
            )
            self._stand_still(live, ErrorInfo("StepInterrupted", message, step_id=op.id))
            return
        op.recorded = True
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)  # meanwhile no timer may start it
        self._emit(live.run, "attempt-lost", step_id=op.id, attempt=attempt.number)

    def _interrupted(self, live: Live, op: Op, call: StepCall, step: OpenStep) -> None:
        """An at_most_once attempt was announced and has no result: it counts as failed."""
        error = StepInterrupted(
            f"the worker died while attempt {step.attempts + 1} of step {op.id!r} ran; whether it had an effect is unknown"
        )
        pause = call.retry.pause_ms(error, step.failures + 1, self.worker.random)
        info = ErrorInfo("StepInterrupted", str(error), step_id=op.id)
        next_at = None if pause is None else self.log.now() + pause
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)  # as in _lost
        self._emit(live.run, "step-failed", step_id=op.id, attempt=attempt.number, error=info.to_json(), next_at=next_at)

    def _dispatch(self, live: Live, op: Op) -> None:
        """Hand an attempt to the worker."""
        if self.leaving or op.id in live.attempts:
            return
        call = op.call
        assert isinstance(call, StepCall)
        known = live.run.open.get(op.id)
        attempt = Attempt(self, live.run, op, call, known if isinstance(known, OpenStep) else None)
        live.attempts[op.id] = attempt
        if call.at_most_once:
            self.announce(attempt)
        elif isinstance(known, OpenStep) and known.lost >= SUSPECT_AFTER:
            self.worker.dispatch_alone(attempt)
        else:
            self.worker.dispatch(attempt)

    def announce(self, attempt: Attempt) -> None:
        """Record that an attempt is about to run; it does once the record is back."""
        if self.leaving or not self._expects(attempt):
            return
        known = attempt.run.open.get(attempt.op.id)
        if isinstance(known, OpenStep) and known.started:  # by an owner that left before it ran
            self.worker.dispatch(attempt)
            return
        attempt.op.recorded = True
        attempt.announced = True
        self._emit(attempt.run, "attempt-started", step_id=attempt.op.id, attempt=attempt.number)

    def _finish(self, live: Live, outcome: Outcome) -> None:
        """The code has ended."""
        for message, error in live.execution.loop.unhandled:
            logger.warning("run %s: %s", live.run.id, message, exc_info=error, extra={"run_id": live.run.id})
        self._withdraw(live)
        run = live.run
        if outcome.kind == "completed":
            try:
                result = live.workflow.output.encode(outcome.value)
                if len(result) > self.worker.settings.max_payload_bytes:
                    limit = self.worker.settings.max_payload_bytes
                    raise PayloadTooLarge(f"the result of run {run.id!r} is {len(result):,} bytes; the limit is {limit:,}")
            except Exception as error:  # noqa: BLE001  # whatever the user's types raise fails the run
                self._emit(run, "failed", error=ErrorInfo.of(error).to_json())
            else:
                self._emit(run, "completed", result=orjson.Fragment(result))
        elif outcome.kind == "cancelled":
            self._emit(run, "cancelled", reason=run.reason)
        else:
            assert outcome.error is not None
            self._emit(run, "failed", error=ErrorInfo.of(outcome.error).to_json())

    def _quarantine(self, live: Live, error: NonDeterminism) -> None:
        info = ErrorInfo("NonDeterminism", str(error)).to_json()
        info.update(expected=error.expected, found=error.found, source=list(error.source))
        if live.run.phase == "quarantined":
            self._close(live)
            return
        logger.error("run %s is quarantined: %s", live.run.id, error, extra={"run_id": live.run.id})
        self._close(live)
        self._emit(live.run, "quarantined", error=info)

    def _stand_still(self, live: Live, info: ErrorInfo) -> None:
        logger.error("run %s is quarantined: %s", live.run.id, info.message, extra={"run_id": live.run.id})
        self._close(live)
        self._emit(live.run, "quarantined", error=info.to_json())

    def _close(self, live: Live) -> None:
        """Take a run's code out of memory."""
        live.run.idle = self._is_idle(live.run)
        self._withdraw(live)
        live.run.executed = max(live.run.executed, live.execution.position)
        self.live.pop(live.run.id, None)
        live.execution.close()

    def _withdraw(self, live: Live) -> None:
        attempts, live.attempts = live.attempts, {}
        for attempt in attempts.values():
            self.worker.withdraw(attempt)

    def _is_idle(self, run: RunState) -> bool:
        """Whether the run's code has run as far as it can and waits only for what the folded state tells of."""
        live = self.live.get(run.id)
        if live is None:
            return run.idle
        execution = live.execution
        if run.phase != "open" or live.attempts or execution.has_news or execution.position != len(run.journal):
            return False
        for op_id in execution.ops:
            known = run.open.get(op_id)
            if known is None or (isinstance(known, OpenStep) and known.next_at is None):
                return False
        return True

    def _evict(self, state: PartitionState) -> None:
        """Put the code of idle runs out of memory, those brought in first, and their state away."""
        bound = self.worker.settings.live_runs
        wanted = len(self.live) - bound + bound // 10 + 1
        idle = list(islice((live for live in self.live.values() if self._is_idle(live.run)), wanted))
        for live in idle:
            self._close(live)
            state.runs.put_away(live.run.id)
        if len(idle) < wanted:
            self._evict_at = self.loop.time() + ROOM_CHECK_S

    # -- what steps report

    def completed(self, attempt: Attempt, result: bytes) -> None:
        """An attempt succeeded with this JSON."""
        if self._expects(attempt):
            self._emit(
                attempt.run, "step-completed", step_id=attempt.op.id, attempt=attempt.number, result=orjson.Fragment(result)
            )

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """An attempt failed."""
        if not self._expects(attempt):
            return
        pause = attempt.call.retry.pause_ms(error, attempt.failures + 1, self.worker.random)
        info = ErrorInfo.of(error, attempt.op.id)
        fields: dict[str, Any] = {"step_id": attempt.op.id, "attempt": attempt.number, "error": info.to_json()}
        fields["next_at"] = None if pause is None else self.log.now() + pause
        if attempt.beats is not None and attempt.beats.fresh:
            fields["heartbeat"] = attempt.beats.details
        attempt.op.recorded = True
        self._emit(attempt.run, "step-failed", **fields)
        if pause is not None:
            logger.warning(
                "step %s of run %s failed (attempt %d), next in %s: %s",
                attempt.op.id,
                attempt.run.id,
                attempt.number,
                words(pause),
                info,
                extra={"run_id": attempt.run.id, "step_id": attempt.op.id, "attempt": attempt.number},
            )

    def heartbeat(self, attempt: Attempt, details: Any) -> None:
        """Record an attempt's latest details."""
        if self._expects(attempt):
            attempt.op.recorded = True
            at = attempt.heartbeat_at = max(self.log.now(), attempt.heartbeat_at + 1)
            self._emit(attempt.run, "step-heartbeat", step_id=attempt.op.id, attempt=attempt.number, details=details, at=at)

    def _expects(self, attempt: Attempt) -> bool:
        live = self.live.get(attempt.run.id)
        return self.active and live is not None and live.attempts.get(attempt.op.id) is attempt

    # -- the log goes out

    def _emit(self, run: RunState, kind: str, **fields: Any) -> None:
        """Decide: `fields` may name another `at` than now."""
        if not self.active:
            return
        event: dict[str, Any] = {"type": kind, "v": FORMAT, "run_id": run.id, "at": self.log.now(), "claim": self.claim}
        event.update(fields)
        if run.version is None and kind != "workflow-unknown":
            live = self.live.get(run.id)
            if live is not None:
                event["version"] = live.workflow.version
        self._outbox.append(Entry(run.id, encode(event)))
        self._wake_append.set()

    async def _appending(self, reader: Reader) -> None:
        while True:
            await self._wake_append.wait()
            self._wake_append.clear()
            while self._outbox:
                entries, self._outbox = self._outbox, []
                self._appending_now = True
                try:
                    acks = await self.log.append(self.partition, entries)
                finally:
                    self._appending_now = False
                self._take_own(reader, entries, acks)
            self._drained.set()

    def _take_own(self, reader: Reader, entries: Sequence[Entry], acks: Sequence[Any]) -> None:
        """Fold what was appended where nothing lies between it and what has been folded; the reader brings the rest."""
        state = self.state
        assert state is not None
        offset = state.offset
        known: list[Record] = []
        for entry, ack in zip(entries, acks, strict=True):
            if ack.offset != offset:
                break
            known.append(Record._make((offset, ack.timestamp, *entry)))
            offset += 1
        if known:
            reader.seek(offset)
            self._take(known)

    # -- time

    def _arm(self, run: RunState, step_id: str | None) -> None:
        """Set the timer of what is open."""
        op = run.open.get(step_id) if step_id else None
        due = None if op is None else due_at(op)
        if due is not None:
            assert step_id is not None
            self._timers.push(due, run.id, step_id)
            self._set_timer()

    def _set_timer(self) -> None:
        if not self.active or not self._timers:
            return
        left_s = max((self._timers.first - self.log.now()) / 1000, 0.0)
        delay_s = min(left_s, max(TIMER_CHECK_S, left_s / 1000))
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + delay_s:
                return
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._timers_due)

    def _timers_due(self) -> None:
        self._timer = None
        state = self.state
        if not self.active or state is None:
            return
        now = self.log.now()
        for _ in range(RESUME_RUNS):
            if not self._timers or self._timers.first > now:
                break
            at, run_id, step_id = self._timers.pop()
            run = state.runs.get(run_id)
            op = run.open.get(step_id) if run is not None else None
            if run is None or op is None or run.phase != "open":
                continue
            if isinstance(op, OpenSleep):
                self._emit(run, "sleep-completed", step_id=step_id, at=now)
            elif isinstance(op, OpenWait):
                if op.timeout_at == at:
                    self._emit(run, "wait-timed-out", step_id=step_id, at=now)
            elif op.next_at == at:
                self._retry(run, step_id)
        self._set_timer()

    def _retry(self, run: RunState, step_id: str) -> None:
        live = self.live.get(run.id)
        if live is None:
            if not self.leaving:
                self._revive(run)
            return
        op = live.execution.ops.get(step_id)
        if op is not None:
            self._dispatch(live, op)

    # -- recovery and checkpoints

    async def _recovering(self, state: PartitionState) -> None:
        """See to every open run, some at a time; one of which a record comes in has its turn before the record."""
        for number, run_id in enumerate(list(state.runs)):
            if number % RESUME_RUNS == 0:
                self._set_timer()
                await asyncio.sleep(0)
            if run_id in state.runs and self._unrecovered.get(run_id, True) and self.active:
                self._recover(state, run_id)
        self._unrecovered.clear()
        self._unbegun.clear()
        self._set_timer()
        self._crashed = False
        self.caught_up.set()

    def _recover(self, state: PartitionState, run_id: str) -> None:
        """Arm the timers of a run that another owner had, and replay it if it may have work to do."""
        if run_id in self._unrecovered:
            self._unrecovered[run_id] = False
        run = state.runs.peek(run_id)
        for step_id, op in run.open.items():
            due = due_at(op)
            if due is not None:
                self._timers.push(due, run_id, step_id)
        if run_id in self.live:
            return
        if run.cancel_requested and self._stands_still(run):
            self._emit(run, "cancelled", reason=run.reason)
            return
        if run.phase == "quarantined":
            self._try_resume(run)
            return
        run.executed = len(run.journal) if run.decided else -1
        if not run.idle or (self._crashed and self._may_have_retried(run)):
            self._revive(state.runs[run_id], self._crashed)
        elif run_id in state.runs.at_hand:
            state.runs.put_away(run_id)

    def _stands_still(self, run: RunState) -> bool:
        """Whether a cancellation ends the run at once: its code cannot go on, or is unknown here and has not begun anywhere."""
        return run.phase == "quarantined" or (not run.decided and self.worker.find(run.workflow, run.version) is None)

    def _may_have_retried(self, run: RunState) -> bool:
        now = self.log.now()
        return any(isinstance(op, OpenStep) and op.next_at is not None and op.next_at <= now for op in run.open.values())

    def _try_resume(self, run: RunState) -> None:
        """A run that was quarantined for its code goes on when the code agrees with the history again."""
        if run.error.get("type") != "NonDeterminism":
            return
        workflow = self.worker.find(run.workflow, run.version)
        if workflow is None:
            return
        worker = self.worker
        trial = Execution(run, lambda execution: workflow.start(execution, worker.ports, worker.ctx_ext), len(run.journal))
        try:
            trial.advance()
        except Exception:  # noqa: BLE001  # whatever it is, the run stands still as before
            return
        finally:
            trial.close()
        run.executed = len(run.journal)
        self._emit(run, "resumed")

    def workflows_changed(self) -> None:
        """Another workflow was registered: runs that waited for it go on."""
        state = self.state
        if state is None or not self.active:
            return
        for run_id in list(self.waiting):
            run = state.runs.get(run_id)
            if run is not None and self.worker.find(run.workflow, run.version) is not None:
                self._revive(run)

    async def _checkpointing(self, state: PartitionState) -> None:
        await self.caught_up.wait()
        while True:
            await self._checkpoint_due.wait()
            self._checkpoint_due.clear()
            if self._since_checkpoint:
                if self._checkpoint.unsure:
                    await self._checkpoint.look_again(state, self.claim)
                await self._write_checkpoint(state)

    async def _write_checkpoint(self, state: PartitionState) -> None:
        async with self._checkpoint_lock:
            await self._write_checkpoint_now(state)

    async def _write_checkpoint_now(self, state: PartitionState) -> None:
        if self._checkpoint.in_doubt == self.claim:
            return
        self._since_checkpoint = 0
        if self._checkpoint_timer is not None:
            self._checkpoint_timer.cancel()
            self._checkpoint_timer = None
        self._checkpoint.begin(state, self.claim)
        while self._checkpoint.pack_some(state):
            await asyncio.sleep(0)
        try:
            await self._checkpoint.commit()
        except PayloadTooLarge as error:
            logger.warning("%s partition %d: no checkpoint: %s", self.log.name, self.partition, error)


def _unbegun(live: Live) -> list[Attempt]:
    """The at_most_once attempts that were announced and have not begun to run."""
    return [one for one in live.attempts.values() if one.announced and not one.begun and one.call.at_most_once]


_WAKES = frozenset({"started", "resumed"})
"""Events that call for a run's code although its journal has not grown."""
_STANDS_STILL = frozenset({"cancel-requested", "quarantined"})
"""Events after which a run may have been cancelled and have no code that could end it."""
