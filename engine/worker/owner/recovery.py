"""The runs that an owner inherits: sets their timers, runs their code where it may have work to do, and tries quarantined runs.

After a crash the attempts of inherited runs count as lost when their code runs here. After several crashes in a row the code of
these runs is itself suspected, and runs in turns (`suspects.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ...authoring.workflow import Workflow
from ...core.fold import PartitionState
from ...core.state import EXPECTED, RunState
from ...errors import ErrorInfo
from ...events import FORMAT
from ..interrupts import from_keyboard
from ..suspects import KILLS_LIMIT, Suspects
from ..watchdog import TRIAL_S
from .appending import Appending
from .ownership import Ownership
from .running import Running
from .timers import Timers

RESUME_RUNS = 100
"""How many runs are recovered in one turn of the loop."""


class Revive(Protocol):
    """Brings a run's code into memory. `its_turn`: the run was announced, or needs no announcement."""

    def __call__(self, run: RunState, *, its_turn: bool = False) -> None: ...


class Recovery:
    """The inherited runs of one partition. `recovered` is called when every run has been seen."""

    def __init__(
        self,
        ownership: Ownership,
        code: Running,
        appending: Appending,
        timers: Timers,
        revive: Revive,
        recovered: Callable[[], None],
    ) -> None:
        self.crashed = False  # until recovery ends: the previous owner did not release
        # until recovery ends: unpacked inherited runs -> whether they are still to be recovered
        self.inherited: dict[str, bool] = {}
        self.orphans: set[str] = set()  # runs whose last owner died: their attempts count as lost when their code runs here
        self.suspects = Suspects(ownership.worker.pool.turns, self._announce_code)
        self._ownership = ownership
        self._worker = ownership.worker
        self._live = ownership.live
        self._code = code
        self._appending = appending
        self._emit = appending.emit
        self._timers = timers
        self._revive = revive
        self._recovered = recovered
        self._log_now = 0

    def begin(self, state: PartitionState, previous: str | None, log_now: int) -> None:
        """The claim was accepted at `log_now`, the log's time in ms; `previous` is the last owner that ran code, None if it
        released the partition.

        Another worker died, or was too slow to release. If it was this worker, only the log failed, and this worker knows which
        of its attempts ran; then an unfinished recovery counts.
        """
        name = self._worker.name
        self._log_now = log_now
        # previous: nobody, it released -> False; another worker -> True; this one -> as before: True if it had not recovered all
        self.crashed = previous is not None and (previous != name or self.crashed)
        if previous != name:
            self.orphans.clear()
        self.inherited = dict.fromkeys(state.runs.unpacked, True)
        self.suspects.begin(state.deaths if self.crashed or self.orphans else 0)

    async def run(self, state: PartitionState) -> None:
        """Recover every run, some per turn. The owner recovers a run earlier (`see_to`) if a record of it comes in."""
        for number, run_id in enumerate(state.runs.ids()):
            if number % RESUME_RUNS == 0:
                self._timers.start()
                await asyncio.sleep(0)
            if run_id in state.runs and self.inherited.get(run_id, True) and self._ownership.active:
                self.see_to(state, run_id)
        self.inherited.clear()
        self._timers.start()
        self.crashed = False
        self.suspects.open()
        self._recovered()

    def end(self) -> None:
        """The ownership has ended. Remembers the orphans, for the case that this worker owns the partition again."""
        self.inherited.clear()
        self.suspects.end()

    def complete(self, state: PartitionState, unknown_workflow: dict[str, None]) -> bool:
        """Whether this owner has handled all consequences of a crash: after a release the next owner does not look for lost
        attempts."""
        orphans = (state.runs.peek(run_id) for run_id in self.orphans if run_id in state.runs and run_id not in unknown_workflow)
        return not self.crashed and not self.suspects.waiting and not any(run.phase == "open" for run in orphans)

    def see_to(self, state: PartitionState, run_id: str) -> None:
        """Recover one run. Any error concerns only this run."""
        try:
            self._recover(state, run_id)
        except Exception as error:  # noqa: BLE001  # as it says
            self._code.contain(state.runs.get(run_id) or state.runs.peek(run_id), error)

    def may_run(self, run: RunState) -> bool:
        """Whether the code of a run may run without a turn. Puts the run aside at the limit, or queues it for its turn."""
        if run.suspected >= KILLS_LIMIT:
            self._put_aside(run)
            return False
        return not (self.suspects.careful and self.suspects.holds(run))

    def has_crashed(self, run_id: str) -> bool:
        """Whether the last owner of a run died. True once: the code runs here from now on."""
        crashed = run_id in self.orphans
        self.orphans.discard(run_id)
        return crashed

    def ends_without_code(self, run: RunState) -> bool:
        """Whether a cancellation ends the run at once: it is quarantined, or no worker has decided anything and this one lacks
        its code.
        """
        return run.phase == "quarantined" or (not run.decided and self._worker.find(run.workflow, run.version) is None)

    def run_suspect(self, run: RunState) -> None:
        """The run's announcement is in the log: run its code. If that decides nothing, clear the run: this process survived.
        Code that has paused has not come back yet.
        """
        if not self.suspects.turn(run.id) or not self._ownership.active or self._ownership.leaving:
            return
        said = len(self._appending)
        if run.phase == "open":
            self._revive(run, its_turn=True)
        else:
            self._try_resume(run)
        if len(self._appending) != said:
            return
        live = self._live.get(run.id)
        if live is not None and live.execution.paused:
            live.suspect = True
        else:
            self._emit(run, "code-cleared", v=FORMAT)

    def _recover(self, state: PartitionState, run_id: str) -> None:
        """Set the timers of an inherited run, and replay it if it may have work to do."""
        if run_id in self.inherited:
            self.inherited[run_id] = False
        run = state.runs.peek(run_id)
        if run.phase == EXPECTED:
            self._timers.add(state.kept_until(run), run_id, "")
            return
        for step_id, op in run.open.items():
            due = op.due_at
            if due is not None:
                self._timers.add(due, run_id, step_id)
            self._timers.arm_by_log(op, run_id, step_id, self._log_now)
        if run_id in self._live:
            return
        if run.cancel_requested and self.ends_without_code(run):
            self._code.record_cancelled(run)
            return
        idle = state.runs.is_idle(run_id)
        if self.crashed and (not idle or self._may_have_retried(run)):
            self.orphans.add(run_id)
        if run.phase == "quarantined":
            if run.suspected < KILLS_LIMIT and self._code_to_try(run) and not self.suspects.holds(run):
                self._try_resume(run)
            return
        state.runs.note_executed(run_id, len(run.journal) if run.decided else -1)
        if not idle or run_id in self.orphans:
            self._revive(state.runs.get(run_id) or run)
        elif run_id in state.runs.unpacked:
            state.runs.put_away(run_id)

    def _may_have_retried(self, run: RunState) -> bool:
        now = self._ownership.clock.now()
        return any(op.when_due is None and op.due_at is not None and op.due_at <= now for op in run.open.values())

    def _announce_code(self, run_id: str) -> bool:
        """Announce that a run's code is about to run and may end this process. Returns False if it shall not run."""
        state = self._ownership.state
        if not self._ownership.active or state is None or run_id not in state.runs:
            return False
        self._emit(state.runs.peek(run_id), "code-suspected", v=FORMAT)
        return True

    def _put_aside(self, run: RunState) -> None:
        message = (
            f"the code of workflow {run.workflow!r} ran when its worker died, {run.suspected} times in a row: it may be the "
            "cause (out of memory, a loop that never ends, a crash in an extension). Cancel the run, fix the code, and start it "
            "again under another run id"
        )
        self._code.put_aside(run, ErrorInfo("WorkflowInterrupted", message).to_json())

    def _code_to_try(self, run: RunState) -> Workflow[Any, Any] | None:
        """The workflow to try again for a quarantined run; None if it was quarantined for another reason than NonDeterminism."""
        return self._worker.find(run.workflow, run.version) if run.error.get("type") == "NonDeterminism" else None

    def _try_resume(self, run: RunState) -> None:
        """Resume a quarantined run if its code now agrees with the history."""
        workflow = self._code_to_try(run)
        if workflow is None:
            return
        live = self._code.load(run, workflow, len(run.journal))
        live.stop_s = TRIAL_S
        try:
            self._worker.watch.run(live, partial(self._code.rehearse, live))
        except BaseException as error:  # on any error the run stays quarantined
            if from_keyboard(error):
                raise
            live.execution.interrupted()
            return
        finally:
            self._code.shut(live)
        state = self._ownership.state
        assert state is not None
        state.runs.note_executed(run.id, len(run.journal))
        self._emit(run, "resumed")
