"""The port by which a worker reports what happens in it, for metrics and traces. Without an observer it costs a comparison.

An owner reports a record when it has folded it, and only records of a partition that it owns. So nobody reports a replay or a
recovery, and at most one worker reports a record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Literal

from ..core.state import RunState
from ..errors import ErrorInfo
from .attempt import Attempt

logger = logging.getLogger("stepfold.worker")

Note = Literal["claim", "claim-lost", "inbox", "dead-letter", "checkpoint"]
"""Happenings that concern no run: this worker's claim was accepted, another's was after it; a request of the inbox came into the
history, a request into the dead letters; a checkpoint was written."""


class Observer:
    """A receiver of reports. The worker calls it on its loop; a call returns at once, and changes nothing but
    `attempt.observed`."""

    def resident(self, run: RunState) -> None:
        """The code of a run comes into memory, and runs next."""

    def folded(self, run: RunState, event: dict[str, Any]) -> None:
        """An accepted record of a run was folded."""

    def begins(self, attempt: Attempt, context: Context) -> None:
        """The function of an attempt runs next, in `context`. `ended` follows only if this sets `attempt.observed`."""

    def ended(self, attempt: Attempt) -> None:
        """An attempt has left its slot; `attempt.ended_as` says how."""

    def noted(self, note: Note) -> None:
        """Something happened that concerns no run."""


class Observers(Observer):
    """Passes reports to several observers. The first error of each goes to the log; errors change nothing else."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._failed: set[int] = set()

    def resident(self, run: RunState) -> None:
        for one in self._observers:
            self._tell(one.resident, run)

    def folded(self, run: RunState, event: dict[str, Any]) -> None:
        for one in self._observers:
            self._tell(one.folded, run, event)

    def begins(self, attempt: Attempt, context: Context) -> None:
        for one in self._observers:
            self._tell(one.begins, attempt, context)

    def ended(self, attempt: Attempt) -> None:
        for one in self._observers:
            self._tell(one.ended, attempt)

    def noted(self, note: Note) -> None:
        for one in self._observers:
            self._tell(one.noted, note)

    def _tell(self, told: Callable[..., None], *args: Any) -> None:
        try:
            told(*args)
        except Exception as error:  # noqa: BLE001  # as the class says
            self.contain(told, error)

    def contain(self, told: Callable[..., None], error: Exception) -> None:
        observer: object = getattr(told, "__self__", None)
        if id(observer) not in self._failed:
            self._failed.add(id(observer))
            logger.warning("%s has failed, which is said once: %s", type(observer).__name__, ErrorInfo.of(error))
