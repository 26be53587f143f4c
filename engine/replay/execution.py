"""Replay: runs the user's code over its journal. Live execution is a replay of the journal's tail.

Pure, except for the user's code, which runs inside a deterministic loop: no I/O, no clock, no randomness of its own.

An `Execution` delivers the journal's entries one by one, in the log's order, and runs the code until it is idle after each.
The code then waits for operations (`Op`): steps, sleeps, waits. The owner turns them into work and records. Their results
come back only through the journal.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from pydantic import ValidationError

from ..core.state import Delivery, RunState
from ..errors import ErrorInfo, InputInvalid, NonDeterminism, roots
from ..operations import CALLS, GIVES_BACK, SETTLED_BY
from ..operations.call import Call, Differs, MadeAnew, Raise
from ..operations.sleep import sleep_of_timer
from ..operations.told import Notice
from ..values.codec import describe
from .frames import Source, frames_of, frames_of_traceback, line_text, source_of
from .futures import DeterministicFuture, DeterministicTask
from .handles import Timer
from .loop import HOST, DeterministicLoop, Host
from .notices import Notices

P = ParamSpec("P")
T = TypeVar("T")

MAX_SWALLOWED_CANCELS = 100
"""How often code may swallow its cancellation before the run is ended without it."""

_OTHER_LOOP = "is bound to a different event loop"
"""A part of asyncio's message when a lock, event or queue is used from another loop."""


class Op:
    """An operation that the code waits for. `recorded`: the log may hold a record of it before its result. `elapsed`: if it lasts
    for a duration, the owner's elapsed time at its end, or when something is due, in ms; `ends`: that of its time-out, if it has
    one besides. `begun`: the journal says where it began. `handed_out`: the code has it, and need not wait for its end.
    """

    __slots__ = ("begun", "call", "elapsed", "ends", "future", "handed_out", "id", "recorded", "source", "timer")

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
        self.ends: int | None = None
        self.begun = False
        self.handed_out = False

    @property
    def at_line(self) -> dict[str, str]:
        """The field of a record that says where the code asked for it; empty for a timer of asyncio's."""
        return {} if self.source is None else {"at_line": line_text(self.source)}

    def __str__(self) -> str:
        return f"{self.call.words} {self.id!r}" + (f" at {_line(self.source)}" if self.source else "")


class Outcome(NamedTuple):
    """How the code ended: "completed" (value), "failed" (error) or "cancelled"."""

    phase: str
    value: Any = None
    error: BaseException | None = None


