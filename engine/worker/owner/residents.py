"""The runs whose code is in memory: brings code in, takes idle code out, and knows the runs that wait to come in.

A run waits for room in memory, or for a workflow that this worker does not know. Idle runs give up their room first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from ...core.fold import PartitionState
from ...core.state import RunState
from .ownership import Emit, Ownership
from .running import Running

BROUGHT_IN = 100
"""How many waiting runs come in in one turn of the loop."""
ROOM_CHECK_S = 0.05
"""How often to check for idle runs while the code of all runs in memory is busy."""


class Residents:
    """The runs of one partition whose code is in memory, and those that wait for that.

    `may_run` says whether a run's code may run now; if not, it queues the run for later or puts the run aside.
    `has_crashed` says, once for each run, whether its last owner died, so that attempts without a result may be lost.
    """

    def __init__(
        self,
        ownership: Ownership,
        code: Running,
        emit: Emit,
        may_run: Callable[[RunState], bool],
        has_crashed: Callable[[str], bool],
    ) -> None:
        self.unknown_workflow: dict[str, None] = {}  # runs whose workflow this worker does not know
        self.deferred: OrderedDict[str, None] = OrderedDict()  # runs whose code waits for room in memory
        self._ownership = ownership
        self._worker = ownership.worker
        self._loop = ownership.loop
        self._live = ownership.live
        self._code = code
        self._emit = emit
        self._may_run = may_run
        self._has_crashed = has_crashed
        self._bound = self._worker.settings.live_runs
        self._most = max(self._bound, 2 * self._worker.settings.concurrency)
        self._evict_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def revive(self, run: RunState, *, its_turn: bool = False) -> None:
        """Bring a run's code into memory: replay it, and start the operations that it waits for.

        Does nothing yet if the workflow is unknown here, the run must be announced first or is suspected too often, memory has
        no room, or the completed input must be recorded. `its_turn`: the run was announced, or needs no announcement.
        """
        state = self._ownership.state
        assert state is not None
        worker = self._worker
        workflow = worker.find(run.workflow, run.version)
        if workflow is None:
            self.unknown_workflow[run.id] = None
            worker.unknown(run)
            if not run.awaits_worker:
                self._emit(run, "workflow-unknown")
            return
        self.unknown_workflow.pop(run.id, None)
        self.deferred.pop(run.id, None)
        if not its_turn and not self._may_run(run):
            return
        if not its_turn and not self._has_room(state):
            self.deferred[run.id] = None
            state.runs.put_away(run.id)
            self._bring_in_later(ROOM_CHECK_S)
            return
        if not run.decided and self._code.completes_input(run, workflow):
            return
        live = self._live[run.id] = self._code.load(run, workflow, state.runs.executed(run.id))
        self._code.advance(live, self._has_crashed(run.id))

    def bring_in(self) -> None:
        """Revive some of the runs that wait for room."""
        ownership = self._ownership
        state = ownership.state
        if state is None or not ownership.active or ownership.leaving:
            return
        for _ in range(min(BROUGHT_IN, len(self.deferred))):
            if not self._has_room(state):
                self._bring_in_later(ROOM_CHECK_S)
                return
            run_id, _ = self.deferred.popitem(last=False)
            run = state.runs.get(run_id)
            if run is not None and run.phase == "open" and run_id not in self._live:
                self._code.contained(run, self.revive)
        if self.deferred:
            self._bring_in_later(0)

    def workflows_changed(self) -> None:
        """A workflow was registered: revive runs that waited for it."""
        state = self._ownership.state
        if state is None or not self._ownership.active:
            return
        for run_id in list(self.unknown_workflow):
            run = state.runs.get(run_id)
            if run is not None and self._worker.find(run.workflow, run.version) is not None:
                self._code.contained(run, self.revive)

    def clear(self) -> None:
        """The ownership has ended: no run waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.deferred.clear()
        self.unknown_workflow.clear()

    def _has_room(self, state: PartitionState) -> bool:
        """Whether the code of one more run fits into memory. Evicts idle runs if needed.

        The limit is at least twice `concurrency`: a run must not wait for room while steps have slots, since a busy run may
        wait for it.
        """
        if len(self._live) >= self._bound and self._loop.time() >= self._evict_at:
            self._evict(state)
        return len(self._live) < self._most

    def _bring_in_later(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._bring_in_now)

    def _bring_in_now(self) -> None:
        self._timer = None
        self.bring_in()

    def _evict(self, state: PartitionState) -> None:
        """Take the code of idle runs out of memory, the oldest first, and put their state away."""
        wanted = len(self._live) - self._bound + self._bound // 10 + 1
        idle = list(islice((live for live in self._live.values() if self._code.is_idle(live)), wanted))
        for live in idle:
            self._code.close(live)
            state.runs.put_away(live.run.id)
        if len(idle) < wanted:
            self._evict_at = self._loop.time() + ROOM_CHECK_S
