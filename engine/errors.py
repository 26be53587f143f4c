"""Every error that stepfold raises on purpose.

StepfoldError
├── ConfigError             a URL, option, registration or environment that cannot work
├── LogUnavailable          the log did not answer, or refused; it may or may not hold what was in flight
├── PayloadTooLarge         a payload above the log's limit
├── InputInvalid            input that the workflow's model rejects (.errors)
├── ValueInvalid            a value that the log would not give back as it was, or that does not fit its type today
├── RunNotFound             no run has this id (.run_id, .log, .kept)
│   └── RunEnded            the run has ended, and accepts no request (.state)
├── RunAlreadyExists        the id is taken: by another input, or with if_exists="reject"
├── WorkflowFailed          the awaited run failed (.error)
├── WorkflowCancelled       the awaited run was cancelled (.reason)
├── CallbackFailed          somebody outside said that a callback has failed (.step_id, .type, .message)
├── CallbackTimedOut        nobody answered a callback in time, or its heartbeats stopped (.step_id, .kind)
├── CallbackIdInvalid       a text that is not the id of a callback
├── ChildFailed             a child run failed, or its id was taken (.run_id, .error)
├── ChildCancelled          a child run was cancelled (.run_id, .reason)
├── ChildTimedOut           a child run did not end in time (.run_id)
├── WorkflowUnknown         the code of a run's workflow is not registered here (.workflow, .version)
├── QueryUnknown            the workflow of a run has no query of this name (.query)
├── QueryFailed             a query raised an error, or did more than to read (.query, .error)
├── ProjectionFailed        a projection could not apply an event (.projection, .partition, .offset)
├── NonDeterminism          the code asked for other operations than the history holds (.expected, .found)
└── StepError               the errors of steps
    ├── StepFailed          a step still failed in its last attempt (.step_id, .attempts, .error)
    ├── StepInterrupted     the worker died while an at_most_once attempt ran
    ├── NonRetryable        raised by a step function: do not try again
    └── RetryAfter          raised by a step function: try again then
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, cast

from .values.duration import Duration, duration_ms
from .values.names import quoted


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as the log keeps it.

    `type` is the class's name for builtins and `module.Class` otherwise; `step_id` names the step that raised it, if any.
    """

    type: str
    message: str
    traceback: str = ""
    step_id: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    def to_json(self) -> dict[str, Any]:
        """The JSON object that events hold."""
        found: dict[str, Any] = {"type": self.type, "message": self.message}
        if self.traceback:
            found["traceback"] = self.traceback
        if self.step_id is not None:
            found["step_id"] = self.step_id
        return found

    @classmethod
    def from_json(cls, data: Any) -> ErrorInfo:
        """Reads what a record holds. Total: any JSON value becomes an ErrorInfo."""
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
        """Describe `error`. Total, even if methods of the error raise.

        For a StepFailed this is the root error of its step, for a group with one member that member; for a group of several it
        names each member with its step.
        """
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
        """Describe an error whose methods do not return: this calls none of them."""
        return cls(_type_name(type(error)), "its message cannot be shown: the error's own methods did not return", "", step_id)


MESSAGE_CHARS = 4000
TRACEBACK_CHARS = 8000
MEMBERS_SHOWN = 10


