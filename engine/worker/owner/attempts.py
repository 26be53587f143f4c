"""Attempts of steps and of checks of conditions: when one begins, what its end means, and when the next one follows.

An attempt that must not run unnoticed is announced first (`attempt-started`); the worker gets it when that record is back. The
worker reports how an attempt ended, and this module turns the report into a record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson

from ...core.state import RunState
from ...errors import ErrorInfo, PayloadTooLarge, StepInterrupted, roots
from ...operations.attempted import AttemptsCall, OpenAttempts
from ...operations.condition import ConditionCall, Final
from ...replay.execution import Op
from ...values.duration import LONGEST_MS, words
from ...values.recorded import recorded_input
from ...values.times import within
from ..attempt import Attempt
from ..interrupts import from_keyboard
from ..watchdog import Stuck
from .live import Live, tell_failure
from .ownership import Emit, Ownership

logger = logging.getLogger("stepfold.worker")

RESULT = "step-completed"
"""The most frequent record: it ends no run and sets no timer."""
LOST_LIMIT = 8
"""A run is quarantined when one of its steps was lost with its worker this often in a row. A kill from outside looks the same."""
_OF_ATTEMPTS = frozenset(
    {"attempt-lost", "attempt-started", "step-failed", "condition-started", "condition-polled", "condition-timed-out"}
)
"""Accepted records, besides the most frequent one, that say something of an attempt."""
DECIDED = -1
"""In place of an elapsed time in `Op.ends`: the record that says that the time is up is on its way."""
SUSPECT_AFTER = 2
"""A step that was lost this often in a row may be the step that kills workers, or a bystander. From then on its attempts are
announced before they run, one at a time. An attempt that was not announced was then not lost, so only the culprit is counted.
"""


class Away:
    """The pauses of runs whose code is not in memory: this owner goes on to measure them, whatever the clock says meanwhile."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, tuple[int | None, int | None]]] = {}  # `Op.elapsed` and `Op.ends` by run and step

    def note(self, live: Live) -> None:
        """The code of a run leaves memory."""
        times = {
            op.id: (op.elapsed, op.ends)
            for op in live.execution.ops.values()
            if isinstance(op.call, AttemptsCall) and (op.elapsed is not None or op.ends is not None)
        }
        if times:
            self._times[live.run.id] = times

    def recall(self, run_id: str, op: Op) -> None:
        """The code of a run has come back, and asks for an operation."""
        times = self._times.get(run_id)
        if times is not None:
            op.elapsed, op.ends = times.pop(op.id, (None, None))
            if not times:
                del self._times[run_id]

    def decide(self, run_id: str, step_id: str) -> bool:
        """The time of an operation is up. Returns False if this has been said before."""
        times = self._times.setdefault(run_id, {})
        _, ends = times.get(step_id, (None, None))
        times[step_id] = None, DECIDED
        return ends != DECIDED

    def clear(self) -> None:
        """The ownership has ended: the next one goes by the clock."""
        self._times.clear()


