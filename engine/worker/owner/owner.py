"""The owner of one partition: folds the log, runs the code of its runs, and appends the decisions that follow.

The path of one step:

1. `_take` folds a record (`started`, or the previous result) and `Running.advance` delivers it: the code runs until it is idle.
2. There the operations that the code requested become work: the record of a sleep or wait, a step for the worker.
3. The step ends (`Worker._attempt`), and `emit` puts `step-completed` into the append queue (`appending.py`).
4. `Appending.run` appends the whole queue at once, while the next one fills.
5. `Appending` folds the acknowledged record if it follows directly on the folded offset; otherwise the reader brings it. Back
   to 1.

No code acts on a result before it has come back through the fold. The fold also decides who owns the partition: the owner
writes under its claim, and stops as soon as the fold accepts another claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from ...authoring.workflow import Workflow
from ...core.fold import Change, PartitionState, fold
from ...core.state import EXPECTED, RunState
from ...errors import ErrorInfo, PayloadTooLarge
from ...events import FORMAT
from ...log import Log, Reader, Record
from ...marks import mark_of
from ...replay.execution import Execution
from ..checkpoint import Checkpoint
from ..claiming import READ_RECORDS, Claiming
from ..clock import Clock, passing
from ..host import HAND_OVER_S, Worker
from ..interrupts import from_keyboard
from ..suspects import KILLS_LIMIT, Suspects
from ..telling import Telling
from ..watchdog import TRIAL_S
from .alarm import Alarm
from .appending import Appending
from .attempts import RESULT
from .checkpointing import Checkpointing
from .live import Live
from .running import Running

logger = logging.getLogger("stepfold.worker")

RESUME_RUNS = 100
ROOM_CHECK_S = 0.05
"""How often to check for idle runs while the code of all runs in memory is busy."""


class Owner:
    """Owns one partition in one worker. `run` owns it until `leave`, another claim, or a log that fails."""

    def __init__(self, log: Log, partition: int, worker: Worker) -> None:
        self.log = log
        self.partition = partition
        self.worker = worker
        self.state: PartitionState | None = None
        self.claim = -1
        self.active = False
        self.leaving = False  # told to release the partition: begins nothing new
        self.caught_up = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.clock = Clock(log.now, passing(self.loop))
        self.live: dict[str, Live] = {}
        self._appending = Appending(self, self._take, self._not_taken)
        self.emit = self._appending.emit
        self._alarm = Alarm(self, self._ring)
        self.code = Running(self, self.emit, self._alarm.wake_at)
        self._attempts = self.code.attempts
        self.waiting: dict[str, None] = {}  # runs whose workflow this worker does not know
        self._checkpoint = Checkpoint(log, partition, self.code.is_idle)
        self._claiming = Claiming(
            log,
            partition,
            worker.name,
            ids=worker.ids,
            is_live=worker.is_live,
            is_leaving=lambda: self.leaving,
            fold_one=self._fold_one,
        )
        self._told = Telling(log)
        self._checkpointing = Checkpointing(self, self._checkpoint, self._told)
        # the last owner that ran code; not this worker if it never learned that its claim was accepted
        self._previous: str | None = None
        self._crashed = False  # while recovering: the previous owner did not release
        self._orphans: set[str] = set()  # runs whose last owner died: their attempts count as lost when their code runs here
        self._recovery: asyncio.Task[None] | None = None
        # while recovering: unpacked inherited runs -> whether they are still to be recovered
        self._unrecovered: dict[str, bool] = {}
        self._suspects = Suspects(worker, self._announce_code)
        self._ended: asyncio.Future[None] | None = None
        self._reader: Reader | None = None
        self._rest: Sequence[Record] = ()  # records read after the accepted claim
        self._most_live = max(worker.settings.live_runs, 2 * worker.settings.concurrency)
        self._evict_at = 0.0
        self._deferred: OrderedDict[str, None] = OrderedDict()  # runs whose code waits for room in memory
        self._bring_in_timer: asyncio.TimerHandle | None = None

    # -- life

    async def run(self) -> None:
        """Claim the partition, recover its runs, and serve them.

        Returns when the fold accepts another worker's claim, or if `leave` was called before the claim. Raises LogUnavailable
        and ConfigError. Cancel it to stop at once. To stop in good order, call `leave` first; `leaving` then says that the
        partition shall not be claimed again.
        """
        if self.state is not None and not await self._checkpoint.fits(self.state):
            self.state = None
            self._attempts.unstarted.clear()
        if self.state is None:
            self.state = await self._checkpoint.load()
            self._previous = self.state.owner
            self._told.begin(self._checkpoint.told)
        reader = self._reader = self.log.reader(self.partition, self.state.offset)
        self._ended = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[None]] = []
        try:
            patience_s = self.worker.settings.grace_s + HAND_OVER_S
            claimed = await self._claiming.claim(self.state, reader, patience_s)
            if claimed is None:
                return
            self.claim, self._rest = claimed
            del claimed
            previous, self._previous = self._previous, self.worker.name
            if previous not in (None, self.worker.name):
                self._checkpoint.unsure = True
            # No owner before: it released. Another worker: it died, or it was too slow to release. This worker again: only the
            # log failed, and this worker knows which of its attempts ran; then an unfinished recovery counts.
            self._crashed = previous is not None and (previous != self.worker.name or self._crashed)
            if previous != self.worker.name:
                self._orphans.clear()
                self._attempts.unstarted.clear()
            self._unrecovered = dict.fromkeys(self.state.runs.at_hand, True)
            self._suspects.begin(self.state.deaths if self._crashed or self._orphans else 0)
            self.active = True
            self._claiming.decided.set()
            tasks = [
                asyncio.create_task(self._guard(part, *args), name=f"stepfold-{name}-{self.partition}")
                for name, part, *args in (
                    ("read", self._reading, reader),
                    ("append", self._appending.run, reader),
                    ("recover", self._recovering, self.state),
                    ("checkpoint", self._checkpointing.run, self.state, self.caught_up),
                    ("told", self._told.run),
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
        """An error in one part ends the owner."""
        try:
            await part(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # `run` raises any error
            self._end(error)

    def _end(self, error: BaseException | None = None) -> None:
        self.active = False
        self._appending.ended()
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    def _down(self) -> None:
        """Stop acting. Keeps the folded state: it is a true prefix of the log, whoever owns the partition (`run` checks that)."""
        self.active = False
        self._appending.ended()
        self.caught_up.clear()
        if self._ended is not None and not self._ended.done():
            self._ended.cancel()
        self._alarm.stop()
        self._checkpointing.stop()
        self._attempts.keep_unstarted()
        for live in list(self.live.values()):
            self.code.close(live)
        self._appending.clear()
        self._alarm.clear()
        if self._bring_in_timer is not None:
            self._bring_in_timer.cancel()
            self._bring_in_timer = None
        self._deferred.clear()
        self._unrecovered.clear()
        self._suspects.end()
        self.waiting.clear()

    async def leave(self, grace_s: float) -> None:
        """Stop in good order: start no steps, wait up to `grace_s` for running ones, write a checkpoint, release the claim.

        Raises LogUnavailable; may then be called again.
        """
        self.leaving = True
        if self.state is None:
            return
        # wait until our claim is accepted or void; else the next owner waits for a release that never comes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                await self._claiming.decided.wait()
        if not self.active:  # the log was unavailable
            if self.state.owner == self.worker.name and self.state.claim == self.claim:
                await self._release()
            return
        running: list[asyncio.Future[None]] = self._attempts.give_back()
        if self._crashed and self._recovery is not None:
            running.append(self._recovery)
        if running:
            await asyncio.wait(running, timeout=grace_s)
            self._attempts.abandon()
        await self._appending.flushed()
        if not self.active:
            return
        for live in list(self.live.values()):
            self.code.close(live)
        await self._checkpointing.write(self.state)
        await self._release()
        self._end()

    async def _release(self) -> None:
        """Release the claim if crash recovery is done. After a release the next owner does not look for lost attempts."""
        state = self.state
        assert state is not None
        orphans = (state.runs.peek(run_id) for run_id in self._orphans if run_id in state.runs and run_id not in self.waiting)
        if not self._crashed and not self._suspects.waiting and not any(run.phase == "open" for run in orphans):
            release = self._claiming.entry(self.claim, None, self.worker.ids(), state.memory_ms)
            await self.log.append(self.partition, [release])
            self.claim = -1

    def _fold_one(self, state: PartitionState, record: Record) -> Change | None:
        self._checkpoint.touch(record.key, state)
        self._checkpoint.last = record
        self._checkpointing.changes += 1
        change = fold(state, record)
        if change is not None and change.run is not None:
            change.run.idle = False
        elif change is not None and change.early is None:
            self._checkpoint.claimed = mark_of(record)
            if state.owner != self.worker.name:
                self._previous = state.owner
                if record.offset >= self._checkpoint.known:
                    self._checkpoint.unsure = True
        if state.refused:
            self._told.note(state, record.offset)
        return change

    # -- reading the log

    async def _reading(self, reader: Reader) -> None:
        rest, self._rest = self._rest, ()
        self._take(rest)
        del rest
        while True:
            self._take(await reader.read(READ_RECORDS, None))

    def _take(self, records: Iterable[Record]) -> None:
        """Fold records and act on each."""
        state = self.state
        assert state is not None
        self.worker.hold()
        try:
            for record in records:
                if self._unrecovered and self._unrecovered.get(record.key, False):
                    self._see_to(state, record.key)  # recover it in the state that the previous owner left
                change = self._fold_one(state, record)
                if change is None or not self.active:
                    continue
                run = change.run
                if change.early is not None:
                    self._expect(state, change.early)
                    continue
                if run is None:
                    if state.claim != self.claim:
                        logger.info("%s partition %d: now owned by %s", self.log.name, self.partition, state.owner or "nobody")
                        self._end()
                    continue
                if self._suspects.careful:
                    self._suspects.seen(run)  # before `_react` queues the run again
                try:
                    self._react(change.event, run)
                except Exception as error:  # noqa: BLE001  # any error concerns only this run
                    self.code.contain(run, error)
            if self._deferred:
                self._bring_in()
        finally:
            self.worker.release()
        if self._checkpointing.schedule():
            self._appending.compare = True

    def _expect(self, state: PartitionState, run: RunState) -> None:
        """A signal came before its run. Set a timer to forget it if the run does not begin in time."""
        run.idle = True
        if len(run.input) == 1:
            if run.id in state.runs.at_hand:
                state.runs.put_away(run.id)
            self._alarm.wake_at(state.kept_until(run), run.id, "")

    def _forget(self, state: PartitionState, run: RunState) -> None:
        """Forget early signals whose time is over; set the timer again if later ones are kept."""
        until = state.kept_until(run)
        if until > self.clock.now():
            self._alarm.wake_at(until, run.id, "")
            return
        self._checkpoint.touch(run.id, state)
        self._checkpointing.changes += 1
        state.drop(run.id)
        self._told.note(state, state.offset)

    def _react(self, event: dict[str, Any], run: RunState) -> None:
        live = self.live.get(run.id)
        kind = event["type"]
        if kind == RESULT and live is not None:  # short path for nine records in ten
            self._attempts.over(live, event["step_id"])
            self.code.advance(live)
            return
        if run.ended:
            if live is not None:
                self.code.close(live)
            self.waiting.pop(run.id, None)
            self._orphans.discard(run.id)
            return
        if kind == "code-suspected":
            self._run_suspect(run)
            return
        if live is None:
            if kind in _STANDS_STILL and run.cancel_requested and self._stands_still(run):
                self.code.record_cancelled(run)
            elif run.phase == "open" and not self.leaving and (kind in _WAKES or len(run.journal) > run.executed):
                self._revive(run)
            for step_id in run.open if kind == "resumed" else (event.get("step_id"),):
                self._alarm.arm(run, step_id)
            return
        if kind == "quarantined":
            self.code.close(live)
            return
        if not self._attempts.react(live, event):
            return
        self._alarm.arm(run, event.get("step_id"))
        if len(run.journal) > live.execution.position:
            self.code.advance(live)

    # -- running code

    def _revive(self, run: RunState, *, its_turn: bool = False) -> None:
        """Bring a run's code into memory: replay it, and start the operations that it waits for.

        Does nothing yet if the workflow is unknown here, the run must be announced first or is suspected too often, memory has
        no room, or the completed input must be recorded. `its_turn`: the run was announced, or needs no announcement.
        """
        state = self.state
        assert state is not None
        workflow = self.worker.find(run.workflow, run.version)
        if workflow is None:
            self.waiting[run.id] = None
            self.worker.unknown(run)
            if not run.awaits_worker:
                self.emit(run, "workflow-unknown")
            return
        self.waiting.pop(run.id, None)
        self._deferred.pop(run.id, None)
        if not its_turn:
            if run.suspected >= KILLS_LIMIT:
                self._put_aside(run)
                return
            if self._suspects.careful and self._suspects.holds(run):
                return
        if not its_turn and not self._has_room(state):
            self._deferred[run.id] = None
            state.runs.put_away(run.id)
            self._bring_in_later(ROOM_CHECK_S)
            return
        if not run.decided and self.code.completes_input(run, workflow):
            return
        worker = self.worker

        def handler(execution: Execution) -> Coroutine[Any, Any, Any]:
            return workflow.start(execution, worker.ports, worker.ctx_ext)

        execution = Execution(run, handler, run.executed, self.code.host(run.id))
        live = Live(run, workflow, execution)
        self.live[run.id] = live
        crashed = run.id in self._orphans
        self._orphans.discard(run.id)
        self.code.advance(live, crashed)

    def _has_room(self, state: PartitionState) -> bool:
        """Whether the code of one more run fits into memory. Evicts idle runs if needed.

        The limit is at least twice `concurrency`: a run must not wait for room while steps have places, since a busy run may
        wait for it.
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
        """Revive some of the runs that wait for room."""
        state = self.state
        if state is None or not self.active or self.leaving:
            return
        for _ in range(min(RESUME_RUNS, len(self._deferred))):
            if not self._has_room(state):
                self._bring_in_later(ROOM_CHECK_S)
                return
            run_id, _ = self._deferred.popitem(last=False)
            run = state.runs.get(run_id)
            if run is not None and run.phase == "open" and run_id not in self.live:
                self.code.contained(run, self._revive)
        if self._deferred:
            self._bring_in_later(0)

    def _evict(self, state: PartitionState) -> None:
        """Take the code of idle runs out of memory, the oldest first, and put their state away."""
        bound = self.worker.settings.live_runs
        wanted = len(self.live) - bound + bound // 10 + 1
        idle = list(islice((live for live in self.live.values() if self.code.is_idle(live.run)), wanted))
        for live in idle:
            self.code.close(live)
            state.runs.put_away(live.run.id)
        if len(idle) < wanted:
            self._evict_at = self.loop.time() + ROOM_CHECK_S

    # -- timers

    def _ring(self, at: int, run_id: str, step_id: str) -> None:
        """A timer is due. It has no meaning any more if its operation is over, or waits for another time."""
        state = self.state
        assert state is not None
        run = state.runs.get(run_id)
        op = run.open.get(step_id) if run is not None else None
        if run is not None and run.phase == EXPECTED:
            self._forget(state, run)
        if run is None or op is None or run.phase != "open" or op.due_at != at:
            return
        if op.when_due is None:
            self.code.contained(run, self._retry, step_id)
        else:
            self.code.contained(run, self.emit, op.when_due, step_id=step_id, at=max(self.clock.now(), at))

    def _retry(self, run: RunState, step_id: str) -> None:
        live = self.live.get(run.id)
        if live is None:
            if not self.leaving:
                self._revive(run)
            return
        op = live.execution.ops.get(step_id)
        if op is not None:
            self._attempts.dispatch(live, op)

    # -- recovery and checkpoints

    async def _recovering(self, state: PartitionState) -> None:
        """Recover every run, some per turn. `_take` recovers a run earlier if a record of it comes in."""
        for number, run_id in enumerate(state.runs.ids()):
            if number % RESUME_RUNS == 0:
                self._alarm.start()
                await asyncio.sleep(0)
            if run_id in state.runs and self._unrecovered.get(run_id, True) and self.active:
                self._see_to(state, run_id)
        self._unrecovered.clear()
        self._attempts.unstarted.clear()
        self._alarm.start()
        self._crashed = False
        self._suspects.open()
        self.caught_up.set()

    def _not_taken(self, run: RunState, event: dict[str, Any], error: PayloadTooLarge) -> None:
        self.code.contained(run, self.code.not_taken, event, error)

    def _see_to(self, state: PartitionState, run_id: str) -> None:
        try:
            self._recover(state, run_id)
        except Exception as error:  # noqa: BLE001  # any error concerns only this run
            self.code.contain(state.runs.get(run_id) or state.runs.peek(run_id), error)

    def _recover(self, state: PartitionState, run_id: str) -> None:
        """Set the timers of an inherited run, and replay it if it may have work to do."""
        if run_id in self._unrecovered:
            self._unrecovered[run_id] = False
        run = state.runs.peek(run_id)
        if run.phase == EXPECTED:
            self._alarm.add(state.kept_until(run), run_id, "")
            return
        for step_id, op in run.open.items():
            due = op.due_at
            if due is not None:
                self._alarm.add(due, run_id, step_id)
        if run_id in self.live:
            return
        if run.cancel_requested and self._stands_still(run):
            self.code.record_cancelled(run)
            return
        if self._crashed and (not run.idle or self._may_have_retried(run)):
            self._orphans.add(run_id)
        if run.phase == "quarantined":
            if run.suspected < KILLS_LIMIT and self._code_to_try(run) and not self._suspects.holds(run):
                self._try_resume(run)
            return
        run.executed = len(run.journal) if run.decided else -1
        if not run.idle or run_id in self._orphans:
            self._revive(state.runs.get(run_id) or run)
        elif run_id in state.runs.at_hand:
            state.runs.put_away(run_id)

    def _announce_code(self, run_id: str) -> bool:
        """Announce that a run's code is about to run and may end this process. Returns False if it shall not run."""
        state = self.state
        if not self.active or state is None or run_id not in state.runs:
            return False
        self.emit(state.runs.peek(run_id), "code-suspected", v=FORMAT)
        return True

    def _run_suspect(self, run: RunState) -> None:
        """The run's announcement is in the log: run its code. If that decides nothing, clear the run: this process survived."""
        if not self._suspects.turn(run.id) or not self.active or self.leaving:
            return
        said = len(self._appending)
        if run.phase == "open":
            self._revive(run, its_turn=True)
        else:
            self._try_resume(run)
        if len(self._appending) == said:
            self.emit(run, "code-cleared", v=FORMAT)

    def _put_aside(self, run: RunState) -> None:
        message = (
            f"the code of workflow {run.workflow!r} ran when its worker died, {run.suspected} times in a row: it may be the "
            "cause (out of memory, a loop that never ends, a crash in an extension). Cancel the run, fix the code, and start it "
            "again under another run id"
        )
        self.code.put_aside(run, ErrorInfo("WorkflowInterrupted", message).to_json())

    def _stands_still(self, run: RunState) -> bool:
        """Whether a cancellation ends the run at once: it is quarantined, or no worker has decided anything and this one lacks
        its code.
        """
        return run.phase == "quarantined" or (not run.decided and self.worker.find(run.workflow, run.version) is None)

    def _may_have_retried(self, run: RunState) -> bool:
        now = self.clock.now()
        return any(op.when_due is None and op.due_at is not None and op.due_at <= now for op in run.open.values())

    def _code_to_try(self, run: RunState) -> Workflow[Any, Any] | None:
        """The workflow to try again for a quarantined run; None if it was quarantined for another reason than NonDeterminism."""
        return self.worker.find(run.workflow, run.version) if run.error.get("type") == "NonDeterminism" else None

    def _try_resume(self, run: RunState) -> None:
        """Resume a quarantined run if its code now agrees with the history."""
        workflow = self._code_to_try(run)
        if workflow is None:
            return
        worker = self.worker
        host = self.code.host(run.id)
        trial = Execution(run, lambda execution: workflow.start(execution, worker.ports, worker.ctx_ext), len(run.journal), host)
        live = Live(run, workflow, trial)
        live.stop_s = TRIAL_S
        try:
            worker.watch.run(live, partial(self.code.rehearse, live))
        except BaseException as error:  # on any error the run stays quarantined
            if from_keyboard(error):
                raise
            trial.interrupted()
            return
        finally:
            self.code.shut(live)
        run.executed = len(run.journal)
        self.emit(run, "resumed")

    def workflows_changed(self) -> None:
        """A workflow was registered: revive runs that waited for it."""
        state = self.state
        if state is None or not self.active:
            return
        for run_id in list(self.waiting):
            run = state.runs.get(run_id)
            if run is not None and self.worker.find(run.workflow, run.version) is not None:
                self.code.contained(run, self._revive)


_WAKES = frozenset({"started", "input-completed", "resumed"})
"""Events that call for a run's code although its journal has not grown."""
_STANDS_STILL = frozenset({"cancel-requested", "quarantined"})
"""Events after which a cancelled run may have no code that could end it."""
