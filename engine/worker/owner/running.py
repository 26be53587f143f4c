"""Runs the code of a partition's runs while it is in memory: delivers the journal, and turns requests of the code into work.

This module does not decide who owns the partition; it neither reads nor appends. It passes decisions to the owner. An error in
a run's code ends or quarantines that run alone. A result counts only when it has come back through the fold.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import orjson

from ...authoring.workflow import Workflow
from ...core.lifecycle import MAX_REASON_CHARS
from ...core.state import RunState
from ...errors import ErrorInfo, NonDeterminism, PayloadTooLarge, StepInterrupted, disagreement, roots
from ...events import FORMAT
from ...operations.step import OpenStep, StepCall
from ...replay.execution import Op, Outcome
from ...replay.loop import Host
from ...values.duration import LONGEST_MS, words
from ...values.recorded import recorded_input
from ...values.text import Lines
from ...values.times import within
from ..attempt import Attempt
from ..interrupts import from_keyboard
from ..watchdog import Stuck
from .live import Live, named, stuck, tell_failure
from .ownership import Emit, Ownership

logger = logging.getLogger("stepfold.worker")

MAX_SHORT_CHARS = 300
"""The most characters of the reason of a quarantine in a log that takes only short records."""
LOST_LIMIT = 8
"""A run is quarantined when one of its steps was lost with its worker this often in a row. A kill from outside looks the same."""
SUSPECT_AFTER = 2
"""A step that was lost this often in a row may be the step that kills workers, or a bystander. From then on its attempts are
announced before they run, one at a time. An attempt that was not announced was then not lost, so only the culprit is counted.
"""


class Running:
    """The runs of one partition whose code is in memory, by id in `live`."""

    def __init__(self, ownership: Ownership, emit: Emit, wake_at: Callable[[int, str, str], None]) -> None:
        self.live = ownership.live
        self.unbegun: set[tuple[str, str, int]] = set()  # run, step, attempt: announced by this owner, not started
        self.loop = ownership.loop
        self._ownership = ownership
        self._worker = ownership.worker
        self._log = ownership.log
        self._clock = ownership.clock
        self._emit = emit
        self._wake_at = wake_at
        self._watch = ownership.worker.watch

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

    def host(self, run_id: str) -> Host:
        """The environment of a run's code."""

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed
                self.loop.call_soon_threadsafe(self._woken, run_id)

        return Host(from_keyboard, wake, self._worker.settings.max_turns, self._watch.new_context)

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
        for op in execution.take_dropped():
            attempt = live.attempts.pop(op.id, None)
            if attempt is not None:
                self._worker.withdraw(attempt)
            if op.recorded and execution.outcome is None:
                self._emit(live.run, "step-cancelled", step_id=op.id)
        for op in execution.take_requested():
            self._begin(live, op, crashed)
            if self.live.get(live.run.id) is not live:
                return
        if execution.outcome is not None and not live.finished:
            live.finished = True
            self._finish(live, execution.outcome)

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
        """Start an operation that the code requested. `op.recorded`: the log has a record of it.

        If a record is needed first (lost attempts, announcements), the record starts the step when it has come back.
        """
        call = op.call
        run = live.run
        if isinstance(call, StepCall):
            known = run.open.get(op.id)
            step = known if isinstance(known, OpenStep) else None
            if step is not None and step.next_at is not None and step.next_at > self._clock.now():
                self._wake_at(step.next_at, run.id, op.id)
            elif step is not None and step.started and call.at_most_once:
                if (run.id, op.id, step.attempts + 1) in self.unbegun:
                    attempt = live.attempts[op.id] = Attempt(self, run, op, call, step)
                    attempt.announced = True
                    self._worker.dispatch(attempt)
                else:
                    self._interrupted(live, op, call, step)
            elif crashed and not call.at_most_once and (step is None or step.started or step.lost < SUSPECT_AFTER):
                self._lost(live, op, call, step)
            else:
                self.dispatch(live, op)
            return
        if op.recorded:
            return
        now = self._clock.now()
        first = call.begin(now)
        if first is not None:
            op.recorded = True
            self._times_out(op, call.lasts_ms)
            kind, fields = first
            self._emit(run, kind, step_id=op.id, **fields, at=now)

    def _times_out(self, op: Op, after_ms: int | None) -> None:
        """Set the end of an operation by elapsed time: `after_ms` from now, whatever the clock says meanwhile."""
        if after_ms is not None:
            op.elapsed = self._clock.elapsed() + after_ms

    def _lost(self, live: Live, op: Op, call: StepCall, step: OpenStep | None) -> None:
        """The last owner died, maybe during this attempt: record the attempt as lost, or quarantine the run at the limit."""
        lost = step.lost if step is not None else 0
        if lost + 1 >= LOST_LIMIT:
            message = (
                f"step {op.id!r} was lost with its worker {lost + 1} times in a row: it may be the cause. Cancel the run, fix "
                "the step, and start it again under another run id"
            )
            self.put_aside(live.run, ErrorInfo("StepInterrupted", message, step_id=op.id).to_json())
            return
        op.recorded = True
        # while it is in `attempts`, no timer starts another
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)
        self._emit(live.run, "attempt-lost", step_id=op.id, attempt=attempt.number)

    def _interrupted(self, live: Live, op: Op, call: StepCall, step: OpenStep) -> None:
        """Fail an at_most_once attempt that was announced and has no result: it may have run."""
        error = StepInterrupted(
            f"the worker died while attempt {step.attempts + 1} of step {op.id!r} ran; whether it had an effect is unknown"
        )
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)  # as in _lost
        self._failed(attempt, ErrorInfo("StepInterrupted", str(error), step_id=op.id), self._pause(attempt, error))

    def dispatch(self, live: Live, op: Op) -> None:
        """Hand an attempt to the worker, or announce it first if its step requires that."""
        if self._ownership.leaving or op.id in live.attempts:
            return
        call = op.call
        assert isinstance(call, StepCall)
        known = live.run.open.get(op.id)
        step = known if isinstance(known, OpenStep) else None
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)
        if call.at_most_once:
            self.announce(attempt)
        elif step is not None and step.lost >= SUSPECT_AFTER:
            self._worker.dispatch_alone(attempt)
        elif call.record_input:
            self.announce(attempt)
        else:
            self._worker.dispatch(attempt)

    def announce(self, attempt: Attempt) -> None:
        """Record that an attempt is about to run. The owner dispatches it when the record is back."""
        if self._ownership.leaving or not self._expects(attempt):
            return
        known = attempt.run.open.get(attempt.op.id)
        if isinstance(known, OpenStep) and known.started:  # announced by an owner that left before the attempt ran
            self._worker.dispatch(attempt)
            return
        attempt.op.recorded = True
        attempt.announced = True
        given = self._input(attempt) if attempt.call.record_input else {}
        try:
            self._emit(attempt.run, "attempt-started", step_id=attempt.op.id, attempt=attempt.number, **given)
        except Exception as error:  # noqa: BLE001  # it may be another run that gives this one its turn
            self.contain(attempt.run, error)

    def _input(self, attempt: Attempt) -> dict[str, Any]:
        """The recorded arguments, for people. Never fails the attempt, whatever the classes of the arguments raise."""
        call = attempt.call
        try:
            return self._watch.ask(
                attempt.named, lambda: recorded_input(*((call.fn, call.args) if call.given is None else call.given()))
            )
        except BaseException as error:
            if from_keyboard(error):
                raise
            return {"input_note": "the arguments cannot be written"}

    def _finish(self, live: Live, outcome: Outcome) -> None:
        """Record the end of a run whose code has ended."""
        run = live.run
        for message, error in live.execution.loop.unhandled:
            trace = "" if error is None else Lines(f"\n{self._described(live, error).traceback}")
            logger.warning("run %s: %s%s", run.id, message, trace, extra={"run_id": run.id, "workflow": run.workflow})
        self._leave_behind(live, outcome)
        self._withdraw(live)
        if outcome.kind == "completed":
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
        elif outcome.kind == "cancelled":
            self.record_cancelled(run)
        else:
            assert outcome.error is not None
            self._fail(run, self._described(live, outcome.error))

    def rehearse(self, live: Live) -> None:
        """Run a run's code over its journal and encode its outcome, to see whether it works now. Records nothing."""
        live.execution.advance()
        outcome = live.execution.outcome
        try:
            if outcome is not None and outcome.kind == "completed":
                live.execution.inside(live.workflow.encode_result, outcome.value)
            elif outcome is not None and outcome.error is not None:
                live.execution.inside(ErrorInfo.of, outcome.error)
        except Exception:  # noqa: BLE001, S110  # the resumed run then fails, as any run would
            pass

    def _leave_behind(self, live: Live, outcome: Outcome) -> None:
        """Record operations as cancelled that branches of the code still waited for at its end, and warn."""
        left = live.execution.left
        if not left or outcome.kind == "cancelled":
            return
        run = live.run
        for op in left:
            if op.recorded:
                self._emit(run, "step-cancelled", step_id=op.id)
        if outcome.kind == "completed":
            named = [str(op) if op.timer is None else "an asyncio timer" for op in left]
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

    def _fail(self, run: RunState, info: ErrorInfo) -> None:
        self._emit(run, "failed", error=info.to_json())
        tell_failure(f"run {run.id} of {run.workflow} failed", run, info)

    def not_taken(self, run: RunState, event: dict[str, Any], error: PayloadTooLarge) -> None:
        """The log did not take a decision about a run, which is too large for it today. Decide something smaller."""
        kind = event["type"]
        live = self.live.get(run.id)
        if kind == "step-completed":
            attempt = None if live is None else live.attempts.get(event["step_id"])
            if attempt is not None and attempt.number == event["attempt"]:  # else nobody waits for it any more
                self.failed(attempt, error)
        elif kind in ("completed", "input-completed"):
            self._fail(run, ErrorInfo.of(error))
        elif kind != "quarantined":
            self.contain(run, error)
        else:
            kept, message = event["error"], event["error"].get("message", "")
            short = {"type": kept.get("type"), "message": f"{message}"[:MAX_SHORT_CHARS]}
            if short != kept:
                self._emit(run, "quarantined", error=short)
        # If not even that fits, the run stands still, and goes on when an owner takes the partition over.

    def _quarantine(self, run: RunState, error: NonDeterminism) -> None:
        try:
            info = self._watch.ask(partial(named, run), partial(disagreement, error))
        except Stuck:
            info = ErrorInfo("NonDeterminism", ErrorInfo.unshown(error).message).to_json()
        self.put_aside(run, info)

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
        live.run.idle = self.is_idle(live.run)
        self._withdraw(live)
        live.run.executed = max(live.run.executed, live.execution.position)
        self.live.pop(live.run.id, None)
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

    def _withdraw(self, live: Live) -> None:
        attempts, live.attempts = live.attempts, {}
        for attempt in attempts.values():
            self._worker.withdraw(attempt)

    def is_idle(self, run: RunState) -> bool:
        """Whether the code has run as far as it can and waits only for things that the folded state holds."""
        live = self.live.get(run.id)
        if live is None:
            return run.idle
        execution = live.execution
        if live.finished:  # its end may never reach the log: then the code must run again
            return False
        if run.phase != "open" or live.attempts or execution.has_news or execution.position != len(run.journal):
            return False
        for op_id in execution.ops:
            known = run.open.get(op_id)
            if known is None or not known.told:
                return False
        return True

    # -- reports of attempts

    def completed(self, attempt: Attempt, result: bytes) -> None:
        """Record the success of an attempt; `result` is JSON. An attempt whose success cannot be recorded has failed."""
        if self._expects(attempt):
            number = attempt.number
            try:
                self._emit(attempt.run, "step-completed", step_id=attempt.op.id, attempt=number, result=orjson.Fragment(result))
            except Exception as error:  # noqa: BLE001  # as it says
                self.failed(attempt, error)

    def failed(self, attempt: Attempt, error: BaseException, info: ErrorInfo | None = None) -> None:
        """Record the failure of an attempt, or quarantine its run if that cannot be recorded: otherwise it would wait for ever.

        `info` describes the error if the thread has done that.
        """
        if self._expects(attempt):
            fresh = attempt.beats is not None and attempt.beats.fresh
            heartbeat = {"heartbeat": attempt.beats.details} if attempt.beats is not None and fresh else {}
            try:
                try:
                    info = info or self._watch.ask(attempt.named, lambda: ErrorInfo.of(error, attempt.op.id))
                    pause = self._watch.ask(attempt.named, lambda: self._pause(attempt, error))
                except Stuck:
                    info, pause = info or ErrorInfo.unshown(error, attempt.op.id), None
                self._record_failure(attempt, info, pause, **heartbeat)
            except BaseException as odd:
                if from_keyboard(odd):
                    raise
                self.contain(attempt.run, odd)
            else:
                self._tell_failure(attempt, info, pause)

    def _failed(self, attempt: Attempt, info: ErrorInfo, pause: int | None) -> None:
        self._record_failure(attempt, info, pause)
        self._tell_failure(attempt, info, pause)

    def _record_failure(self, attempt: Attempt, info: ErrorInfo, pause: int | None, **heartbeat: Any) -> None:
        now = self._clock.now()
        next_at = None if pause is None else within(now + pause)
        self._times_out(attempt.op, pause)
        fields: dict[str, Any] = {"step_id": attempt.op.id, "attempt": attempt.number, "error": info.to_json()}
        attempt.op.recorded = True
        self._emit(attempt.run, "step-failed", **fields, next_at=next_at, at=now, **heartbeat)

    def _tell_failure(self, attempt: Attempt, info: ErrorInfo, pause: int | None) -> None:
        run, step_id, number = attempt.run, attempt.op.id, attempt.number
        if pause is None:
            what = f"step {step_id} of run {run.id} of {run.workflow} failed (attempt {number}, the last)"
            tell_failure(what, run, info, step_id=step_id, attempt=number)
        else:
            logger.warning(
                "step %s of run %s failed (attempt %d), next in %s: %s",
                step_id,
                run.id,
                number,
                words(pause),
                info,
                extra={"run_id": run.id, "workflow": run.workflow, "step_id": step_id, "attempt": number},
            )

    def _pause(self, attempt: Attempt, error: BaseException) -> int | None:
        """Ms until the next attempt; None for no further attempt. An error in the user's classes counts as None."""
        members = roots(error)
        root = members[0] if len(members) == 1 else error
        try:
            pause = attempt.call.retry.pause_ms(root, attempt.failures + 1, self._worker.random)
            return None if pause is None else min(max(int(pause), 0), LONGEST_MS)
        except BaseException as odd:
            if from_keyboard(odd):
                raise
            logger.warning(
                "step %s of run %s: its retry rule failed, so there is no further attempt: %s",
                attempt.op.id,
                attempt.run.id,
                ErrorInfo.of(odd),
                extra={"run_id": attempt.run.id, "workflow": attempt.run.workflow, "step_id": attempt.op.id},
            )
            return None

    def heartbeat(self, attempt: Attempt, details: orjson.Fragment) -> None:
        """Record the latest details of an attempt. Quarantines the run if they cannot be recorded."""
        if self._expects(attempt):
            attempt.op.recorded = True
            at = attempt.heartbeat_at = within(max(self._log.now(), attempt.heartbeat_at + 1))
            fields: dict[str, Any] = {"step_id": attempt.op.id, "attempt": attempt.number, "details": details}
            try:
                self._emit(attempt.run, "step-heartbeat", **fields, at=at)
            except Exception as error:  # noqa: BLE001  # any error concerns only this run
                self.contain(attempt.run, error)

    def ask(self, attempt: Attempt, call: Callable[[], bytes]) -> bytes:
        """Call code that may be the user's, under the watchdog. Raises Stuck if it does not come back."""
        return self._watch.ask(attempt.named, call)

    def _expects(self, attempt: Attempt) -> bool:
        live = self.live.get(attempt.run.id)
        return self._ownership.active and live is not None and live.attempts.get(attempt.op.id) is attempt