class Attempts:
    """The attempts of one partition's runs, which are in `Live.attempts`. It is the `Reports` of its attempts.

    `contain` quarantines a run for an error, `put_aside` with a description.
    """

    def __init__(
        self,
        ownership: Ownership,
        emit: Emit,
        wake_at: Callable[[int, str, str, int | None], None],
        contain: Callable[[RunState, BaseException], None],
        put_aside: Callable[[RunState, dict[str, Any]], None],
    ) -> None:
        self.unstarted: set[tuple[str, str, int]] = set()  # run, step, attempt: announced by this owner, not started
        self.away = Away()
        self.loop = ownership.loop
        self._ownership = ownership
        self._worker = ownership.worker
        self._pool = ownership.worker.pool
        self._log = ownership.log
        self._clock = ownership.clock
        self._watch = ownership.worker.watch
        self._emit = emit
        self._wake_at = wake_at
        self._contain = contain
        self._put_aside = put_aside

    def begin(self, live: Live, op: Op, crashed: bool) -> bool:
        """Start a step or condition that the code requested. Returns False if the operation is another kind.

        If a record is needed first (lost attempts, announcements), the record starts the step when it has come back. `crashed`:
        the last owner of the run died.
        """
        call = op.call
        if not isinstance(call, AttemptsCall):
            return False
        run = live.run
        known = run.open.get(op.id)
        if known is None and not crashed:  # short path for nine steps in ten
            self._hand_out(live, op, call, None)
            return True
        step = known if isinstance(known, OpenAttempts) else None
        self.away.recall(run.id, op)
        if step is not None and step.next_at is not None and self._is_early(op, step.next_at):
            self._wake_at(step.due_at or step.next_at, run.id, op.id, op.elapsed)
        elif step is not None and step.started and call.at_most_once:
            if (run.id, op.id, step.attempts + 1) in self.unstarted:
                attempt = live.attempts[op.id] = Attempt(self, run, op, call, step)
                attempt.announced = True
                self._pool.dispatch(attempt)
            else:
                self._interrupted(live, op, call, step)
        elif crashed and not call.at_most_once and (step is None or step.started or step.lost < SUSPECT_AFTER):
            self._lost(live, op, call, step)
        else:
            self.dispatch(live, op)
        return True

    def over(self, live: Live, step_id: str) -> None:
        """The result of an attempt is folded."""
        attempt = live.attempts.pop(step_id, None)
        if attempt is not None and attempt.isolated:
            self._pool.turns.settled(attempt)

    def react(self, live: Live, event: dict[str, Any]) -> bool:
        """Go on after an accepted record of an attempt. Returns False if only an attempt starts, so that nothing else follows."""
        event_type = event["type"]
        if event_type not in _OF_ATTEMPTS:
            return True
        step_id = event["step_id"]
        if event_type == "attempt-started":
            attempt = live.attempts.get(step_id)
            if attempt is not None:
                if not self._ownership.leaving:
                    self._pool.dispatch(attempt)
                return False
        if event_type == "condition-timed-out" and event["attempt"] is None:
            self.drop(live, step_id)
        elif event_type != "condition-started":
            self.over(live, step_id)
        op = live.execution.ops.get(step_id)
        if event_type == "attempt-lost" and op is not None:
            self.dispatch(live, op)
        return True

    def drop(self, live: Live, step_id: str) -> None:
        """The code has dropped the step: nobody needs its attempt."""
        attempt = live.attempts.pop(step_id, None)
        if attempt is not None:
            self._pool.withdraw(attempt)

    def hold(self, run: RunState, step_id: str) -> bool:
        """The next record ends an operation whose time is up: no other attempt begins before it is back.

        Returns False if there is one already.
        """
        if not isinstance(run.open.get(step_id), OpenAttempts):
            return True
        live = self._ownership.live.get(run.id)
        if live is None:
            return self.away.decide(run.id, step_id)
        op = live.execution.ops.get(step_id)
        if op is None:
            return True
        attempt = live.attempts.get(step_id)
        if attempt is not None and attempt.over is None:
            self.drop(live, step_id)
        known, op.ends = op.ends, DECIDED
        return known != DECIDED

    def withdraw(self, live: Live) -> None:
        """Nobody needs the attempts of a run any more."""
        attempts, live.attempts = live.attempts, {}
        for attempt in attempts.values():
            self._pool.withdraw(attempt)

    def _is_early(self, op: Op, next_at: int) -> bool:
        return next_at > self._clock.now() if op.elapsed is None else op.elapsed > self._clock.elapsed()

    def keep_unstarted(self) -> None:
        """Note the announced attempts that have not started, for the case that this worker owns the partition again."""
        for live in self._ownership.live.values():
            self.unstarted.update((live.run.id, attempt.op.id, attempt.number) for attempt in live.unstarted())

    def give_back(self) -> list[asyncio.Future[None]]:
        """Before the owner leaves: withdraw attempts that wait for a slot. Returns the ends of those that run."""
        lives = self._ownership.live.values()
        for live in lives:
            for attempt in live.unstarted():
                self._emit(live.run, "attempt-lost", step_id=attempt.op.id, attempt=attempt.number, **attempt.op.at_line)
            for attempt in live.attempts.values():
                if attempt.over is None:
                    self._pool.withdraw(attempt)
        return [attempt.over for live in lives for attempt in live.attempts.values() if attempt.over is not None]

    def abandon(self) -> None:
        """The owner leaves: warn of the attempts that still run."""
        for live in self._ownership.live.values():
            for attempt in live.attempts.values():
                if attempt.over is not None:
                    self._pool.abandon(attempt)

    def not_taken(self, run: RunState, event: dict[str, Any], error: PayloadTooLarge) -> None:
        """The log did not take the result of an attempt, which is too large: the attempt fails."""
        live = self._ownership.live.get(run.id)
        attempt = None if live is None else live.attempts.get(event["step_id"])
        if attempt is not None and attempt.number == event["attempt"]:  # else nobody waits for it any more
            self.failed(attempt, error)

    def _lost(self, live: Live, op: Op, call: AttemptsCall, step: OpenAttempts | None) -> None:
        """The last owner died, maybe during this attempt: record the attempt as lost, or quarantine the run at the limit."""
        lost = step.lost if step is not None else 0
        if lost + 1 >= LOST_LIMIT:
            message = (
                f"step {op.id!r} was lost with its worker {lost + 1} times in a row: it may be the cause. Cancel the run, fix "
                "the step, and start it again under another run id"
            )
            self._put_aside(live.run, ErrorInfo("StepInterrupted", message, step_id=op.id).to_json())
            return
        # while it is in `attempts`, no timer starts another
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)
        self._record_first(attempt)
        self._emit(live.run, "attempt-lost", step_id=op.id, attempt=attempt.number, **op.at_line)

    def _interrupted(self, live: Live, op: Op, call: AttemptsCall, step: OpenAttempts) -> None:
        """Fail an at_most_once attempt that was announced and has no result: it may have run."""
        error = StepInterrupted(
            f"the worker died while attempt {step.attempts + 1} of step {op.id!r} ran; whether it had an effect is unknown"
        )
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)  # as in _lost
        self._failed(attempt, ErrorInfo("StepInterrupted", str(error), step_id=op.id), self._pause(attempt, error))

    def dispatch(self, live: Live, op: Op) -> None:
        """Hand an attempt to the worker, or announce it first if its step requires that."""
        call = op.call
        assert isinstance(call, AttemptsCall)
        known = live.run.open.get(op.id)
        self._hand_out(live, op, call, known if isinstance(known, OpenAttempts) else None)

    def _hand_out(self, live: Live, op: Op, call: AttemptsCall, step: OpenAttempts | None) -> None:
        if self._ownership.leaving or op.id in live.attempts:
            return
        if type(call) is ConditionCall:
            if op.ends == DECIDED:
                return
            left = self._left(op, call, step)
            if left is not None and left <= 0 and step is not None and step.ends_at is not None:
                self.hold(live.run, op.id)
                ended_at = max(self._clock.now(), step.ends_at)
                self._emit(live.run, "condition-timed-out", ended_at, step_id=op.id, **step.due_fields(by_log=False))
                return
            call = call.attempt(step, left)
        attempt = live.attempts[op.id] = Attempt(self, live.run, op, call, step)
        if call.at_most_once:
            self.announce(attempt)
        elif step is not None and step.lost >= SUSPECT_AFTER:
            self._pool.dispatch_isolated(attempt)
        elif call.record_input:
            self.announce(attempt)
        else:
            self._pool.dispatch(attempt)

    def announce(self, attempt: Attempt) -> None:
        """Record that an attempt is about to run. The owner dispatches it when the record is back."""
        if self._ownership.leaving or not self._expects(attempt):
            return
        known = attempt.run.open.get(attempt.op.id)
        if isinstance(known, OpenAttempts) and known.started:  # announced by an owner that left before the attempt ran
            self._pool.dispatch(attempt)
            return
        attempt.announced = True
        fields = attempt.op.at_line | (self._input(attempt) if attempt.call.record_input else {})
        try:
            self._record_first(attempt)
            self._emit(attempt.run, "attempt-started", step_id=attempt.op.id, attempt=attempt.number, **fields)
        except Exception as error:  # noqa: BLE001  # it may be another run that gives this one its turn
            self._contain(attempt.run, error)

    def _input(self, attempt: Attempt) -> dict[str, Any]:
        """The recorded arguments, for people. Never fails the attempt, whatever the classes of the arguments raise."""
        call = attempt.call
        try:
            return self._watch.ask(
                attempt.named, lambda: recorded_input(*((call.fn, call.args) if call.copies is None else call.copies()))
            )
        except BaseException as error:
            if from_keyboard(error):
                raise
            return {"input_note": "the arguments cannot be written"}

    def completed(self, attempt: Attempt, result: bytes) -> None:
        """Record the success of an attempt; `result` is JSON. An attempt whose success cannot be recorded has failed."""
        if self._expects(attempt):
            if type(attempt.call) is ConditionCall:
                if type(result) is not Final:
                    self._polled(attempt, attempt.call, result)
                    return
                result = bytes(result)  # orjson takes no subclass
            now, number, began = self._log.now(), attempt.number, attempt.began_at
            encoded = orjson.Fragment(result)
            try:
                if began == now and attempt.queued_at is None:  # orjson reads nine fields more slowly than eight
                    self._emit(attempt.run, RESULT, now, step_id=attempt.op.id, attempt=number, result=encoded)
                else:
                    times = attempt.times
                    self._emit(attempt.run, RESULT, now, step_id=attempt.op.id, attempt=number, result=encoded, **times)
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
                self._contain(attempt.run, odd)
            else:
                self._tell_failure(attempt, info, pause)

    def _failed(self, attempt: Attempt, info: ErrorInfo, pause: int | None) -> None:
        self._record_failure(attempt, info, pause)
        self._tell_failure(attempt, info, pause)

    def _record_failure(self, attempt: Attempt, info: ErrorInfo, pause: int | None, **heartbeat: Any) -> None:
        now, elapsed, op = self._clock.now(), self._clock.elapsed(), attempt.op
        self._record_first(attempt)
        if op.ends is not None and op.ends <= elapsed:
            pause = 0  # the time of its condition is up, which the next record says
        next_at = None if pause is None else within(now + pause)
        if pause is not None:
            op.elapsed = elapsed + pause if op.ends is None else min(elapsed + pause, op.ends)
        fields: dict[str, Any] = {"step_id": attempt.op.id, "attempt": attempt.number, "error": info.to_json()}
        fields |= attempt.op.at_line | heartbeat | attempt.times
        attempt.ended_as = info.type
        self._emit(attempt.run, "step-failed", now, **fields, next_at=next_at)

    def _polled(self, attempt: Attempt, call: ConditionCall, state: bytes) -> None:
        """Record the state that a check has returned, and when the next one is due."""
        run, op, now, elapsed = attempt.run, attempt.op, self._clock.now(), self._clock.elapsed()
        known = run.open.get(op.id)
        ends_at = None if op.ends is None else within(now + op.ends - elapsed)
        ends_at = known.ends_at if isinstance(known, OpenAttempts) else ends_at
        op.recorded = True
        try:
            event_type, fields, pause = call.polled(state, now, self._worker.random, ends_at)
            if pause is not None:
                op.elapsed = elapsed + pause if op.ends is None else min(elapsed + pause, op.ends)
            fields |= op.at_line | attempt.times
            self._emit(run, event_type, now, step_id=op.id, attempt=attempt.number, **fields)
        except Exception as error:  # noqa: BLE001  # as for a result
            self.failed(attempt, error)

    def _record_first(self, attempt: Attempt) -> None:
        """Note that the log will hold a record of the operation. A condition has one that comes before those of its attempts."""
        op, call = attempt.op, attempt.call
        if isinstance(call, ConditionCall) and not op.recorded:
            now, left = self._clock.now(), self._left(op, call, None)
            event_type, fields = call.first(None if left is None else within(now + left))
            self._emit(attempt.run, event_type, now, step_id=op.id, **fields, **op.at_line)
        op.recorded = True

    def _left(self, op: Op, call: ConditionCall, known: OpenAttempts | None) -> int | None:
        """How long a condition may last yet, in ms, whatever the clock says meanwhile; None: for ever."""
        elapsed = self._clock.elapsed()
        if op.ends is None and known is None and call.lasts_ms is not None:
            op.ends = elapsed + call.lasts_ms
        elif op.ends is None and known is not None and known.ends_at is not None:
            op.ends = elapsed + known.ends_at - self._clock.now()
        return None if op.ends is None else op.ends - elapsed

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
            at = attempt.heartbeat_at = within(max(self._log.now(), attempt.heartbeat_at + 1))
            fields: dict[str, Any] = {"step_id": attempt.op.id, "attempt": attempt.number, "details": details}
            fields |= attempt.op.at_line
            try:
                self._record_first(attempt)
                self._emit(attempt.run, "step-heartbeat", at, **fields)
            except Exception as error:  # noqa: BLE001  # any error concerns only this run
                self._contain(attempt.run, error)

    def ask(self, attempt: Attempt, call: Callable[[], bytes]) -> bytes:
        """Call code that may be the user's, under the watchdog. Raises Stuck if it does not come back."""
        return self._watch.ask(attempt.named, call)

    def _expects(self, attempt: Attempt) -> bool:
        live = self._ownership.live.get(attempt.run.id)
        return self._ownership.active and live is not None and live.attempts.get(attempt.op.id) is attempt