class Execution:
    """The code of one run over its journal.

    `handler` makes the coroutine; the execution calls it once, inside the loop. `run` is the folded state, whose journal grows
    as the owner folds; `advance` delivers the new entries. `executed`: how many entries the code is known to have seen before;
    until it has seen as many again, its log calls are silent.

    A cancelled run ends even if its code swallows the cancellation: after MAX_SWALLOWED_CANCELS no operation gets a result.
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
        self.notices = Notices(run, self.loop)
        self._context = host.context()
        self.ops: dict[str, Op] = {}
        self.outcome: Outcome | None = None
        self.left: list[Op] = []  # operations that branches of the code still waited for when it ended
        self.position = 0
        self._handler = handler
        self._executed = executed
        self._main: DeterministicTask[Any] | None = None
        self._requested: list[Op] = []
        self._dropped: list[Op] = []
        self._pressed: DeterministicTask[Any] | None = None  # cancelled, and not idle since
        self._gone: dict[str, Op] = {}  # operations that the code has dropped
        self._counts: dict[str, int] = {}
        self._last: Op | None = None
        self._swallowed = 0
        self._cancelled_while_waiting: dict[DeterministicTask[Any], Any] = {}  # task -> the future that it then waited for
        self._checked = False
        self._leaves: set[str] = set()  # operations whose end a cancellation waits for
        self.cancelling = False

    # -- driven by the owner

    @property
    def replaying(self) -> bool:
        """Whether the code now repeats what it has done before."""
        return self.position <= self._executed

    @property
    def seen(self) -> int:
        """How many entries of the journal the code is known to have seen, here or before."""
        return max(self.position, self._executed)

    def advance(self) -> None:
        """Deliver the journal's new entries and run the code as far as it goes.

        Raises NonDeterminism if the code and the journal disagree, if the code did something that only a step may do, or if it
        waits for something that can never come. If the code tells much, this pauses (`paused`): call it again.
        """
        loop = self.loop
        loop.attended = True
        if loop.violations or loop.foreign:
            loop.check()
        if self._main is None:
            loop.now_ms = self.run.started_at
            self._main = loop.create_task(self._handler(self), name=self.run.id, context=self._context)
            del self._handler  # it refers to the worker, and code that never stops stays in memory
            self._settle()
        elif loop.paused:
            self._settle()
        journal = self.run.journal
        while self.position < len(journal) and not loop.paused:
            delivery = journal[self.position]
            self.position += 1
            loop.now_ms = delivery.now
            self._deliver(delivery)
            self._settle()
        if loop.paused:
            loop.attended = False
            return
        if not self._checked:
            self._checked = True
            self._check_open()
            self.notices.count_on()
        loop.attended = False
        if not self.ops and self.outcome is None:
            raise _stuck(self.run, loop.blocked_tasks())

    def take_requested(self) -> list[Op]:
        """The operations that the code has requested since the last call and still waits for."""
        requested = self._requested
        if len(requested) == 1:  # the common case, without a new list
            self._requested = []
            return requested if requested[0].id in self.ops else []
        self._requested = []
        return [op for op in requested if self.ops.get(op.id) is op]

    def take_dropped(self) -> list[Op]:
        """The operations that the code has dropped since the last call."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    @property
    def paused(self) -> bool:
        """Whether the code is not idle, and goes on at the next `advance`."""
        return self.loop.paused

    @property
    def has_news(self) -> bool:
        """Whether the owner has to do something for the code, or the log lacks something that the code told."""
        return bool(self._requested or self._dropped or self.outcome or self.loop.paused or self.notices.missing)

    def interrupted(self) -> None:
        """Note that an exception from outside has cut short the code and the frames of this class. Only `close` may follow."""
        self.loop.leave()

    def close(self) -> None:
        """Drop the code at its current await. Its `finally` blocks run, but have no effect outside.

        Drops all objects of the code, too: a `__del__` of their classes then runs here, not where the execution is dropped.
        """
        self.ops.clear()
        self.loop.abandon(self._context.copy())
        self._main = self._last = self.outcome = None
        self._context = contextvars.Context()
        self._pressed = None
        self._cancelled_while_waiting.clear()
        self._gone.clear()
        self.left, self._requested, self._dropped = [], [], []

    def inside(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call users' classes about a value of the run, in the context of its code."""
        return self._context.run(call, *args, **kwargs)

    # -- called by the code, through Step and Context

    def request(self, base_id: str, call: Call, source: Source) -> Op:
        """Request an operation; its future gets the result.

        Raises CancelledError if the run is being cancelled and its main task asks outside a shield, ValueError if an operation
        under this id is already open, and RuntimeError outside the workflow.
        """
        if not self.loop.is_running():
            raise _outside(self.run, f"step {base_id!r}")
        if (self.cancelling or self.loop.abandoned or self.loop.asked) and not self._goes_on(f"step {base_id!r}"):
            return Op(base_id, call, source, self.loop.create_future(), None)
        count = self._counts.get(base_id, 0) + 1
        op_id = base_id if count == 1 else f"{base_id}#{count}"
        if count > 1:
            before = base_id if count == 2 else f"{base_id}#{count - 1}"
            running = self.ops.get(before)
            if running is not None and not running.handed_out:
                raise ValueError(
                    f"step id {base_id!r} is used twice at the same time, here and at {_line(running.source)}; "
                    f'give each branch a scope of its own: async with step.scope("...") as step'
                )
        self._counts[base_id] = count
        op = Op(op_id, call, source, self.loop.create_future(), None)
        self.ops[op_id] = op
        self._requested.append(op)
        self._last = op
        return op

    async def tell(self, notice: Notice) -> None:
        """Record something without waiting for the log; other tasks of the code run meanwhile.

        Raises CancelledError and RuntimeError as `request` does, and what `notice.too_many` returns.
        """
        loop = self.loop
        if not loop.is_running():
            raise _outside(self.run, f"{notice.kind} {notice.name!r}")
        if (self.cancelling or loop.abandoned or loop.asked) and not self._goes_on(f"{notice.kind} {notice.name!r}"):
            await loop.create_future()
        self.notices.add(notice)
        await asyncio.sleep(0)

    def is_known(self, base_id: str) -> bool:
        """Whether the next operation under this id is already done, so that its arguments are not needed."""
        count = self._counts.get(base_id, 0) + 1
        return (base_id if count == 1 else f"{base_id}#{count}") in self.run.done

    def drop(self, op: Op) -> None:
        """Note that the code no longer waits for an operation. Idempotent."""
        self._let_go(op)

    # -- inside

    def _goes_on(self, asked: str) -> bool:
        """Whether code that is being cancelled or dropped may ask for something and go on; else its task shall wait for ever.
        Raises CancelledError for the main task of a cancelled run outside a shield, and NonDeterminism while a query reads."""
        if self.loop.asked and not self.loop.abandoned:
            raise self.loop.query_refusal(asked)
        if self.loop.abandoned:
            return False
        task = asyncio.current_task()
        if isinstance(task, DeterministicTask) and task.shielded:
            return True
        if task is not self._main or self._leaves:
            # `_settle` cancels the oldest task first. A task group ends without an error when only its members are
            # cancelled: the code would go on, and might complete, as if the members had done their work.
            return False
        self._swallowed += 1
        if self._swallowed > MAX_SWALLOWED_CANCELS:
            return False
        raise asyncio.CancelledError(self.run.reason or "the run is being cancelled")

    def _timer_set(self, timer: Timer) -> None:
        op = Op(timer.id, sleep_of_timer(timer.delay_s), None, None, timer)
        self.ops[op.id] = op
        self._requested.append(op)

    def _timer_dropped(self, timer: Timer) -> None:
        self._let_go(self.ops.get(timer.id))

    def _let_go(self, op: Op | None) -> None:
        if op is not None and self.ops.get(op.id) is op:
            del self.ops[op.id]
            self._leaves.discard(op.id)
            self._gone[op.id] = op
            self._dropped.append(op)

    def _settle(self) -> None:
        """Run the code until it is idle. While the run is being cancelled, cancel each task that waits outside a shield, once the
        leaves have ended."""
        loop = self.loop
        loop.run_until_idle()
        if self._pressed is not None and not loop.paused:
            self._was_pressed(self._pressed)
        while self.cancelling and self.outcome is None and not loop.paused and not self._leaves:
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
        if loop.paused:
            return
        if loop.violations or loop.foreign:
            loop.check()
        main = self._main
        if self.outcome is None and main is not None and main.done() and not self._cleaning():
            self._end(_outcome(main, loop, self.cancelling))

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.left = list(self.ops.values())
        self._gone.update(self.ops)
        self.ops.clear()

    def _exposed(self) -> DeterministicTask[Any] | None:
        """The next task to cancel. Skips one that was cancelled already and waits again while another task cleans up in a
        shield: it may wait for that clean-up."""
        blocked = self.loop.blocked_tasks()
        cleaning = any(task.shielded for task in blocked)
        for task in blocked:
            if not task.shielded and not (cleaning and self._cancelled_while_waiting.get(task, task) is task.waits_for):
                return task
        return None

    def _cleaning(self) -> bool:
        """Whether the run is being cancelled and one of its tasks waits in a shield."""
        return self.cancelling and any(task.shielded for task in self.loop.blocked_tasks())

    def _press(self, task: DeterministicTask[Any]) -> None:
        self.loop.pressing = True
        self._pressed = task
        task.cancel(self.run.reason)
        self.loop.run_until_idle()
        if not self.loop.paused:
            self._was_pressed(task)

    def _was_pressed(self, task: DeterministicTask[Any]) -> None:
        self.loop.pressing = False
        self._pressed = None
        self._cancelled_while_waiting[task] = task.waits_for

    def _deliver(self, delivery: Delivery) -> None:
        step_id, outcome, _, value = delivery
        if outcome == "cancel":
            self.cancelling = True
            self._leaves = {op.id for op in self.ops.values() if op.begun and op.call.ends_first}
            return
        op = self.ops.pop(step_id, None)
        if op is None:
            if step_id in self._gone:
                self._ignore(self._gone[step_id], outcome)
                return
            raise self._differs(f"{SETTLED_BY[outcome].words} {step_id!r}")
        settle = op.call.settles.get(outcome)
        if settle is None:
            self._hand_out(op, delivery)
            return
        if op.timer is not None:
            self.loop.fire(op.timer)
            return
        if step_id in self._leaves:  # its result has no meaning: `_settle` cancels the task that waits for it
            self._leaves.discard(step_id)
            return
        future, op.future = op.future, None  # an error refers to the frame that waited, and so to `op`: no cycle
        assert future is not None
        try:
            if op.call.asks_types:
                settled = self.loop.within(self._context, settle, op.call, step_id, value)
            else:
                settled = settle(op.call, step_id, value)
        except InputInvalid as error:
            future.set_exception(error)
        except Differs as error:
            raise self._not_the_same(op, error) from None
        except MadeAnew as error:
            raise NonDeterminism(
                f"run {self.run.id!r}: {op}: {error}",
                expected=f"a value of {op} that is the same at each replay",
                found=str(error),
                source=_lines((op,)),
            ) from None
        except BaseException as error:  # the user's types may raise anything
            if self.loop.host.from_keyboard(error):
                raise
            cause = _cause(error)
            raise NonDeterminism(
                f"run {self.run.id!r}: the recorded value of {op} does not fit its type today: {cause}",
                expected=f"a value that fits {op}",
                found=cause,
                source=_lines((op,)),
            ) from error
        else:
            if type(settled) is Raise:
                future.set_exception(settled.error)
            else:
                future.set_result(settled)
        if op.handed_out:
            future.exception()  # marks an error as retrieved: the code may never await it

    def _hand_out(self, op: Op, delivery: Delivery) -> None:
        """Deliver the progress of an operation that is not over: the code gets its value and the `Op`, whose future then is the
        end. The delivery of its beginning gives the code nothing."""
        step_id, outcome, _, value = delivery
        if outcome in op.call.begins:
            op.begun = True
            self.ops[step_id] = op
            return
        settle = op.call.progress.get(outcome)
        if settle is None or op.handed_out:
            raise self._differs(f"{SETTLED_BY[outcome].words} {step_id!r}", (op,))
        assert op.future is not None
        op.future.set_result((settle(op.call, step_id, value), op))
        op.future = self.loop.create_future()
        op.handed_out = True
        self.ops[step_id] = op

    def _ignore(self, op: Op, outcome: str) -> None:
        """Handle a result that came after the code had dropped the operation. For a signal, tell the owner to record the drop, so
        that the signal goes back to its queue."""
        if outcome in GIVES_BACK and op.id not in self.run.returned:
            op.recorded = True
            self._dropped.append(op)

    def _check_open(self) -> None:
        """Check that the code has requested every operation that is open in the log, as an operation of the same kind."""
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
                raise self._differs(f"that the code no longer waited for {op.id!r}", (op,))

    def _not_the_same(self, op: Op, how: Differs) -> NonDeterminism:
        return self._differs(f"{op.call.words} {op.id!r} {how.found}", (op,), f"{op} {how.asked}")

    def _differs(self, expected: str, ops: Iterable[Op] | None = None, found: str = "") -> NonDeterminism:
        waiting = tuple(self.ops.values() if ops is None else ops)
        found = found or _standing(waiting, self.outcome)
        after = f"; the last operation that agreed was {self._last}" if self._last is not None and not waiting else ""
        source = _lines(waiting) or _lines((self._last,) if self._last is not None else ())
        return NonDeterminism(
            f"run {self.run.id!r} ({self.run.workflow}): the history holds {expected}, but the code came to {found}{after}. "
            f"Its code, or what it depends on, has changed or is not deterministic",
            expected=expected,
            found=found,
            source=source,
        )


def _outcome(main: DeterministicTask[Any], loop: DeterministicLoop, cancelling: bool) -> Outcome:
    if main.cancelled():
        if cancelling:
            return Outcome("cancelled")
        return Outcome("failed", error=asyncio.CancelledError("the workflow cancelled itself"))
    error = main.exception()
    if error is None:
        return Outcome("completed", main.result())
    for root in roots(error):
        if issubclass(type(root), NonDeterminism):
            raise root
        if type(root) is RuntimeError and any(type(arg) is str and _OTHER_LOOP in arg for arg in root.args):
            raise loop.shared(frames_of_traceback(root)) from root
    return Outcome("failed", error=error)


def _cause(error: BaseException) -> str:
    return describe(error) if isinstance(error, ValidationError) else str(ErrorInfo.of(error))


def _line(source: Source | None) -> str:
    return f"{source[0].co_filename}:{source[1]}" if source else "?"


def _lines(ops: Iterable[Op]) -> tuple[str, ...]:
    return tuple(_line(op.source) for op in ops if op.source is not None)


def _stuck(run: RunState, waits: list[DeterministicTask[Any]]) -> NonDeterminism:
    frames = [list(frames_of(task)) for task in waits]
    source = tuple(line for each in frames for line in source_of(reversed(each)))[:5]
    at = f" (at {', '.join(source)})" if source else ""
    return NonDeterminism(
        f"the code of run {run.id!r} can never continue: it waits for something that is not a step, sleep or signal, "
        "and that nothing in the workflow can complete. Move the work of a thread, a connection or another run into `await "
        f"step.run(...)`, and create locks inside the workflow{at}",
        found="a wait for nothing durable",
        source=source,
    )


def _outside(run: RunState, what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} of run {run.id!r} was called outside its workflow: from a step function, another run, or after the run ended"
    )


def _standing(waiting: tuple[Op, ...], outcome: Outcome | None) -> str:
    if waiting:
        return ", ".join(str(op) for op in waiting[:5])
    if outcome is not None:
        how = "returned" if outcome.phase == "completed" else outcome.phase
        return f"the workflow had {how}" + (f": {ErrorInfo.of(outcome.error)}" if outcome.error is not None else "")
    return "the workflow waits for nothing that is durable"