def roots(error: BaseException) -> list[BaseException]:
    """The errors in a group and in its nested groups, in order; for any other error, the error itself."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), BaseExceptionGroup):
            # The built-in attribute, even if the user's class overrides it.
            waiting.extend(reversed(vars(BaseExceptionGroup)["exceptions"].__get__(one)))
        else:
            found.append(one)
    return found


def _described(error: BaseException, step_id: str | None) -> ErrorInfo:
    if issubclass(type(error), StepFailed):  # not isinstance, which reads the error's __class__
        info = _held(error)
        if info is not None:
            return info
    return ErrorInfo(_type_name(type(error)), message_of(error), _traceback(error), step_id)


def _held(failed: BaseException) -> ErrorInfo | None:
    """The root error of a StepFailed; None if a user's code has put something else there.

    A user's code may also have made the ErrorInfo, so this cuts and escapes its texts like those of any other error.
    """
    try:
        info: Any = cast(StepFailed, failed).error
        plain = type(info) is ErrorInfo and all(type(part) is str for part in (info.type, info.message, info.traceback))
        if not plain or type(info.step_id) not in (str, type(None)):
            return None
        kind, message = (writable(text)[:MESSAGE_CHARS] for text in (info.type, info.message))
        step_id = None if info.step_id is None else writable(info.step_id)[:MESSAGE_CHARS]
        return ErrorInfo(kind, message, writable(info.traceback)[-TRACEBACK_CHARS:], step_id)
    except BaseException:  # noqa: BLE001  # the error may be of a user's class
        return None


def _type_name(kind: type[BaseException]) -> str:
    # The built-in attributes, even if a metaclass overrides them.
    name: str = vars(type)["__qualname__"].__get__(kind)
    module: Any = vars(type)["__module__"].__get__(kind)
    own = module == __name__ if type(module) is str else True
    return writable(name if own or module == "builtins" else f"{module}.{name}")[:MESSAGE_CHARS]


def message_of(error: BaseException) -> str:
    """The message of an error. Total."""
    try:
        return writable(str(error))[:MESSAGE_CHARS]
    except BaseException:  # noqa: BLE001  # the user's __str__ may raise anything; the error itself matters more
        return "its message cannot be shown"


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error, limit=-8))
    except BaseException:  # noqa: BLE001  # formatting may raise anything; the error itself matters more
        text = _bare_traceback(error)
    return writable(text)[-TRACEBACK_CHARS:]


def _bare_traceback(error: BaseException) -> str:
    """The lines of a traceback, without the parts of `format_exception` that may raise."""
    try:
        lines = traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error), limit=-8)
    except BaseException:  # noqa: BLE001  # as above; reading source files may fail in any way
        lines = []
    return "".join(("Traceback (most recent call last):\n", *lines, f"{_type_name(type(error))}: {message_of(error)}\n"))


def disagreement(error: NonDeterminism) -> dict[str, Any]:
    """The error as `quarantined` records it. Total: the user's code may raise a NonDeterminism of its own making."""
    try:
        source = [writable(line)[:MESSAGE_CHARS] for line in error.source[:MEMBERS_SHOWN]]
        expected, found = (writable(text)[:MESSAGE_CHARS] for text in (error.expected, error.found))
        held: dict[str, Any] = {"expected": expected, "found": found, "source": source}
    except BaseException:  # noqa: BLE001  # the user may have made the error and its attributes
        held = {"expected": "", "found": "", "source": []}
    return {"type": "NonDeterminism", "message": message_of(error), **held}


def writable(text: str) -> str:
    """The text as a plain str, whatever a subclass of str overrides. Escapes lone surrogates: file names may hold them, the log
    may not."""
    return str.encode(text, "utf-8", "backslashreplace").decode()


class StepfoldError(Exception):
    """The root of the tree."""


class ConfigError(StepfoldError):
    """A URL, option, registration or environment that cannot work; the message says what to change."""


class LogUnavailable(StepfoldError):
    """The log did not answer in time, or refused. It may or may not hold what was in flight."""


class PayloadTooLarge(StepfoldError):
    """A payload above the log's limit."""


class InputInvalid(StepfoldError):
    """Input that the workflow's model rejects. `errors` is pydantic's list."""

    def __init__(self, message: str, errors: list[Any]) -> None:
        super().__init__(message)
        self.errors = errors


class ValueInvalid(StepfoldError, TypeError):
    """A value that the log would not give back as it was, so stepfold does not write it; or a value that does not fit its type
    today.

    The message names the path in the value and says what to do. A step that returns such a value is not retried.
    """


class RunNotFound(StepfoldError):
    """No run has this id. `log`: the log's name, which the message leaves out. `kept`: how many signals wait for its start."""

    def __init__(self, run_id: str, log: str, message: str | None = None, *, kept: int = 0) -> None:
        if message is None:
            yet = (
                f"; signals for it have arrived ({kept}), which the log keeps for a while until the run is started"
                if kept
                else ""
            )
            message = f"this log has no run {run_id!r}{yet}"
        super().__init__(message)
        self.run_id = run_id
        self.log = log
        self.kept = kept


class RunEnded(RunNotFound):
    """The run has ended, and accepts no signal and no cancellation. `state`: how it ended."""

    def __init__(self, run_id: str, log: str, state: str) -> None:
        super().__init__(run_id, log, f"run {run_id!r} has ended ({state}), and accepts no more requests")
        self.state = state


class RunAlreadyExists(StepfoldError):
    """The run id is taken: by a run with another input, or by any run if the caller gave if_exists="reject"."""


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


class CallbackFailed(StepfoldError):
    """Somebody outside said that a callback has failed. `type` and `message` are as they gave them."""

    def __init__(self, step_id: str, type: str, message: str) -> None:
        super().__init__(f"callback {step_id!r} has failed: {ErrorInfo(type, message)}")
        self.step_id = step_id
        self.type = type
        self.message = message


class CallbackTimedOut(StepfoldError, TimeoutError):
    """Nobody answered a callback before its time-out (`kind` "timeout"), or its heartbeats stopped ("heartbeat")."""

    def __init__(self, step_id: str, kind: str) -> None:
        why = "nobody sent a heartbeat in time" if kind == "heartbeat" else "nobody answered in time"
        super().__init__(f"callback {step_id!r} has timed out: {why}")
        self.step_id = step_id
        self.kind = kind


