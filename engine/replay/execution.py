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

from ..core.state import Delivery, RunState
from ..errors import ErrorInfo, InputInvalid, NonDeterminism, roots
from ..operations import CALLS, GIVES_BACK, SETTLED_BY
from ..operations.call import Call, Differs, Raise
from ..operations.sleep import SleepCall
from ..values.codec import describe
from ..values.duration import timer_ms
from ..values.times import NEVER_MS
from .loop import (
    HOST,
    DeterministicFuture,
    DeterministicLoop,
    DeterministicTask,
    Host,
    Timer,
    frames_of,
    frames_of_traceback,
    source_of,
)

Source = tuple[CodeType, int]
MAX_SWALLOWED_CANCELS = 100
"""How often code may swallow its cancellation before the run is ended without it."""

_OTHER_LOOP = "is bound to a different event loop"
"""What asyncio says of its locks, events and queues."""


class Op:
    """Something the code waits for. `recorded`: the log may know of it before its result does; `elapsed`: what the owner's clock
    shows when the wait that is recorded is over, where it is one of so long.
    """

    __slots__ = ("call", "elapsed", "future", "id", "recorded", "source", "timer")

    def __init__(
        self, op_id: str, call: Call, source: Source | None, future: DeterministicFuture[Any] | None, timer: Timer | None
    ) -> None:
        self.id = op_id
        self.call = call
        self.source = source
        self.future = future
        self.timer = timer
        self.recorded = False
        self.elapsed: int | None = None

    def __str__(self) -> str:
        return f"{self.call.words} {self.id!r}" + (f" at {_place(self.source)}" if self.source else "")


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

    However the code takes its cancellation, it ends: after MAX_SWALLOWED_CANCELS what it asks for is never answered.
    """

    def __init__(
        self,
        run: RunState,
        handler: Callable[[Execution], Coroutine[Any, Any, Any]],
        executed: int = -1,
        host: Host = HOST,
    ) -> None:
        self.run = run
        self.loop = DeterministicLoop(run.id, self._timer_set, self._timer_dropped, host)
        self.ops: dict[str, Op] = {}
        self.outcome: Outcome | None = None
        self.left: list[Op] = []  # what branches of the code still waited for when it ended
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

        Raises NonDeterminism when the code and the journal do not agree, when the code did what only a step may do, and when it
        waits for what nobody can ever bring.
        """
        loop = self.loop
        loop.attended = True
        if loop.violations or loop.foreign:
            loop.check()
        if self._main is None:
            loop.now_ms = self.run.started_at
            self._main = loop.create_task(self._handler(self), name=self.run.id)
            del self._handler  # it knows the worker, and code that never stops is kept
            self._settle()
        journal = self.run.journal
        while self.position < len(journal):
            delivery = journal[self.position]
            self.position += 1
            loop.now_ms = delivery.now
            self._deliver(delivery)
            self._settle()
        if not self._checked:
            self._checked = True
            self._check_open()
        loop.attended = False
        if not self.ops and self.outcome is None:
            raise self._stuck()

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

    def interrupted(self) -> None:
        """The code, and all that is around it here, was cut short: it can only be closed."""
        self.loop.leave()

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
                self._swallowed += 1
                if self._swallowed > MAX_SWALLOWED_CANCELS:
                    return Op(base_id, call, source, self.loop.create_future(), None)
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

    def is_known(self, base_id: str) -> bool:
        """Whether what is asked for next under this id has its result, so that nothing is done with what it is given."""
        count = self._counts.get(base_id, 0) + 1
        return (base_id if count == 1 else f"{base_id}#{count}") in self.run.done

    def drop(self, op: Op) -> None:
        """The code no longer waits for this. Idempotent."""
        self._let_go(op.id)

    # -- inside

    def _timer_set(self, timer: Timer) -> None:
        delay_ms = timer_ms(timer.delay_s)
        op = Op(timer.id, SleepCall(delay_ms, None if delay_ms is not None else NEVER_MS), None, None, timer)
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
            self._swallowed += 1
            if self._swallowed > MAX_SWALLOWED_CANCELS:
                self._end(Outcome("cancelled"))
                return
            self._press(task)
        loop = self.loop
        if loop.violations or loop.foreign:
            loop.check()
        main = self._main
        if self.outcome is None and main is not None and main.done() and not self._cleaning():
            self._end(self._outcome(main))

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.left = list(self.ops.values())
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
        for root in roots(error):
            if issubclass(type(root), NonDeterminism):
                raise root
            if type(root) is RuntimeError and any(type(arg) is str and _OTHER_LOOP in arg for arg in root.args):
                raise self.loop.shared(frames_of_traceback(root)) from root
        return Outcome("failed", error=error)

    def _stuck(self) -> NonDeterminism:
        waits = self.loop.blocked_tasks()
        frames = [list(frames_of(task)) for task in waits]
        source = tuple(line for each in frames for line in source_of(reversed(each)))[:5]
        at = f" (at {', '.join(source)})" if source else ""
        return NonDeterminism(
            f"the code of run {self.run.id!r} can never go on: it waits for something that is no step, sleep or signal, and that "
            f"nothing in it will bring. What a thread, a connection or another run has to do goes into `await step.run(...)`; a "
            f"lock is made inside the workflow{at}",
            found="a wait for nothing durable",
            source=source,
        )

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
            raise self._differs(f"{SETTLED_BY[kind].words} {step_id!r}")
        settle = op.call.settles.get(kind)
        if settle is None:
            raise self._differs(f"{SETTLED_BY[kind].words} {step_id!r}", (op,))
        if op.timer is not None:
            self.loop.fire(op.timer)
            return
        future = op.future
        assert future is not None
        try:
            settled = settle(op.call, step_id, value)
        except InputInvalid as error:
            future.set_exception(error)
        except Differs as error:
            raise self._not_the_same(op, error) from None
        except BaseException as error:  # the user's types may raise anything
            if self.loop.host.from_keyboard(error):
                raise
            cause = _cause(error)
            raise NonDeterminism(
                f"run {self.run.id!r}: the recorded value of {op} does not fit its type today: {cause}",
                expected=f"a value that fits {op}",
                found=cause,
                source=_places((op,)),
            ) from error
        else:
            if type(settled) is Raise:
                future.set_exception(settled.error)
            else:
                future.set_result(settled)

    def _ignore(self, op: Op, kind: str) -> None:
        """A result that came after the code had let go; a signal must go back to whoever waits next."""
        if kind in GIVES_BACK and f"@returned/{op.id}" not in self.run.done:
            op.recorded = True
            self._dropped.append(op)

    def _check_open(self) -> None:
        """What the log holds as open, the code must have asked for, in the same kind."""
        for step_id, known in self.run.open.items():
            op = self.ops.get(step_id)
            if op is None:
                if step_id not in self._gone:
                    raise self._differs(f"{CALLS[known.kind].words} {step_id!r}")
            elif op.call.kind != known.kind:
                raise self._differs(f"{CALLS[known.kind].words} {step_id!r}", (op,))
            else:
                op.recorded = True
                try:
                    op.call.check(known)
                except Differs as error:
                    raise self._not_the_same(op, error) from None
        for op_id in self._gone.keys() & self.run.open.keys():
            self._gone[op_id].recorded = True
        for op in self.ops.values():
            if op.id in self.run.done:
                raise self._differs(f"that the code had let go of {op.id!r}", (op,))

    def _not_the_same(self, op: Op, how: Differs) -> NonDeterminism:
        return self._differs(f"{op.call.words} {op.id!r} {how.found}", (op,), f"{op} {how.asked}")

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
            how = "returned" if self.outcome.kind == "completed" else self.outcome.kind
            return f"the workflow had {how}" + (f": {ErrorInfo.of(self.outcome.error)}" if self.outcome.error is not None else "")
        return "the workflow waits for nothing that is durable"


def _cause(error: BaseException) -> str:
    return describe(error) if isinstance(error, ValidationError) else str(ErrorInfo.of(error))


def _place(source: Source | None) -> str:
    return f"{source[0].co_filename}:{source[1]}" if source else "?"


def _places(ops: Iterable[Op]) -> tuple[str, ...]:
    return tuple(_place(op.source) for op in ops if op.source is not None)
