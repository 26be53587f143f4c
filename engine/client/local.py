"""Runs the code of a run over its history in this process: for whoever looks at runs. No step runs, nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from ..authoring.step import StepPorts
from ..authoring.workflow import Keep, Workflow
from ..core.state import RunState
from ..errors import ConfigError
from ..log import Log
from ..replay.execution import Execution
from ..replay.loop import Host
from ..worker.interrupts import from_keyboard
from ..worker.owner.live import Live, named, stuck
from ..worker.watchdog import Stuck, Watch

T = TypeVar("T")


class LocalReplay:
    """The code of a run over a journal that no longer grows. Enter, use and leave it in one thread: a watchdog looks at that one.

    `log`: for the extensions of its driver; None, or one that is not open: code that uses one gets a ConfigError. `keep` gets the
    run's context when its code begins.
    """

    def __init__(
        self, run: RunState, workflow: Workflow[Any, Any], log: Log | None, watch: Watch, keep: Keep | None = None
    ) -> None:
        ports, ctx_ext = _extensions(log)

        def start(execution: Execution) -> Any:
            return workflow.start(execution, ports, ctx_ext, keep)

        host = Host(from_keyboard, lambda: None, context=watch.new_context)
        self.run = run
        self.execution = Execution(run, start, len(run.journal), host)
        self._live = Live(run, workflow, self.execution)
        self._watch = watch

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._watch.ask(partial(named, self.run), self.execution.close)
        except BaseException as raised:  # the result of the replay stands
            if from_keyboard(raised):
                raise
            self.execution.interrupted()
        finally:
            self._watch.stop()

    def watched(self, act: Callable[[], T]) -> T:
        """Call a function that runs the code of the run. Raises NonDeterminism if it does not return in time, else as it does."""
        try:
            return self._watch.run(self._live, partial(self._watch.new_context().run, act))
        except Stuck:
            self.execution.interrupted()
            raise stuck(self.run, self._watch) from None


class _Missing:
    """In place of `step.ext` and `ctx.ext` if the client is not connected."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(f"the code asks its driver for {name!r}; replay with a client, inside `async with client:`")


async def _no_signal(*_: Any) -> NoReturn:
    raise AssertionError("a replay executes no step")


def _extensions(log: Log | None) -> tuple[StepPorts, Callable[[str], object]]:
    missing = _Missing()
    if log is None:
        return StepPorts(lambda _: missing, _no_signal), lambda _: missing
    return StepPorts(log.step_ext, _no_signal), log.ctx_ext if log.partitions else lambda _: missing
