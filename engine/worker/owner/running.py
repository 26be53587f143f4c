"""Runs the code of a partition's runs while it is in memory: delivers the journal, and turns requests of the code into work.

This module does not decide who owns the partition; it neither reads nor appends. It passes decisions to the owner. An error in
a run's code ends or quarantines that run alone. A result counts only when it has come back through the fold.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import orjson

from ...authoring.workflow import Workflow
from ...core.lifecycle import MAX_REASON_CHARS
from ...core.state import RunState
from ...errors import ErrorInfo, NonDeterminism, PayloadTooLarge, disagreement
from ...events import FORMAT, SHAPES
from ...replay.execution import Execution, Op, Outcome
from ...replay.frames import line_of
from ...replay.loop import Host
from ...values.text import Lines
from ..interrupts import from_keyboard
from ..watchdog import Stuck
from .attempts import Attempts
from .live import Live, named, stuck, tell_failure
from .ownership import Emit, Ownership

logger = logging.getLogger("stepfold.worker")

MAX_SHORT_CHARS = 300
"""The most characters of the reason of a quarantine in a log that takes only short records."""

MAX_TOLD = 250
"""How much the code of a run may tell before the owner appends it, and others go on."""


class Running:
    """Runs the code of those runs of one partition whose code is in memory (`Ownership.live`)."""

    def __init__(
        self, ownership: Ownership, emit: Emit, wake_at: Callable[[int, str, str, int | None], None], is_full: Callable[[], bool]
    ) -> None:
        self.live = ownership.live
        self.paused: list[Live] = []  # their code goes on when the append queue has room
        self._is_full = is_full
        self._ownership = ownership
        self._loop = ownership.loop
        self._worker = ownership.worker
        self._clock = ownership.clock
        self._emit = emit
        self._watch = ownership.worker.watch
        self.attempts = Attempts(ownership, emit, wake_at, self.contain, self.put_aside)

    def completes_input(self, run: RunState, workflow: Workflow[Any, Any]) -> bool:
        """Whether the code must wait until the input, as the workflow's model completes it, is recorded.

        Without that record a replay could see another input (a default factory may be random). A step may use the input before
        the first decision, so it is a record of its own. Also fails or quarantines the run if its input is too large or the model
        does not return.
        """
        try:
            completed = self._watch.ask(partial(named, run), lambda: workflow.completed_input(run.input))
        except Stuck:
            self._quarantine(run, stuck(run, self._watch))
            return True
        except BaseException as error:  # the code validates the input again and fails with this error
            if from_keyboard(error):
                raise
            return False
        if completed is None:
            return False
        limit = self._worker.settings.max_payload_bytes
        try:
            if len(completed) > limit:
                raise PayloadTooLarge(
                    f"the input of run {run.id!r} is {len(completed):,} bytes after its model has validated it; "
                    f"the limit is {limit:,}"
                )
            self._emit(run, "input-completed", v=FORMAT, version=workflow.version, input=orjson.Fragment(completed))
        except PayloadTooLarge as error:
            self._fail(run, ErrorInfo.of(error))
        return True

    def load(self, run: RunState, workflow: Workflow[Any, Any], executed: int) -> Live:
        """A run with its code, which has not begun. `executed`: how many journal entries the code is known to have seen."""
        worker = self._worker
        if worker.observer is not None:
            worker.observer.resident(run)

        def handler(execution: Execution) -> Coroutine[Any, Any, Any]:
            return workflow.start(execution, worker.ports, worker.ctx_ext)

        return Live(run, workflow, Execution(run, handler, executed, self._host(run.id)))

    def _host(self, run_id: str) -> Host:
        """The environment of a run's code."""

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed
                self._loop.call_soon_threadsafe(self._woken, run_id)

        return Host(from_keyboard, wake, self._worker.settings.max_turns, self._watch.new_context, MAX_TOLD)

    def _woken(self, run_id: str) -> None:
        live = self.live.get(run_id)
        if live is not None:
            self.advance(live)

    def advance(self, live: Live, crashed: bool = False) -> None:
        """Run the code over new deliveries, then start the operations that it requests. Raises only KeyboardInterrupt of Ctrl-C.

        `crashed`: the last owner of the run died, so attempts without a result may be lost.
        """
        try:
            self._advance(live, crashed)
        except BaseException as error:
            if from_keyboard(error):
                raise
            raised = [error]
        else:
            return
        self._raised(live, raised)

    def _advance(self, live: Live, crashed: bool) -> None:
        execution = live.execution
        self._watch.run(live, execution.advance)
        if execution.notices.untaken:
            for notice, number in execution.notices.take():
                event_type, fields = notice.record(number)
                self._emit(live.run, event_type, **fields)
        if execution.loop.paused:
            self._pause(live, crashed)
            return
        if live.crashed:
            crashed, live.crashed = True, False
        if live.suspect:
            live.suspect = False
            self._emit(live.run, "code-cleared", v=FORMAT)
        for op in execution.take_dropped():
            self.attempts.drop(live, op.id)
            if op.recorded and execution.outcome is None:
                self._emit(live.run, "step-cancelled", step_id=op.id)
        for op in execution.take_requested():
            self._begin(live, op, crashed)
            if self.live.get(live.run.id) is not live:
                return
        if execution.outcome is not None and not live.finished:
            live.finished = True
            self._finish(live, execution.outcome)

    def _pause(self, live: Live, crashed: bool) -> None:
        """Let others go on before the code of a run that tells much, and let it wait while the append queue is full."""
        live.crashed = live.crashed or crashed
        if self._is_full():
            self.paused.append(live)
        else:
            self._loop.call_soon(self._go_on, live)

    def go_on(self) -> None:
        """The log has taken records: go on with the code that waited for that."""
        paused, self.paused = self.paused, []
        for live in paused:
            if self._is_full():
                self.paused.append(live)
            else:
                self._go_on(live)

    def _go_on(self, live: Live) -> None:
        if self.live.get(live.run.id) is live and live.execution.paused:
            self.advance(live)

    def _raised(self, live: Live, raised: list[BaseException]) -> None:
        """Quarantine a run for an error. Then free the error: it holds the frames of the run's code, and the objects in them."""
        error = raised[0]
        if issubclass(type(error), Stuck):
            live.execution.interrupted()
            self._quarantine(live.run, stuck(live.run, self._watch))
        elif issubclass(type(error), NonDeterminism):
            self._quarantine(live.run, cast(NonDeterminism, error))
        else:
            self.contain(live.run, error)
        del error
        self._watch.free(live, raised)

    def _begin(self, live: Live, op: Op, crashed: bool) -> None:
        """Start an operation that the code requested. `op.recorded`: the log has a record of it."""
        if self.attempts.begin(live, op, crashed) or op.recorded:
            return
        call = op.call
        now = self._clock.now()
        first = call.begin(op.id, now, self._worker.ids)
        if first is not None:
            op.recorded = True
            if call.lasts_ms is not None:
                op.elapsed = self._clock.elapsed() + call.lasts_ms  # whatever the clock says meanwhile
            event_type, fields = first
            self._emit(live.run, event_type, now, step_id=op.id, **fields, **op.at_line)

    def _finish(self, live: Live, outcome: Outcome) -> None:
        """Record the end of a run whose code has ended."""
        run = live.run
        for message, error in live.execution.loop.unhandled:
            trace = "" if error is None else Lines(f"\n{self._described(live, error).traceback}")
            logger.warning("run %s: %s%s", run.id, message, trace, extra={"run_id": run.id, "workflow": run.workflow})
        self._leave_behind(live, outcome)
        self.attempts.withdraw(live)
        if outcome.phase == "completed":
            try:
                result = self._watch.run(live, lambda: live.execution.inside(live.workflow.encode_result, outcome.value))
                if len(result) > self._worker.settings.max_payload_bytes:
                    limit = self._worker.settings.max_payload_bytes
                    raise PayloadTooLarge(f"the result of run {run.id!r} is {len(result):,} bytes; the limit is {limit:,}")
                self._emit(run, "completed", result=orjson.Fragment(result))
            except Stuck:
                raise
            except BaseException as error:  # anything that the user's types raise fails the run
                if from_keyboard(error):
                    raise
                self._fail(run, self._described(live, error))
        elif outcome.phase == "cancelled":
            self.record_cancelled(run)
        else:
            assert outcome.error is not None
            self._fail(run, self._described(live, outcome.error), line_of(outcome.error))

    def rehearse(self, live: Live) -> None:
        """Run a run's code over its journal and encode its outcome, to see whether it works now. Records nothing."""
        live.execution.advance()
        while live.execution.paused:
            live.execution.advance()
        outcome = live.execution.outcome
        try:
            if outcome is not None and outcome.phase == "completed":
                live.execution.inside(live.workflow.encode_result, outcome.value)
            elif outcome is not None and outcome.error is not None:
                live.execution.inside(ErrorInfo.of, outcome.error)
        except Exception:  # noqa: BLE001, S110  # the resumed run then fails, as any run would
            pass

    def _leave_behind(self, live: Live, outcome: Outcome) -> None:
        """Record operations as cancelled that branches of the code still waited for at its end, and warn."""
        left = live.execution.left
        if not left or outcome.phase == "cancelled":
            return
        run = live.run
        for op in left:
            if op.recorded:
                self._emit(run, "step-cancelled", step_id=op.id)
        named = [str(op) if op.timer is None else "an asyncio timer" for op in left if not op.handed_out]
        if named and outcome.phase == "completed":
            logger.warning(
                "run %s of %s completed while branches of its code still waited for %s: these waits are dropped and running "
                "steps are cancelled; await the tasks of such branches before the workflow returns (asyncio.TaskGroup does so)",
                run.id,
                run.workflow,
                ", ".join(named[:10]) + (f" and {len(named) - 10} more" if len(named) > 10 else ""),
                extra={"run_id": run.id, "workflow": run.workflow, "step_id": left[0].id},
            )

    def _described(self, live: Live, error: BaseException) -> ErrorInfo:
        return self._watch.run(live, lambda: live.execution.inside(ErrorInfo.of, error))

    def record_cancelled(self, run: RunState) -> None:
        """Record the end of a cancelled run. The request is a record of its own, so its reason may be too long for this one."""
        self._emit(run, "cancelled", reason=None if run.reason is None else run.reason[:MAX_REASON_CHARS])

    def _fail(self, run: RunState, info: ErrorInfo, at_line: str | None = None) -> None:
        self._emit(run, "failed", error=info.to_json(), **({} if at_line is None else {"at_line": at_line}))
        tell_failure(f"run {run.id} of {run.workflow} failed", run, info)

    def not_taken(self, run: RunState, event: dict[str, Any], error: PayloadTooLarge) -> None:
        """Handle a decision about a run that the log refused, because it is too large today: decide something smaller."""
        event_type = event["type"]
        if SHAPES[event_type].is_result:
            if "step_id" in event:
                self.attempts.not_taken(run, event, error)
            else:
                self._fail(run, ErrorInfo.of(error))
        elif event_type != "quarantined":
            self.contain(run, error)
        else:
            kept, message = event["error"], event["error"].get("message", "")
            short = {"type": kept.get("type"), "message": f"{message}"[:MAX_SHORT_CHARS]}
            if short != kept:
                self._emit(run, "quarantined", error=short)
        # If not even that fits, the run makes no progress until another owner takes the partition over.

    def _quarantine(self, run: RunState, error: NonDeterminism) -> None:
        try:
            info = self._watch.ask(partial(named, run), partial(disagreement, error))
        except Stuck:
            info = ErrorInfo("NonDeterminism", ErrorInfo.unshown(error).message).to_json()
        self.put_aside(run, info)

    def contained(self, run: RunState, act: Callable[..., None], /, *args: Any, **fields: Any) -> None:
        """Run an action on a run. Any error concerns only this run."""
        try:
            act(run, *args, **fields)
        except Exception as error:  # noqa: BLE001  # as it says
            self.contain(run, error)

    def contain(self, run: RunState, error: BaseException) -> None:
        """Quarantine a run for an error that was raised while the owner handled it; other runs go on."""
        info = ErrorInfo.of(error)
        shown = {"type": "NonDeterminism", "message": f"run {run.id!r} cannot continue: {info}", "found": str(info)}
        self.put_aside(run, {**info.to_json(), **shown})

    def put_aside(self, run: RunState, error: dict[str, Any]) -> None:
        """Quarantine a run."""
        live = self.live.get(run.id)
        if live is not None:
            live.finished = True
            self.close(live)
        if run.phase == "open":
            self._emit(run, "quarantined", error=error)
            extra = {"run_id": run.id, "workflow": run.workflow, "error": error["message"]}
            logger.error("run %s of %s is quarantined: %s", run.id, run.workflow, error["message"], extra=extra)

    def close(self, live: Live) -> None:
        """Take a run's code out of memory."""
        run, state = live.run, self._ownership.state
        if state is not None and not run.ended:
            state.runs.note_idle(run.id, self.is_idle(live))
            state.runs.note_executed(run.id, live.execution.seen)
            self.attempts.away.note(live)
        self.attempts.withdraw(live)
        self.live.pop(run.id, None)
        self.shut(live)

    def shut(self, live: Live) -> None:
        """Close a run's code, wherever it stands."""
        try:
            self._watch.run(live, live.execution.close)
        except BaseException as error:  # the code is the user's, even while it closes
            if from_keyboard(error):
                raise
            raised = [error]
        else:
            return
        live.execution.interrupted()
        error = raised[0]
        why = stuck(live.run, self._watch) if issubclass(type(error), Stuck) else ErrorInfo.of(error)
        extra = {"run_id": live.run.id, "workflow": live.run.workflow}
        logger.warning("run %s: its code could not be closed: %s", live.run.id, why, extra=extra)
        del error
        self._watch.free(live, raised)
        with contextlib.suppress(Exception, Stuck):
            self._watch.run(live, live.execution.close)  # what is left of it

    def is_idle(self, live: Live) -> bool:
        """Whether the code has run as far as it can and waits only for things that the folded state holds."""
        run, execution = live.run, live.execution
        if live.finished:  # its end may never reach the log: then the code must run again
            return False
        if run.phase != "open" or live.attempts or execution.has_news or execution.position != len(run.journal):
            return False
        for op_id in execution.ops:
            known = run.open.get(op_id)
            if known is None or not known.told:
                return False
        return True