class CallbackIdInvalid(StepfoldError):
    """A text that is not the id of a callback. Pass the `id` of a callback on unchanged."""

    def __init__(self, found: object) -> None:
        super().__init__(f"{quoted(found)} is not the id of a callback: pass on what `callback.id` gave, unchanged")


class ConditionTimedOut(StepfoldError, TimeoutError):
    """A condition did not hold in its time (`kind` "timeout"), or in its last poll ("attempts").

    `polls`: how many checks returned a state; `state`: the last one.
    """

    def __init__(self, step_id: str, kind: str, polls: int, state: Any) -> None:
        why = f"after {polls} poll{'' if polls == 1 else 's'}" + ("" if kind == "attempts" else ", and its time is up")
        if state is True:
            why += "; its last check returned True, which is a state: a check whose condition holds returns Done(value)"
        super().__init__(f"condition {step_id!r} does not hold {why}")
        self.step_id = step_id
        self.kind = kind
        self.polls = polls
        self.state = state


class ChildFailed(StepfoldError):
    """A child run has failed; `error` says with what. RunAlreadyExists: another start has the run id, so no child began."""

    def __init__(self, run_id: str, error: ErrorInfo) -> None:
        super().__init__(f"child run {run_id!r} failed: {error}")
        self.run_id = run_id
        self.error = error


class ChildCancelled(StepfoldError):
    """A child run was cancelled, and not because its parent was."""

    def __init__(self, run_id: str, reason: str | None) -> None:
        super().__init__(f"child run {run_id!r} was cancelled{f': {reason}' if reason else ''}")
        self.run_id = run_id
        self.reason = reason


class ChildTimedOut(StepfoldError, TimeoutError):
    """A child run did not end before its time-out; it is cancelled, unless it was invoked with `on_parent_close="abandon"`."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"child run {run_id!r} did not end in time")
        self.run_id = run_id


class NonDeterminism(StepfoldError):
    """The code asked for other operations than its history holds; the run is quarantined until the code is fixed.

    `expected`: what the history holds; `found`: what the code did instead; `source`: the lines (`file:line`) where it did so.
    """

    def __init__(self, message: str, *, expected: str = "", found: str = "", source: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found
        self.source = source


class WorkflowUnknown(StepfoldError):
    """The code of a run's workflow is not registered with this client. `version`: that of the run; None before it has begun."""

    def __init__(self, message: str, *, workflow: str, version: str | None) -> None:
        super().__init__(message)
        self.workflow = workflow
        self.version = version


class QueryUnknown(StepfoldError):
    """The workflow of a run has no query of this name; the message names those that it has."""

    def __init__(self, message: str, *, query: str) -> None:
        super().__init__(message)
        self.query = query


class QueryFailed(StepfoldError):
    """A query raised an error, waited, asked for an operation, or did not return. `error` says which; `at`: the line of its code.

    The run is as it was.
    """

    def __init__(self, run_id: str, query: str, error: ErrorInfo, at: str | None = None) -> None:
        super().__init__(f"query {query!r} of run {run_id!r} failed: {error}{f' (at {at})' if at else ''}")
        self.run_id = run_id
        self.query = query
        self.error = error


class ProjectionFailed(StepfoldError):
    """A projection could not apply an event and has stopped; its transaction was rolled back. `offset`: the event's."""

    def __init__(self, message: str, *, projection: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.projection = projection
        self.partition = partition
        self.offset = offset


class StepError(StepfoldError):
    """The errors of steps: raised by step functions, or raised in workflows by `step.run`."""


class StepFailed(StepError):
    """A step still failed in its last attempt. A replay raises it again without running the step."""

    def __init__(self, step_id: str, attempts: int, error: ErrorInfo) -> None:
        super().__init__(f"step {step_id!r} failed after {attempts} attempt{'s' * (attempts != 1)}: {error}")
        self.step_id = step_id
        self.attempts = attempts
        self.error = error


class BatchFailed(StepError):
    """Not every branch of a batch completed, and its results were asked for. The cause is the first failure, if there is one."""


class StepInterrupted(StepError):
    """The worker died while an `at_most_once` attempt ran; whether its effect happened is unknown."""


class NonRetryable(StepError):
    """Raise it in a step function to fail the step at once, without further attempts."""


class RetryAfter(StepError):
    """Raise it in a step function to say when to try again: `RetryAfter("90s")`. Raises ValueError for a bad duration."""

    def __init__(self, delay: Duration, message: str = "") -> None:
        duration_ms(delay)
        super().__init__(message or f"try again after {delay}")
        self.delay = delay
