"""The owner of one partition: folds the log, runs the code of its runs, and appends the decisions that follow.

The path of one step:

1. `_take` folds a record (`started`, or the previous result) and `Running.advance` delivers it: the code runs until it is idle.
2. There the operations that the code requested become work: the record of a sleep or wait, a step for the worker.
3. The step ends (`Pool._attempt`), and `emit` puts `step-completed` into the append queue (`appending.py`).
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
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from ...core.fold import Change, PartitionState, fold
from ...core.state import EXPECTED, RunState
from ...errors import PayloadTooLarge
from ...log import Log, Reader, Record
from ...marks import mark_of
from ..checkpoint import Checkpoint
from ..claiming import READ_RECORDS, Claiming
from ..clock import Clock, passing
from ..host import HAND_OVER_S, WorkerPort
from ..observer import Note
from ..telling import Telling
from .appending import Appending
from .attempts import RESULT
from .checkpointing import Checkpointing
from .figures import Figures
from .live import Live
from .recovery import Recovery
from .residents import Residents
from .running import Running
from .sending import Sending
from .timers import Timers

logger = logging.getLogger("stepfold.worker")


class Owner:
    """Owns one partition in one worker. `run` owns it until `leave`, another claim, or a log that fails."""

    def __init__(self, log: Log, partition: int, worker: WorkerPort) -> None:
        self.log = log
        self.partition = partition
        self.worker = worker
        self._observer = worker.observer
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
        self._timers = Timers(self, self._ring)
        self._code = Running(self, self.emit, self._timers.wake_at, lambda: self._appending.full)
        self._attempts = self._code.attempts
        self._recovery = Recovery(self, self._code, self._appending, self._timers, self._revive, self._recovered)
        self._residents = Residents(self, self._code, self.emit, self._recovery.may_run, self._recovery.has_crashed)
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
        self._told = Telling(log, worker.observer)
        self._sending = Sending(self, self._appending.append, self._guard)
        self._checkpointing = Checkpointing(self, self._checkpoint, self._told)
        # the last owner that ran code; not this worker if it never learned that its claim was accepted
        self._previous: str | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._unfolded: Sequence[Record] = ()  # records read after the accepted claim

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
        reader = self.log.reader(self.partition, self.state.offset)
        self._ended = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[None]] = []
        try:
            patience_s = self.worker.settings.grace_s + HAND_OVER_S
            claimed = await self._claiming.claim(self.state, reader, patience_s)
            if claimed is None:
                return
            self.claim, self._unfolded = claimed
            del claimed
            previous, self._previous = self._previous, self.worker.name
            if previous not in (None, self.worker.name):
                self._checkpoint.foreign_writes_possible = True
            if previous != self.worker.name:
                self._attempts.unstarted.clear()
            assert isinstance(self._checkpoint.last, Record)  # our claim
            self._recovery.begin(self.state, previous, self._checkpoint.last.timestamp)
            self.active = True
            self._note("claim")
            self._claiming.decided.set()
            tasks = [
                asyncio.create_task(self._guard(part, *args), name=f"stepfold-{name}-{self.partition}")
                for name, part, *args in (
                    ("read", self._reading, reader),
                    ("append", self._appending.run, reader),
                    ("recover", self._recovery.run, self.state),
                    ("checkpoint", self._checkpointing.run, self.state, self.caught_up),
                    ("told", self._told.run),
                )
            ]
            self._recovering = tasks[2]
            self._sending.look()
            await asyncio.shield(self._ended)
        finally:
            self._claiming.decided.set()
            self._down()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._sending.stop(), return_exceptions=True)
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
        self._timers.stop()
        self._checkpointing.stop()
        self._attempts.keep_unstarted()
        for live in list(self.live.values()):
            self._code.close(live)
        self._appending.clear()
        self._attempts.away.clear()
        self._timers.clear()
        self._residents.clear()
        self._code.paused.clear()
        self._recovery.end()

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
        if self._recovery.crashed and self._recovering is not None:
            running.append(self._recovering)
        if running:
            await asyncio.wait(running, timeout=grace_s)
            self._attempts.abandon()
        self._sending.settle()
        await self._appending.flushed()
        if not self.active:
            return
        for live in list(self.live.values()):
            self._code.close(live)
        await self._checkpointing.write(self.state)
        await self._release()
        self._end()

    async def _release(self) -> None:
        """Release the claim if crash recovery is done. After a release the next owner does not look for lost attempts."""
        state = self.state
        assert state is not None
        if self._recovery.complete(state, self._residents.unknown_workflow):
            release = self._claiming.entry(self.claim, None, self.worker.ids(), state.memory_ms)
            await self.log.append(self.partition, [release])
            self.claim = -1

    def _fold_one(self, state: PartitionState, record: Record) -> Change | None:
        self._checkpoint.touch(record.key, state)
        self._checkpoint.last = record
        self._checkpointing.changes += 1
        change = fold(state, record)
        if change is not None and change.run is not None:
            if change.run.id not in self.live:
                state.runs.note_idle(change.run.id, False)
        elif change is not None and change.event["type"] == "claim":
            self._checkpoint.claimed = mark_of(record)
            if state.owner != self.worker.name:
                self._previous = state.owner
                if record.offset >= self._checkpoint.known:
                    self._checkpoint.foreign_writes_possible = True
        if state.refused:
            self._told.note(state, record.offset)
        return change

    # -- reading the log

    async def _reading(self, reader: Reader) -> None:
        unfolded, self._unfolded = self._unfolded, ()
        self._take(unfolded)
        del unfolded
        while True:
            self._take(await reader.read(READ_RECORDS, None))

    def _take(self, records: Iterable[Record]) -> None:
        """Fold records and act on each."""
        state = self.state
        assert state is not None
        self.worker.pool.hold()
        try:
            for record in records:
                if self._recovery.inherited and self._recovery.inherited.get(record.key, False):
                    self._recovery.see_to(state, record.key)  # recover it in the state that the previous owner left
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
                        self._note("claim-lost")
                        self._end()
                    continue
                if self._observer is not None:
                    self._observer.folded(run, change.event)
                if self._recovery.suspects.careful:
                    self._recovery.suspects.seen(run)  # before `_react` queues the run again
                try:
                    self._react(state, change.event, run)
                except Exception as error:  # noqa: BLE001  # any error concerns only this run
                    self._code.contain(run, error)
            if self._residents.deferred:
                self._residents.bring_in()
            if self._code.paused:
                self._code.go_on()
            if state.outbox.targets and self.active:
                self._sending.look()
        finally:
            self.worker.pool.release()
        if self._checkpointing.schedule():
            self._appending.compare = True

    def _expect(self, state: PartitionState, run: RunState) -> None:
        """A signal came before its run. Set a timer to forget it if the run does not begin in time."""
        state.runs.note_idle(run.id, True)
        if len(run.input) == 1:
            if run.id in state.runs.unpacked:
                state.runs.put_away(run.id)
            self._timers.wake_at(state.kept_until(run), run.id, "")

    def _forget(self, state: PartitionState, run: RunState) -> None:
        """Forget early signals whose time is over; set the timer again if later ones are kept."""
        until = state.kept_until(run)
        if until > self.clock.now():
            self._timers.wake_at(until, run.id, "")
            return
        self._checkpoint.touch(run.id, state)
        self._checkpointing.changes += 1
        state.drop(run.id)
        self._told.note(state, state.offset)

    def _react(self, state: PartitionState, event: dict[str, Any], run: RunState) -> None:
        live = self.live.get(run.id)
        event_type = event["type"]
        # Nine records in ten: a result ends no run, sets no timer and starts no announced attempt, so skip what looks for them.
        if event_type == RESULT and live is not None:
            self._attempts.over(live, event["step_id"])
            self._code.advance(live)
            return
        if run.ended:
            if live is not None:
                self._code.close(live)
            self._residents.unknown_workflow.pop(run.id, None)
            self._recovery.orphans.discard(run.id)
            return
        if event_type == "code-suspected":
            self._recovery.run_suspect(run)
            return
        armed = event.get("step_id")
        if "claim" not in event and armed in run.open:  # a request at most moves a time by the log's clock
            self._timers.arm_by_log(run.open[armed], run.id, armed, run.now)
            armed = None
        if live is None:
            news = event_type in _WAKES or len(run.journal) > state.runs.executed(run.id)
            if event_type in _MAY_END and run.cancel_requested and self._recovery.ends_without_code(run):
                self._code.record_cancelled(run)
            elif news and run.phase == "open" and not self.leaving:
                self._residents.revive(run)
            for step_id in run.open if event_type == "resumed" else (armed,):
                self._timers.arm(run, step_id)
            return
        if event_type == "quarantined":
            self._code.close(live)
            return
        if not self._attempts.react(live, event):
            return
        self._timers.arm(run, armed)
        if len(run.journal) > live.execution.position:
            self._code.advance(live)

    # -- timers

    def _ring(self, at: int, run_id: str, step_id: str) -> None:
        """A timer is due. It has no meaning any more if its operation is over, or waits for another time."""
        state = self.state
        assert state is not None
        run = state.runs.get(run_id)
        op = run.open.get(step_id) if run is not None else None
        if run is not None and run.phase == EXPECTED:
            self._forget(state, run)
        if run is None or op is None or run.phase != "open":
            return
        by_log = op.due_by_log == at
        if op.due_at != at and not by_log:
            return
        if op.when_due is None:
            self._code.contained(run, self._retry, step_id)
        elif self._attempts.hold(run, step_id):
            decided_at = at if by_log else max(self.clock.now(), at)
            self._code.contained(run, self.emit, op.when_due, decided_at, step_id=step_id, **op.due_fields(by_log))

    def _retry(self, run: RunState, step_id: str) -> None:
        live = self.live.get(run.id)
        if live is None:
            if not self.leaving:
                self._residents.revive(run)
            return
        op = live.execution.ops.get(step_id)
        if op is not None:
            self._attempts.dispatch(live, op)

    # -- functions for the rooms

    def _note(self, note: Note) -> None:
        if self._observer is not None:
            self._observer.noted(note)

    def _revive(self, run: RunState, *, its_turn: bool = False) -> None:
        self._residents.revive(run, its_turn=its_turn)

    def _not_taken(self, run: RunState, event: dict[str, Any], error: PayloadTooLarge) -> None:
        self._code.contained(run, self._code.not_taken, event, error)

    def _is_idle(self, run_id: str) -> bool:
        live = self.live.get(run_id)
        if live is not None:
            return self._code.is_idle(live)
        return self.state is not None and self.state.runs.is_idle(run_id)

    def _recovered(self) -> None:
        self._attempts.unstarted.clear()
        self.caught_up.set()

    def figures(self) -> Figures | None:
        """The partition as this owner sees it now; None before its state is there."""
        state, checkpointing = self.state, self._checkpointing
        if state is None:
            return None
        return Figures(
            partition=self.partition,
            caught_up=self.caught_up.is_set(),
            offset=state.offset,
            open_runs=len(state.runs),
            resident_runs=len(self.live),
            timers=len(self._timers),
            timer_late_s=self._timers.late_s(),
            append_queue=len(self._appending),
            changes=checkpointing.changes,
            checkpoint_at=checkpointing.written_at,
            checkpoint_bytes=self._checkpoint.written_bytes,
        )

    def workflows_changed(self) -> None:
        """A workflow was registered: revive runs that waited for it."""
        self._residents.workflows_changed()


_WAKES = frozenset({"started", "input-completed", "resumed"})
"""Events that call for a run's code although its journal has not grown."""
_MAY_END = frozenset({"cancel-requested", "quarantined"})
"""Events after which a cancelled run may have no code that could end it."""
