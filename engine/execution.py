"""Replay: the user's code run over its journal. Live execution is the same thing over the journal's tail.

Pure apart from the user's code, which it keeps inside a deterministic loop: no I/O, no clock, no randomness of its own.

An `Execution` delivers the journal's entries one by one, in the log's order, and runs the code until it is idle after
each. What the code then waits for are `Op`s: a step to run, a sleep, a wait. The owner turns them into work and records;
their results come back only through the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import CodeType
from typing import Any, NamedTuple

from pydantic import ValidationError

from .codec import Codec, describe
from .errors import ErrorInfo, InputInvalid, NonDeterminism, StepFailed
from .fold import Delivery, OpenWait, RunState
from .loop import Abandoned, DeterministicFuture, DeterministicLoop, DeterministicTask, Timer
from .retry import Retry

Source = tuple[CodeType, int]
MAX_SWALLOWED_CANCELS = 100
"""How often code may swallow its cancellation before the run is ended without it."""


class StepCall(NamedTuple):
    """Run `fn(*args)` on a worker."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    retry: Retry
    timeout_ms: int | None
    at_most_once: bool
    codec: Codec
    process: bool = False


class SleepCall(NamedTuple):
    """Wake after `delay_ms`, or at `wake_at` (ms since 1970)."""

    delay_ms: int | None
    wake_at: int | None


class WaitCall(NamedTuple):
    """Take a signal, or None after `timeout_ms`. `make` turns name and data into what the code gets."""

    signal: str
    timeout_ms: int | None
    make: Callable[[str, Any], Any]


Call = StepCall | SleepCall | WaitCall
_OP_KINDS: dict[type[Any], str] = {StepCall: "step", SleepCall: "sleep", WaitCall: "wait"}
_DELIVERS = {"result": "step", "error": "step", "woken": "sleep", "signal": "wait", "timeout": "wait"}
_IN_WORDS = {"step": "step.run", "sleep": "a sleep", "wait": "a wait for a signal"}


class Op:
    """Something the code waits for. `recorded`: the log may know of it before its result does."""

    __slots__ = ("call", "future", "id", "kind", "recorded", "source", "timer")

    def __init__(
        self, op_id: str, call: Call, source: Source | None, future: DeterministicFuture[Any] | None, timer: Timer | None
    ) -> None:
        self.id = op_id
        self.kind = _OP_KINDS[type(call)]
        self.call = call
        self.source = source
        self.future = future
        self.timer = timer
        self.recorded = False

    def __str__(self) -> str:
        return f"{_IN_WORDS[self.kind]} {self.id!r}" + (f" at {_place(self.source)}" if self.source else "")


class Outcome(NamedTuple):
    """How the code ended: "completed" (value), "failed" (error) or "cancelled"."""

    kind: str
    value: Any = None
    error: BaseException | None = None


