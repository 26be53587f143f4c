"""What a workflow does durably (`Step`), and what a step function may ask about itself (`current_step()`).

A `Step` runs inside the workflow's deterministic loop and only asks: its methods register an op with the execution and
wait for the journal to bring the result. Step functions run outside, on the worker.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Protocol, cast, overload

from pydantic import ValidationError
from typing_extensions import TypeVar, TypeVarTuple, Unpack

from .codec import ANY, codec_for, describe, result_codec
from .duration import Duration, duration_ms
from .errors import InputInvalid
from .execution import Call, Execution, SleepCall, Source, StepCall, WaitCall
from .loop import DeterministicTask
from .retry import Retry

logger = logging.getLogger("stepfold.run")

T = TypeVar("T")
Ext = TypeVar("Ext", default=Any)
Ts = TypeVarTuple("Ts")

_DEFAULT_RETRY = Retry()
_ONCE = Retry(1)


class RunLog(logging.LoggerAdapter[logging.Logger]):
    """A logger of `stepfold.run` with extra fields of its own."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


class Signal(NamedTuple, Generic[T]):
    """A signal that arrived: its data, of the type that `schema` names, and its name."""

    data: T
    name: str


class StepPorts:
    """What the worker lends to steps: how to reach other runs, and the driver's own additions."""

    __slots__ = ("ext", "send_signal")

    def __init__(
        self, ext: Callable[[Step[Any]], object], send_signal: Callable[[str, str, Any, str], Coroutine[Any, Any, None]]
    ) -> None:
        self.ext = ext
        self.send_signal = send_signal


class Step(Generic[Ext]):
    """The durable steps of one run.

    A step id is a name within the workflow. Used again later it is numbered (`charge`, `charge#2`); two at the same time
    need scopes. Every method may raise CancelledError when the run is cancelled.
    """

    __slots__ = ("_execution", "_ext", "_ports", "_scope")

    def __init__(self, execution: Execution, ports: StepPorts, scope: str = "") -> None:
        self._execution = execution
        self._ports = ports
        self._scope = scope
        self._ext: Any = None

    @property
    def ext(self) -> Ext:
        """What the driver adds: `Step[KafkaStep]` types it."""
        if self._ext is None:
            self._ext = self._ports.ext(self)
        return cast(Ext, self._ext)

    @overload
    def run(
        self,
        step_id: str,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def run(
        self,
        step_id: str,
        fn: Callable[[Unpack[Ts]], Awaitable[T]],
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def run(
        self,
        step_id: str,
        fn: Callable[[Unpack[Ts]], T],
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Coroutine[Any, Any, T]: ...

    def run(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """Run `fn(*args)` on the worker and remember its result; a plain function runs in a thread.

        `retry`: three attempts unless said (one with `at_most_once`). `timeout`: for each attempt. `at_most_once` records the
        attempt before it runs, so that one lost with its worker counts as failed instead of running again.

        Raises StepFailed after the last attempt. A result that JSON cannot hold by the function's return annotation fails
        the step. Raises ValueError for a bad id or duration and ConfigError for an annotation that pydantic cannot handle.
        """
        if retry is None:
            retry = _ONCE if at_most_once else _DEFAULT_RETRY
        call = StepCall(fn, args, retry, None if timeout is None else duration_ms(timeout), at_most_once, result_codec(fn))
        return self._ask(step_id, call, _source())

    def sleep(self, step_id: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """Sleep, durably. Raises ValueError for a bad id or duration."""
        return self._ask(step_id, SleepCall(duration_ms(duration), None), _source())

    def sleep_until(self, step_id: str, when: datetime) -> Coroutine[Any, Any, None]:
        """Sleep until an aware datetime. Raises ValueError for a naive one."""
        if when.tzinfo is None:
            raise ValueError(f"sleep_until({step_id!r}): {when.isoformat()} has no time zone; use an aware datetime")
        return self._ask(step_id, SleepCall(None, round(when.timestamp() * 1000)), _source())

    @overload
    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: None = None, schema: type[T]
    ) -> Coroutine[Any, Any, Signal[T]]: ...

    @overload
    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration, schema: type[T]
    ) -> Coroutine[Any, Any, Signal[T] | None]: ...

    @overload
    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: None = None, schema: None = None
    ) -> Coroutine[Any, Any, Signal[Any]]: ...

    @overload
    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration, schema: None = None
    ) -> Coroutine[Any, Any, Signal[Any] | None]: ...

    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration | None = None, schema: Any = None
    ) -> Coroutine[Any, Any, Signal[Any] | None]:
        """The oldest signal of this name that the run has been sent and nobody has taken; None after `timeout`.

        `schema`: a type that pydantic validates. Data that does not fit raises InputInvalid; the signal is taken.
        """
        codec = ANY if schema is None else codec_for(schema)

        def make(name: str, data: Any) -> Signal[Any]:
            try:
                return Signal(codec.decode(data), name)
            except ValidationError as error:
                raise InputInvalid(f"signal {name!r}: {describe(error)}", error.errors()) from error

        timeout_ms = None if timeout is None else duration_ms(timeout)
        return self._ask(step_id, WaitCall(_named(signal, "a signal"), timeout_ms, make), _source())

    def send_signal(self, step_id: str, *, signal: str, data: Any = None, run_id: str) -> Coroutine[Any, Any, None]:
        """Send a signal to another run, exactly once. Raises StepFailed (RunNotFound) when no open run has this id."""
        send = self._ports.send_signal

        async def deliver() -> None:
            await send(run_id, _named(signal, "a signal"), data, current_step().idempotency_key)

        return self._ask(step_id, StepCall(deliver, (), _DEFAULT_RETRY, None, False, ANY), _source())

    @asynccontextmanager
    async def scope(self, name: str) -> AsyncGenerator[Step[Ext]]:
        """Steps with ids below `name/`: `async with step.scope("payment") as step`."""
        yield Step(self._execution, self._ports, f"{self._scope}{_checked(name)}/")

    @contextmanager
    def shield(self) -> Generator[None]:
        """Cancellation of the run waits until the block ends: for compensation and clean-up."""
        task = asyncio.current_task()
        if not isinstance(task, DeterministicTask):
            raise RuntimeError("step.shield() is for workflow code; a step function is not interrupted by it")
        task.shielded += 1
        try:
            yield
        finally:
            task.shielded -= 1

    def _ask(self, step_id: str, call: Call, source: Source) -> Coroutine[Any, Any, Any]:
        running = current_step_var.get()
        if running is not None:
            raise RuntimeError(
                f"step {step_id!r} was called inside step {running.step_id!r}; steps do not nest: call it from the workflow"
            )
        return self._wait(f"{self._scope}{_checked(step_id)}", call, source)

    async def _wait(self, step_id: str, call: Call, source: Source) -> Any:
        op = self._execution.request(step_id, call, source)
        try:
            return await cast("asyncio.Future[Any]", op.future)
        except asyncio.CancelledError:
            self._execution.drop(op)
            raise


