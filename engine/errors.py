"""Every error that stepfold raises on purpose.

StepfoldError
├── ConfigError             a URL, option, registration or environment that cannot work
├── LogUnavailable          the log did not answer, or refused; what was in flight may or may not be in it
├── NotOwner                the partition belongs to another worker now
├── PayloadTooLarge         a payload above the log's limit
├── InputInvalid            input that the workflow's model rejects (.errors)
├── ValueInvalid            a value that would not come back from the log as it was, or does not fit its type today
├── RunNotFound             no run has this id (.run_id, .log, .kept)
│   └── RunEnded            the run has ended, and takes nothing any more (.state)
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

from .values.duration import Duration, duration_ms


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
        """Describe `error`: total, whatever its class does when it is asked. A StepFailed gives the root error of its step, a
        group with one member that member, a group of several names each of them with its step."""
        members = roots(error)
        if len(members) == 1:
            return _described(members[0], step_id)
        found = [_described(member, step_id) for member in members[:MEMBERS_SHOWN]]
        said = [
            f"{one} (step {one.step_id!r})" if one.step_id is not None and one.step_id != step_id else str(one) for one in found
        ]
        said += [f"{len(members) - MEMBERS_SHOWN} more"] * (len(members) > MEMBERS_SHOWN)
        message = f"{len(members)} errors: {'; '.join(said)}"
        return cls(_type_name(type(error)), message[:MESSAGE_CHARS], _traceback(error), step_id)

    @classmethod
    def unshown(cls, error: BaseException, step_id: str | None = None) -> ErrorInfo:
        """Describe an error that does not come back when it is asked: it is asked nothing."""
        return cls(_type_name(type(error)), "its message cannot be shown: asked for it, the error did not come back", "", step_id)


MESSAGE_CHARS = 4000
TRACEBACK_CHARS = 8000
MEMBERS_SHOWN = 10


def roots(error: BaseException) -> list[BaseException]:
    """The errors in a group and the groups in it, in order; of one that is no group, itself."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            # Past what a class of one's own may have put in its place.
            waiting.extend(reversed(vars(BaseExceptionGroup)["exceptions"].__get__(one)))
        else:
            found.append(one)
    return found


def _described(error: BaseException, step_id: str | None) -> ErrorInfo:
    if issubclass(type(error), StepFailed):  # not isinstance, which asks the error for its class
        info = _held(error)
        if info is not None:
            return info
    return ErrorInfo(_type_name(type(error)), message_of(error), _traceback(error), step_id)


def _held(failed: BaseException) -> ErrorInfo | None:
    """The root error of a StepFailed, if that is what stepfold has put there."""
    try:
        info: Any = cast(StepFailed, failed).error
        plain = type(info) is ErrorInfo and all(type(part) is str for part in (info.type, info.message, info.traceback))
        return info if plain and type(info.step_id) in (str, type(None)) else None
    except BaseException:  # noqa: BLE001  # it is the user's
        return None


def _type_name(kind: type[BaseException]) -> str:
    # Past what a metaclass may have put in their places.
    name: str = vars(type)["__qualname__"].__get__(kind)
    module: Any = vars(type)["__module__"].__get__(kind)
    own = module == __name__ if type(module) is str else True
    return writable(name if own or module == "builtins" else f"{module}.{name}")[:MESSAGE_CHARS]


def message_of(error: BaseException) -> str:
    """What an error says. Total."""
    try:
        return writable(str(error))[:MESSAGE_CHARS]
    except BaseException:  # noqa: BLE001  # it is the user's, and what went wrong before matters more
        return "its message cannot be shown"


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error, limit=-8))
    except BaseException:  # noqa: BLE001  # whatever it is, the error that it is about matters more
        text = _bare_traceback(error)
    return writable(text)[-TRACEBACK_CHARS:]


def _bare_traceback(error: BaseException) -> str:
    """The lines alone, where what is around them cannot be formatted."""
    try:
        lines = traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error), limit=-8)
    except BaseException:  # noqa: BLE001  # as above; reading source files may fail in any way
        lines = []
    return "".join(("Traceback (most recent call last):\n", *lines, f"{_type_name(type(error))}: {message_of(error)}\n"))


def disagreement(error: NonDeterminism) -> dict[str, Any]:
    """What a quarantine records of an error: total, since code of users' may raise one of its own making."""
    try:
        source = [writable(line)[:MESSAGE_CHARS] for line in error.source[:MEMBERS_SHOWN]]
        expected, found = (writable(text)[:MESSAGE_CHARS] for text in (error.expected, error.found))
        held: dict[str, Any] = {"expected": expected, "found": found, "source": source}
    except BaseException:  # noqa: BLE001  # it is the user's, and so is what it holds
        held = {"expected": "", "found": "", "source": []}
    return {"type": "NonDeterminism", "message": message_of(error), **held}


def writable(text: str) -> str:
    """Plain text, of which a subclass of str may make anything. Names of files may hold lone surrogates, the log may not."""
    return str.encode(text, "utf-8", "backslashreplace").decode()


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


class ValueInvalid(StepfoldError, TypeError):
    """A value that would not come back from the log as it was, so that it is not written; or that does not fit its type today.

    The message names the place in it and says what to do. A step that returns one is not tried again.
    """


class RunNotFound(StepfoldError):
    """No run has this id. `log`: the name of the log, which the text leaves out: it is for whoever asked. `kept`: how many
    signals have come for it and are kept until it is started.
    """

    def __init__(self, run_id: str, log: str, message: str | None = None, *, kept: int = 0) -> None:
        if message is None:
            yet = f"; signals have come for it ({kept}), and are kept for a while until it is started" if kept else ""
            message = f"this log has no run {run_id!r}{yet}"
        super().__init__(message)
        self.run_id = run_id
        self.log = log
        self.kept = kept


class RunEnded(RunNotFound):
    """The run was, and is over: it takes no signal and no cancellation any more. `state`: how it ended."""

    def __init__(self, run_id: str, log: str, state: str) -> None:
        super().__init__(run_id, log, f"run {run_id!r} has ended ({state}), and takes nothing any more")
        self.state = state


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