class Execution:
    """One run's code over its journal.

    `handler` makes the coroutine; it is called once, inside the loop. `run` is the folded state, whose journal grows as
    the owner folds; `advance` delivers what is new. `executed` is how far this run's code is known to have run before, so
    that nothing of that is logged again.
    """

    def __init__(self, run: RunState, handler: Callable[[Execution], Coroutine[Any, Any, Any]], executed: int = -1) -> None:
        self.run = run
        self.loop = DeterministicLoop(run.id, self._timer_set, self._timer_dropped)
        self.ops: dict[str, Op] = {}
        self.outcome: Outcome | None = None
        self.position = 0
        self._handler = handler
        self._executed = executed
        self._main: DeterministicTask[Any] | None = None
        self._requested: list[Op] = []
        self._dropped: list[Op] = []
        self._gone: dict[str, Op] = {}  # asked for, but no longer waited for
        self._counts: dict[str, int] = {}
        self._last: Op | None = None
        self._swallowed = 0
        self._told: dict[DeterministicTask[Any], Any] = {}  # what they waited for after they were told of the cancellation
        self._checked = False
        self.cancelling = False

    # -- driven by the owner

    @property
    def replaying(self) -> bool:
        """Whether the code now does what it is known to have done before."""
        return self.position <= self._executed

    def advance(self) -> None:
        """Deliver the journal's new entries and run the code as far as it goes.

        Raises NonDeterminism when the code and the journal do not agree, or the code did what only a step may do.
        """
        if self._main is None:
            self.loop.now_ms = self.run.started_at
            self._main = self.loop.create_task(self._handler(self), name=self.run.id)
            self._settle()
        journal = self.run.journal
        while self.position < len(journal):
            delivery = journal[self.position]
            self.position += 1
            self.loop.now_ms = delivery.now
            self._deliver(delivery)
            self._settle()
        if not self._checked:
            self._checked = True
            self._check_open()

    def take_requested(self) -> list[Op]:
        """The ops asked for since the last call and still waited for."""
        found = self._requested
        if len(found) == 1:
            self._requested = []
            return found if found[0].id in self.ops else []
        self._requested = []
        return [op for op in found if self.ops.get(op.id) is op]

    def take_dropped(self) -> list[Op]:
        """The ops that the code has let go of since the last call."""
        if not self._dropped:
            return []
        found, self._dropped = self._dropped, []
        return found

    @property
    def has_news(self) -> bool:
        return bool(self._requested or self._dropped or self.outcome)

    def close(self) -> None:
        """Drop the code where it stands; nothing it does in `finally` reaches outside."""
        self.ops.clear()
        self.loop.abandon()

    # -- called by the code, through Step and Context

    def request(self, base_id: str, call: Call, source: Source) -> Op:
        """Ask for `call`; the result comes to the op's future.

        Raises CancelledError when the run is being cancelled and this is no shield.
        """
        if not self.loop.is_running():
            raise RuntimeError(
                f"step {base_id!r} of run {self.run.id!r} was called outside its workflow: from a step function, "
                f"another run, or after the run ended"
            )
        if self.loop.abandoned:
            return Op(base_id, call, source, self.loop.create_future(), None)
        if self.cancelling:
            task = asyncio.current_task()
            if not isinstance(task, DeterministicTask) or not task.shielded:
                self._swallow()
                raise asyncio.CancelledError(self.run.reason or "the run is being cancelled")
        count = self._counts.get(base_id, 0) + 1
        op_id = base_id if count == 1 else f"{base_id}#{count}"
        if count > 1:
            before = base_id if count == 2 else f"{base_id}#{count - 1}"
            running = self.ops.get(before)
            if running is not None:
                raise ValueError(
                    f"step id {base_id!r} is used twice at the same time, here and at {_place(running.source)}; "
                    f'give the branches names of their own: async with step.scope("...") as step'
                )
        self._counts[base_id] = count
        op = Op(op_id, call, source, self.loop.create_future(), None)
        self.ops[op_id] = op
        self._requested.append(op)
        self._last = op
        return op

    def drop(self, op: Op) -> None:
        """The code no longer waits for this. Idempotent."""
        self._let_go(op.id)

    # -- inside

    def _timer_set(self, timer: Timer) -> None:
        op = Op(timer.id, SleepCall(round(timer.delay_s * 1000), None), None, None, timer)
        self.ops[op.id] = op
        self._requested.append(op)

    def _timer_dropped(self, timer: Timer) -> None:
        self._let_go(timer.id)

    def _let_go(self, op_id: str) -> None:
        op = self.ops.pop(op_id, None)
        if op is not None:
            self._gone[op_id] = op
            self._dropped.append(op)

    def _settle(self) -> None:
        """Run until idle; while the run is being cancelled, press on whatever waits outside a shield."""
        self.loop.run_until_idle()
        while self.cancelling and self.outcome is None:
            main = self._main
            if main is None or main.done():
                break
            task = self._exposed()
            if task is None:
                break
            try:
                self._swallow()
            except Abandoned:
                self.outcome = Outcome("cancelled")
                self._gone.update(self.ops)
                self.ops.clear()
                return
            self._press(task)
        if self.loop.violations:
            raise self.loop.violations[0]
        main = self._main
        if self.outcome is None and main is not None and main.done() and not self._cleaning():
            self.outcome = self._outcome(main)
            self._gone.update(self.ops)
            self.ops.clear()

    def _exposed(self) -> DeterministicTask[Any] | None:
        """A task to press on. One that was told and waits again may wait for those that clean up in a shield: not that one."""
        blocked = self.loop.blocked_tasks()
        cleaning = any(task.shielded for task in blocked)
        for task in blocked:
            if not task.shielded and not (cleaning and self._told.get(task, task) is task.waits_for):
                return task
        return None

    def _cleaning(self) -> bool:
        """Whether the run is being cancelled and some branch of it is in a shield."""
        return self.cancelling and any(task.shielded for task in self.loop.blocked_tasks())

    def _press(self, task: DeterministicTask[Any]) -> None:
        self.loop.pressing = True
        try:
            task.cancel(self.run.reason)
            self.loop.run_until_idle()
        finally:
            self.loop.pressing = False
        self._told[task] = task.waits_for

    def _outcome(self, main: DeterministicTask[Any]) -> Outcome:
        if main.cancelled():
            if self.cancelling:
                return Outcome("cancelled")
            return Outcome("failed", error=asyncio.CancelledError("the workflow cancelled itself"))
        error = main.exception()
        if error is None:
            return Outcome("completed", main.result())
        if isinstance(error, NonDeterminism):
            raise error
        if isinstance(error, Abandoned):
            return Outcome("cancelled")
        return Outcome("failed", error=error)

    def _swallow(self) -> None:
        self._swallowed += 1
        if self._swallowed > MAX_SWALLOWED_CANCELS:
            raise Abandoned(f"run {self.run.id!r} was cancelled and went on {MAX_SWALLOWED_CANCELS} times")

    def _deliver(self, delivery: Delivery) -> None:
        step_id, kind, _, value = delivery
        if kind == "cancel":
            self.cancelling = True
            return
        op = self.ops.pop(step_id, None)
        if op is None:
            if step_id in self._gone:
                self._ignore(self._gone[step_id], kind)
                return
            raise self._differs(f"{_IN_WORDS[_DELIVERS[kind]]} {step_id!r}")
        if op.kind != _DELIVERS[kind]:
            raise self._differs(f"{_IN_WORDS[_DELIVERS[kind]]} {step_id!r}", (op,))
        if op.timer is not None:
            self.loop.fire(op.timer)
            return
        future = op.future
        assert future is not None
        if kind == "error":
            attempts, error = value
            info = ErrorInfo.from_json(error)
            future.set_exception(StepFailed(step_id, attempts, ErrorInfo(info.type, info.message, info.traceback, step_id)))
            return
        try:
            if isinstance(op.call, StepCall):
                future.set_result(op.call.codec.decode(value))
            elif isinstance(op.call, WaitCall) and kind == "signal":
                self._check_signal(op, op.call, value[0])
                future.set_result(op.call.make(value[0], value[1]))
            else:
                future.set_result(None)
        except InputInvalid as error:
            future.set_exception(error)
        except NonDeterminism:
            raise
        except Exception as error:
            cause = describe(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            raise NonDeterminism(
                f"run {self.run.id!r}: the recorded value of {op} does not fit its type today: {cause}",
                expected=f"a value that fits {op}",
                found=cause,
                source=_places((op,)),
            ) from error

    def _ignore(self, op: Op, kind: str) -> None:
        """A result that came after the code had let go; a signal must go back to whoever waits next."""
        if kind == "signal" and f"@returned/{op.id}" not in self.run.done:
            op.recorded = True
            self._dropped.append(op)

    def _check_open(self) -> None:
        """What the log holds as open, the code must have asked for, in the same kind."""
        for step_id, known in self.run.open.items():
            op = self.ops.get(step_id)
            if op is None:
                if step_id not in self._gone:
                    raise self._differs(f"{_IN_WORDS[known.kind]} {step_id!r}")
            elif op.kind != known.kind:
                raise self._differs(f"{_IN_WORDS[known.kind]} {step_id!r}", (op,))
            else:
                op.recorded = True
                if isinstance(known, OpenWait) and isinstance(op.call, WaitCall):
                    self._check_signal(op, op.call, known.signal)
        for op_id in self._gone.keys() & self.run.open.keys():
            self._gone[op_id].recorded = True
        for op in self.ops.values():
            if op.id in self.run.done:
                raise self._differs(f"that the code had let go of {op.id!r}", (op,))

    def _check_signal(self, op: Op, call: WaitCall, signal: str) -> None:
        if call.signal != signal:
            raise self._differs(f"{_IN_WORDS['wait']} {op.id!r} named {signal!r}", (op,), f"{op} named {call.signal!r}")

    def _differs(self, expected: str, ops: Iterable[Op] | None = None, found: str = "") -> NonDeterminism:
        waiting = tuple(self.ops.values() if ops is None else ops)
        found = found or self._standing(waiting)
        after = f"; the last that agreed was {self._last}" if self._last is not None and not waiting else ""
        source = _places(waiting) or _places((self._last,) if self._last is not None else ())
        return NonDeterminism(
            f"run {self.run.id!r} ({self.run.workflow}): the history holds {expected}, but the code came to {found}{after}. "
            f"Its code, or what it depends on, has changed or is not deterministic",
            expected=expected,
            found=found,
            source=source,
        )

    def _standing(self, waiting: tuple[Op, ...]) -> str:
        if waiting:
            return ", ".join(str(op) for op in waiting[:5])
        if self.outcome is not None:
            return f"the workflow had {'returned' if self.outcome.kind == 'completed' else self.outcome.kind}"
        return "the workflow waits for nothing that is durable"


def _place(source: Source | None) -> str:
    return f"{source[0].co_filename}:{source[1]}" if source else "?"


def _places(ops: Iterable[Op]) -> tuple[str, ...]:
    return tuple(_place(op.source) for op in ops if op.source is not None)
