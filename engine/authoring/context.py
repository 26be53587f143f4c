"""`Context`: a run as its own code sees it. Everything here is the same on every replay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from random import Random
from types import SimpleNamespace
from typing import Any, Generic, cast
from uuid import UUID

from typing_extensions import TypeVar

from ..replay.execution import Execution
from ..values.times import utc
from .step import RunLog, logger

In = TypeVar("In", default=Any)
State = TypeVar("State", default=SimpleNamespace)


class ReplayLog(RunLog):
    """A logger of a run that is silent while the code repeats what it has done before."""

    def __init__(self, execution: Execution, extra: dict[str, Any]) -> None:
        super().__init__(logger, extra)
        self._execution = execution

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return not self._execution.replaying and super().isEnabledFor(level)


class Input(Generic[In]):
    """The start of a run.

    `data`: the validated input; `type`: "invoke", "cron" or "event"; `id`, `name`: those of the trigger; `time`: in UTC.
    """

    __slots__ = ("data", "id", "name", "time", "type")

    def __init__(self, data: In, type: str, id: str, name: str, time: datetime) -> None:
        self.data = data
        self.type = type
        self.id = id
        self.name = name
        self.time = time


class Context(Generic[In, State]):
    """A run as its own code sees it: `Context[Order]` has that input, `Context[Order, Cart]` also a `state` of that class."""

    def __init__(self, execution: Execution, data: In, ext: object, state: Callable[[], State]) -> None:
        run = execution.run
        trigger = cast(dict[str, Any], run.trigger or {})
        self._execution = execution
        self.run_id = run.id
        self.attempt = 1
        self.ext: Any = ext
        self.input: Input[In] = Input(
            data,
            str(trigger.get("type", "invoke")),
            str(trigger.get("id", run.id)),
            str(trigger.get("name", run.workflow)),
            utc(run.started_at),
        )
        self.log: logging.LoggerAdapter[logging.Logger] = ReplayLog(execution, {"run_id": run.id, "workflow": run.workflow})
        self._state: list[State] = []  # one, when it has been made
        self._make_state = state
        self._random: Random | None = None
        self._ids: Random | None = None

    def now(self) -> datetime:
        """The run's time, in UTC: the log's time of the last delivery to the code, at first that of the start."""
        return utc(self._execution.loop.now_ms)

    @property
    def state(self) -> State:
        """One object for all code of the run: the workflow changes it, queries read it.

        Nothing records it: each replay makes it anew, and the code brings it to the same state. It is a SimpleNamespace, or an
        object of the class that `@client.workflow(state=...)` names, made without arguments when the code first asks for it.
        """
        if not self._state:
            self._state.append(self._make_state())
        return self._state[0]

    @property
    def cancelling(self) -> bool:
        """Whether somebody has asked the run to end: code between two shields may look, and raise CancelledError."""
        return self._execution.cancelling

    @property
    def random(self) -> Random:
        """Random numbers that are the same on every replay of this run."""
        if self._random is None:
            self._random = Random(f"random/{self.run_id}")
        return self._random

    def uuid4(self) -> UUID:
        """A random UUID that is the same on every replay of this run."""
        if self._ids is None:
            self._ids = Random(f"uuid4/{self.run_id}")
        return UUID(int=self._ids.getrandbits(128), version=4)
