"""A run whose code is in memory, and the words for it in messages."""

from __future__ import annotations

import logging
from typing import Any

from ...authoring.workflow import Workflow
from ...core.state import RunState
from ...errors import ErrorInfo, NonDeterminism
from ...replay.execution import Execution
from ...values.text import Lines
from .. import watchdog
from ..attempt import Attempt
from ..watchdog import Watch

run_logger = logging.getLogger("stepfold.run")


class Live:
    """A run whose code is in memory."""

    __slots__ = ("attempts", "crashed", "execution", "finished", "run", "stop_s", "suspect", "workflow")

    def __init__(self, run: RunState, workflow: Workflow[Any, Any], execution: Execution) -> None:
        self.run = run
        self.workflow = workflow
        self.execution = execution
        self.stop_s = watchdog.STOP_S
        self.finished = False
        self.crashed = False  # its code has paused in a recovery after a crash
        self.suspect = False  # its code has paused in its turn as a suspect, and has decided nothing yet
        # by step id: waiting for a slot, running, or with a result that is not yet folded
        self.attempts: dict[str, Attempt] = {}

    def named(self) -> tuple[str, dict[str, Any]]:
        """The run's code in words, and as extra fields for a log record."""
        return named(self.run)

    def progress(self) -> int:
        """The position in the journal: changes when the code makes progress."""
        return self.execution.position

    def unstarted(self) -> list[Attempt]:
        """The at_most_once attempts that were announced and have not started."""
        return [one for one in self.attempts.values() if one.announced and not one.started and one.call.at_most_once]


def named(run: RunState) -> tuple[str, dict[str, Any]]:
    """A run's code in words, and as extra fields for a log record."""
    return f"the code of run {run.id} of {run.workflow}", {"run_id": run.id, "workflow": run.workflow}


def stuck(run: RunState, watch: Watch) -> NonDeterminism:
    """The error for code that the watchdog interrupted."""
    return NonDeterminism(
        f"the code of run {run.id!r} did not return within {watchdog.STOP_S:g} s: it blocks, or it spins; move what takes long "
        f"into `await step.run(...)` (at {', '.join(watch.lines) or 'an unknown line'})",
        found="code that does not return",
        source=watch.lines,
    )


def tell_failure(what: str, run: RunState, info: ErrorInfo, **fields: Any) -> None:
    """Log a failure: one line, and the traceback."""
    trace = Lines(f"\n{info.traceback.rstrip()}") if info.traceback else ""
    extra = {"run_id": run.id, "workflow": run.workflow, "step_id": info.step_id, "error": str(info), "traceback": info.traceback}
    run_logger.error("%s: %s%s", what, info, trace, extra={**extra, **fields})
