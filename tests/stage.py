"""A run's code over its history, without a worker: the test decides what happens next, and may replay at any time.

`Stage` does what an owner does, one record at a time: it records the sleeps and waits that the code asks for and delivers
what the fold accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, ClassVar

import orjson
from histories import RUN, Ledger, begun

from stepfold.authoring.step import Step, StepPorts
from stepfold.core.snapshot import pack, unpack
from stepfold.core.state import RunState
from stepfold.operations.callback import CallbackCall
from stepfold.operations.signal import WaitCall
from stepfold.operations.sleep import SleepCall
from stepfold.operations.step import StepCall
from stepfold.replay.execution import Execution, Op, Outcome
from stepfold.values.codec import Codec

Note = Callable[[Any], None]
Program = Callable[[Step, Note], Coroutine[Any, Any, Any]]


async def _no_signals(run_id: str, name: str, data: Any, request: str) -> None:
    raise NotImplementedError


PORTS = StepPorts(lambda step: None, _no_signals)


class Replay:
    """One execution of a program over a run's journal, with what the code noted on the way."""

    made: ClassVar[list[Replay]] = []

    def __init__(self, run: RunState, program: Program) -> None:
        self.made.append(self)
        self.notes: list[Any] = []
        self.execution = Execution(run, lambda execution: program(Step(execution, PORTS), self.notes.append))

    def advance(self) -> Replay:
        self.execution.advance()
        return self

    @classmethod
    def close_all(cls) -> None:
        """Close what a test has left running, so that the garbage collector need not."""
        while cls.made:
            cls.made.pop().execution.close()

    @property
    def waits_for(self) -> list[str]:
        return [f"{op.call.kind} {op.id}" for op in self.execution.ops.values()]

    @property
    def outcome(self) -> Outcome | None:
        return self.execution.outcome

    @property
    def ended(self) -> list[str]:
        """The outcome in words that can be compared."""
        outcome = self.execution.outcome
        return [] if outcome is None else [outcome.phase, repr(outcome.value), repr(outcome.error)]


class Stage:
    """`self.live` runs as the history grows; `self.replayed()` runs over all of it at once."""

    def __init__(self, program: Program, ledger: Ledger | None = None) -> None:
        self.program = program
        self.ledger = ledger or begun()
        self.run = self.ledger.run
        self.live = Replay(self.run, program)
        self.advance()

    def advance(self) -> None:
        execution = self.live.advance().execution
        for op in execution.take_dropped():
            if op.recorded and execution.outcome is None:
                self.ledger.write(self.ledger.event("step-cancelled", step_id=op.id), key=RUN)
        for op in execution.take_requested():
            self._record(op)
        if len(self.run.journal) > execution.position:
            self.advance()

    def _record(self, op: Op) -> None:
        first = op.call.begin(op.id, max(self.run.now, self.ledger.now_ms), lambda: "nonce")
        if first is not None:
            op.recorded = True
            kind, fields = first
            self.ledger.accepts(kind, step_id=op.id, **fields)

    # what may happen

    def happens(self, type: str, **fields: Any) -> None:
        """An event is recorded, and delivered."""
        self.ledger.now_ms += 1
        self.ledger.accepts(type, **fields)
        self.advance()

    def step_gives(self, step_id: str, result: Any = None) -> None:
        self.happens("step-completed", step_id=step_id, attempt=1, result=result)

    def step_fails(self, step_id: str, message: str = "no") -> None:
        error = {"type": "ValueError", "message": message}
        self.happens("step-failed", step_id=step_id, attempt=1, error=error, next_at=None)

    def wakes(self, step_id: str) -> None:
        self.happens("sleep-completed", step_id=step_id, at=2**60)

    def times_out(self, step_id: str) -> None:
        self.happens("wait-timed-out", step_id=step_id, at=2**60)

    def signal(self, name: str, data: Any = None) -> None:
        self.happens("signal-received", signal=name, data=data)

    def answers(self, step_id: str, data: Any = None) -> None:
        self.happens("callback-completed", step_id=step_id, nonce="nonce", data=data)

    def cancel(self) -> None:
        self.happens("cancel-requested", reason="enough")

    def at_random(self, random: Random) -> None:
        """Something that may happen now does."""
        op = random.choice(list(self.live.execution.ops.values()))
        if isinstance(op.call, StepCall):
            if random.random() < 0.3:
                self.step_fails(op.id)
            else:
                codec = op.call.codec
                assert isinstance(codec, Codec)
                encoded = codec.encode(op.call.fn(*op.call.args))
                self.step_gives(op.id, orjson.loads(encoded))
        elif isinstance(op.call, SleepCall):
            self.wakes(op.id)
        elif isinstance(op.call, WaitCall):
            if op.call.timeout_ms is not None and random.random() < 0.4:
                self.times_out(op.id)
            else:
                self.signal(op.call.signal, random.randrange(10))
        elif isinstance(op.call, CallbackCall):
            self.answers(op.id, random.randrange(10))

    # replay

    def replayed(self, program: Program | None = None) -> Replay:
        """The same, or another program, over what is recorded by now, as a worker that takes over has it."""
        run = unpack(pack(self.run))
        return Replay(run, program or self.program).advance()

    def check(self) -> None:
        """A replay comes to where the live run is, having done the same."""
        again = self.replayed()
        assert again.notes == self.live.notes
        assert again.waits_for == self.live.waits_for
        assert again.ended == self.live.ended
        again.execution.close()

    @property
    def waits_for(self) -> list[str]:
        return self.live.waits_for
