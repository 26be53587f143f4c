"""The method of `Step` that waits for a condition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, overload

from ..errors import ValueInvalid
from ..operations.call import Call
from ..operations.condition import CheckCodec, ConditionCall, Done
from ..replay.frames import Source, source_of_caller
from ..values.annotations import annotations_of, by_function, name_of, return_annotation, said, unwrapped
from ..values.backoff import Backoff
from ..values.codec import Codec
from ..values.duration import Duration, duration_ms
from ..values.options import whole
from ..values.pace import pace_of
from ..values.retry import Retry

State = TypeVar("State")
T = TypeVar("T")

_DEFAULT_RETRY = Retry()


class Conditions:
    """Waits for conditions, for a `Step`."""

    __slots__ = ()

    def _path(self, step_id: str) -> str:
        raise NotImplementedError

    def _check_run(self, step_id: str, fn: Any, retry: Any, timeout: Any, method: str = "run") -> None:
        raise NotImplementedError

    async def _wait(self, step_id: str, call: Call, source: Source) -> Any:
        raise NotImplementedError

    @overload
    def wait_for_condition(
        self,
        step_id: str,
        check: Callable[[State], Coroutine[Any, Any, State | Done[T]]],
        *,
        initial: State,
        every: Duration | Backoff,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def wait_for_condition(
        self,
        step_id: str,
        check: Callable[[State], State | Done[T]],
        *,
        initial: State,
        every: Duration | Backoff,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, T]: ...

    def wait_for_condition(
        self,
        step_id: str,
        check: Callable[[Any], Any],
        *,
        initial: Any,
        every: Duration | Backoff,
        timeout: Duration | None = None,
        max_attempts: int | None = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run `check(state)` on the worker again and again until it returns `Done(value)`, and return the value.

        Any other result is the state for the next check, first `initial`; the log holds it. The check runs as a step does: sync
        or async, with `current_step()`, retries (`retry`, three attempts by default), and an idempotency key for each poll.
        `every`: the pause between two checks, or how it grows. `timeout`: how long the condition may take; a check that runs
        then is cut off. `max_attempts`: how many polls it may take. Without either it waits for ever.

        The state has the type of the check's parameter (without an annotation that of its result), the value of `Done[T]` the
        type T. Raises ConditionTimedOut, and StepFailed when a check has failed for good; ValueError for a bad id, duration or
        number, ValueInvalid for an `initial` that would not come back as it was, and otherwise as `run` does.
        """
        self._check_run(step_id, check, retry, timeout, "wait_for_condition")
        if max_attempts is not None:
            whole(max_attempts, "max_attempts", 1)
        backoff = every if isinstance(every, Backoff) else Backoff(every, 1, every)
        codec = _check_codec(check)
        try:
            first = codec.state.encode(initial)
        except ValueInvalid as error:
            raise ValueInvalid(f"condition {step_id!r}: its initial state cannot be recorded as JSON: {error}") from error
        limits = None if timeout is None else duration_ms(timeout), max_attempts
        call = ConditionCall(check, first, backoff, limits, retry or _DEFAULT_RETRY, codec, pace_of(check))
        return self._wait(self._path(step_id), call, source_of_caller())


@by_function
def _check_codec(check: Callable[..., Any]) -> CheckCodec:
    """The codecs of a check's state and value. Raises ConfigError for annotations that pydantic cannot handle."""
    returned = return_annotation(unwrapped(check))
    parts: tuple[Any, ...] = get_args(returned) if get_origin(returned) in (Union, UnionType) else (returned,)
    values = [part for part in parts if part is Done or get_origin(part) is Done]
    taken = _parameter(unwrapped(check))
    states = [part for part in parts if part not in values] if taken is None else [taken[0]]
    value = _either([(get_args(part) or (Any,))[0] for part in values])
    name = name_of(check)
    return CheckCodec(Codec(_either(states), said(check), name), Codec(value, said(check), name))


def _parameter(check: Callable[..., Any]) -> tuple[Any] | None:
    """The annotation of the first parameter; None without one."""
    try:
        names = list(inspect.signature(check).parameters)
    except (TypeError, ValueError):  # some functions in C have none
        return None
    if not inspect.isroutine(check):  # a partial or an object with __call__ annotates its fields
        check = getattr(check, "func", getattr(check, "__call__", check))  # noqa: B004  # the method itself is wanted
    annotations = annotations_of(check, *names[:1])
    return (annotations[names[0]],) if annotations else None


def _either(annotations: list[Any]) -> Any:
    return Union[tuple(annotations)] if annotations else Any  # noqa: UP007  # of a list
