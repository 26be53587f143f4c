"""Every error that stepfold raises on purpose.

StepfoldError
├── ConfigError             a URL, option, registration or environment that cannot work
├── LogUnavailable          the log did not answer, or refused; what was in flight may or may not be in it
├── NotOwner                the partition belongs to another worker now
├── PayloadTooLarge         a payload above the log's limit
├── InputInvalid            input that the workflow's model rejects (.errors)
├── RunNotFound             no run has this id
├── RunAlreadyExists        the id is taken: by another input, or with if_exists="reject"
├── WorkflowUnknown         no workflow is registered under this id and version
├── WorkflowFailed          the awaited run failed (.error)
├── WorkflowCancelled       the awaited run was cancelled (.reason)
├── ProjectionFailed        a projection could not apply an event (.projection, .partition, .offset)
├── NonDeterminism          the code asked for other steps than the history holds (.expected, .found)
└── StepError               what a step may raise or be raised for
    ├── StepFailed          a step is still failing after its last attempt (.step_id, .attempts, .error)
    ├── StepInterrupted     the worker died while an at_most_once attempt ran
    ├── NonRetryable        raised by a step function: do not try again
    └── RetryAfter          raised by a step function: try again then
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, cast

from .duration import Duration, duration_ms


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as the log keeps it.

    `type` is the class's name for builtins and `module.Class` otherwise; `step_id` names the step it left, if any.
    """

    type: str
    message: str
    traceback: str = ""
    step_id: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def to_json(self) -> dict[str, Any]:
        """As it stands in an event."""
        found: dict[str, Any] = {"type": self.type, "message": self.message}
        if self.traceback:
            found["traceback"] = self.traceback
        if self.step_id is not None:
            found["step_id"] = self.step_id
        return found

    @classmethod
    def from_json(cls, data: Any) -> ErrorInfo:
        """Total: whatever a record holds becomes an ErrorInfo."""
        if not isinstance(data, dict):
            return cls("Unknown", str(data))
        fields = cast(dict[str, Any], data)
        step_id = fields.get("step_id")
        return cls(
            str(fields.get("type", "Unknown")),
            str(fields.get("message", "")),
            str(fields.get("traceback", "")),
            step_id if isinstance(step_id, str) else None,
        )

    @classmethod
    def of(cls, error: BaseException, step_id: str | None = None) -> ErrorInfo:
        """Describe `error`; a StepFailed gives the root error of its step."""
        if isinstance(error, StepFailed):
            return error.error
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ == __name__:
            name = kind.__qualname__
        try:
            message = str(error)
        except Exception:  # noqa: BLE001  # it is the user's, and what went wrong before matters more
            message = "its message cannot be shown"
        text = "".join(traceback.format_exception(error, limit=-8))
        return cls(name, _writable(message)[:4000], _writable(text)[-8000:], step_id)


def _writable(text: str) -> str:
    """Names of files may hold lone surrogates, the log may not."""
    return text.encode("utf-8", "backslashreplace").decode()


class StepfoldError(Exception):
    """The root of the tree."""


class ConfigError(StepfoldError):
    """A URL, option, registration or environment that cannot work; the message says what to change."""


class LogUnavailable(StepfoldError):
    """The log did not answer in time, or refused. What was in flight may or may not be in it."""


class NotOwner(StepfoldError):
    """The partition belongs to another worker now."""


class PayloadTooLarge(StepfoldError):
    """A payload above the log's limit."""


class InputInvalid(StepfoldError):
    """Input that the workflow's model rejects. `errors` is pydantic's list."""

    def __init__(self, message: str, errors: list[Any]) -> None:
        super().__init__(message)
        self.errors = errors


class RunNotFound(StepfoldError):
    """No run has this id."""


class RunAlreadyExists(StepfoldError):
    """The run id is taken: by a run with another input, or the caller asked for if_exists="reject"."""


class WorkflowUnknown(StepfoldError):
    """No workflow is registered under this id and version."""


class WorkflowFailed(StepfoldError):
    """The awaited run failed. `error` is the root error."""

    def __init__(self, run_id: str, error: ErrorInfo) -> None:
        super().__init__(f"run {run_id!r} failed: {error}")
        self.run_id = run_id
        self.error = error


class WorkflowCancelled(StepfoldError):
    """The awaited run was cancelled."""

    def __init__(self, run_id: str, reason: str | None) -> None:
        super().__init__(f"run {run_id!r} was cancelled" + (f": {reason}" if reason else ""))
        self.run_id = run_id
        self.reason = reason


class NonDeterminism(StepfoldError):
    """The code asked for other steps than its history holds; the run is quarantined until the code is mended.

    `expected` says what the history holds, `found` what the code did instead, `source` the lines (`file:line`) it did it at.
    """

    def __init__(self, message: str, *, expected: str = "", found: str = "", source: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found
        self.source = source


class ProjectionFailed(StepfoldError):
    """A projection could not apply an event and has stopped; nothing of the transaction was kept. `offset` is the event's."""

    def __init__(self, message: str, *, projection: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.projection = projection
        self.partition = partition
        self.offset = offset


class StepError(StepfoldError):
    """What a step may raise or be raised for."""


class StepFailed(StepError):
    """A step is still failing after its last attempt. Raised the same way on replay, without running the step."""

    def __init__(self, step_id: str, attempts: int, error: ErrorInfo) -> None:
        super().__init__(f"step {step_id!r} failed after {attempts} attempt{'s' * (attempts != 1)}: {error}")
        self.step_id = step_id
        self.attempts = attempts
        self.error = error


class StepInterrupted(StepError):
    """The worker died while an `at_most_once` attempt ran; whether its effect happened is unknown."""


class NonRetryable(StepError):
    """Raise it in a step function to fail the step at once, whatever its retry policy."""


class RetryAfter(StepError):
    """Raise it in a step function to say when to try again: `RetryAfter("90s")`. Raises ValueError for a bad duration."""

    def __init__(self, delay: Duration, message: str = "") -> None:
        duration_ms(delay)
        super().__init__(message or f"try again after {delay}")
        self.delay = delay