def _source() -> Source:
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # the documented way costs 50 times as much
    return frame.f_code, frame.f_lineno


@lru_cache(maxsize=4096)
def _checked(step_id: str) -> str:
    if (
        type(step_id) is not str
        or not 0 < len(step_id) <= 200
        or step_id[0] == "@"
        or "#" in step_id
        or not step_id.isprintable()
    ):
        raise ValueError(f'{step_id!r} is not a step id: 1 to 200 printable characters, without "#", not beginning with "@"')
    return step_id


def _named(name: str, what: str) -> str:
    if type(name) is not str or not 0 < len(name) <= 200 or not name.isprintable():
        raise ValueError(f"{name!r} is not the name of {what}: 1 to 200 printable characters")
    return name


class AttemptInfo(Protocol):
    """What a running attempt knows; the worker's object."""

    @property
    def run_id(self) -> str: ...
    @property
    def step_id(self) -> str: ...

    number: int
    heartbeat: Any

    def beat(self, details: Any) -> None: ...


class RunningStep:
    """The attempt that is running: what `current_step()` gives."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: AttemptInfo) -> None:
        self._attempt = attempt

    @property
    def run_id(self) -> str:
        """The run that the step belongs to."""
        return self._attempt.run_id

    @property
    def step_id(self) -> str:
        """The step's path through its scopes."""
        return self._attempt.step_id

    @property
    def attempt(self) -> int:
        """Counts from 1."""
        return self._attempt.number

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the step: give it to the services the step calls."""
        return f"{self._attempt.run_id}/{self._attempt.step_id}"

    @property
    def last_heartbeat(self) -> Any:
        """What the attempts before recorded last; None if nothing."""
        return self._attempt.heartbeat

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger `stepfold.run` with run, step and attempt as extra fields."""
        return RunLog(logger, {"run_id": self.run_id, "step_id": self.step_id, "attempt": self.attempt})

    def heartbeat(self, details: Any = None) -> None:
        """Record how far this attempt is (JSON); should it fail or be lost, the next one finds it in `last_heartbeat`.

        Cheap to call often: the latest details are recorded about once a second. Raises TypeError for what is not JSON.
        May be called from the step's thread.
        """
        self._attempt.beat(details)


current_step_var: ContextVar[RunningStep | None] = ContextVar("stepfold_current_step", default=None)


def current_step() -> RunningStep:
    """The running attempt, inside a step function. Raises RuntimeError elsewhere."""
    found = current_step_var.get()
    if found is None:
        raise RuntimeError("current_step() was called outside a step function")
    return found
