"""The durable operations of a workflow (`Step`), and the running attempt as a step function sees it (`current_step()`).

The methods of a `Step` run inside the workflow's deterministic loop. They only request an operation from the execution and
wait until the journal brings its result. Step functions run outside that loop, on the worker.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple, Protocol, Self, cast, overload

from pydantic import ValidationError
from typing_extensions import TypeVar, TypeVarTuple, Unpack

from ..errors import InputInvalid
from ..operations.call import Call, MadeAnew
from ..operations.callback import CallbackCall
from ..operations.signal import WaitCall
from ..operations.sleep import SleepCall
from ..operations.step import StepCall
from ..replay.execution import Execution
from ..replay.frames import Source, source_of_caller
from ..replay.futures import DeterministicTask
from ..values.annotations import by_function
from ..values.codec import ANY, Codec, codec_for, describe, own, result_codec, written
from ..values.duration import Duration, duration_ms
from ..values.names import no_run_id, quoted, valid_name, valid_run_id
from ..values.options import flag
from ..values.pace import Pace, pace_of
from ..values.retry import Retry
from ..values.same import shown
from ..values.taken import FIXED, Copies, by_value
from ..values.times import ms_of
from .branches import Branches
from .callback import Callback
from .children import Children
from .condition import Conditions
from .publishing import publication

logger = logging.getLogger("stepfold.run")

T = TypeVar("T")
Ext = TypeVar("Ext", default=Any)
Ts = TypeVarTuple("Ts")

MAX_PATH_CHARS = 1000
"""The limit for a step id with its scopes."""
_DEFAULT_RETRY = Retry()
_ONCE = Retry(1)


class RunLog(logging.LoggerAdapter[logging.Logger]):
    """A logger of `stepfold.run` with extra fields of its own."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Signal(NamedTuple, Generic[T]):
    """A signal that arrived: its data, of the type that `schema` names, and its name."""

    data: T
    name: str


class StepPorts:
    """The services of the worker for steps: a way to signal other runs, and the driver's additions (`ext`)."""

    __slots__ = ("ext", "send_signal")

    def __init__(
        self, ext: Callable[[Step[Any]], object], send_signal: Callable[[str, str, bytes, str], Coroutine[Any, Any, object]]
    ) -> None:
        self.ext = ext
        self.send_signal = send_signal


class Step(Branches, Children, Conditions, Generic[Ext]):
    """The durable operations of one run.

    A step id is a name within the workflow. A later operation may use the id again; stepfold then numbers it (`charge`,
    `charge#2`). Two operations with one id at the same time need scopes. An id has up to 200 characters, and up to 1,000 with
    the names of its scopes. Every method may raise CancelledError when the run is cancelled.
    """

    __slots__ = ("_execution", "_ext", "_ports", "_scope")

    def __init__(self, execution: Execution, ports: StepPorts, scope: str = "") -> None:
        self._execution = execution
        self._ports = ports
        self._scope = scope
        self._ext: Any = None

    @property
    def ext(self) -> Ext:
        """The driver's addition; `Step[KafkaStep]` gives its type."""
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
        record_input: bool = False,
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
        record_input: bool = False,
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
        record_input: bool = False,
    ) -> Coroutine[Any, Any, T]: ...

    def run(
        self,
        step_id: str,
        fn: Callable[..., Any],
        *args: Any,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
        record_input: bool = False,
        **unexpected: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Run `fn(*args)` on the worker and record its result; a plain function runs in a thread.

        Takes the arguments by value, at the call: each attempt gets its own copy of data (lists, dicts, dataclasses, models,
        buffers, and everything in them), so it sees no change that the workflow or another attempt makes. Other objects
        (clients, locks, functions, objects of plain classes) are passed as they are, and so is everything that `fn` itself
        refers to: the variables of a closure, the object of a bound method. The arguments in a `functools.partial` are copied,
        too.

        `retry`: three attempts by default (one with `at_most_once`). `timeout`: for each attempt. `at_most_once` records the
        attempt before it runs: if its worker dies, the attempt counts as failed and does not run again. `record_input`
        records each attempt before it runs, with up to 4 KiB of its arguments as JSON, for people.

        Raises StepFailed after the last attempt. A result that the return annotation of `fn` would not read back as it was
        fails the step at once (ValueInvalid). Raises ValueError for a bad id or duration, TypeError if `fn` is not a function,
        an argument can be iterated only once or an option is of another type, and ConfigError for an annotation that pydantic
        cannot handle.
        """
        if unexpected or not callable(fn):
            raise _misused(step_id, fn, unexpected)
        if at_most_once is not False:
            flag(at_most_once, "at_most_once")
        if record_input is not False:
            flag(record_input, "record_input")
        if retry is None:
            retry = _ONCE if at_most_once else _DEFAULT_RETRY
        elif not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise _no_retry(step_id, retry)
        codec, pace = _callee(fn)
        copies = None if FIXED.issuperset(map(type, args)) and type(fn) is not partial else self._copies(step_id, fn, args)
        timeout_ms = None if timeout is None else duration_ms(timeout)
        call = StepCall(fn, args, retry, timeout_ms, at_most_once, codec, copies, record_input, pace)
        return self._wait(self._path(step_id), call, source_of_caller())

    def _copies(self, step_id: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Copies | None:
        """A maker of arguments for each attempt; None if nothing needs a copy, as on a replay that has the result."""
        if self._execution.is_known(f"{self._scope}{step_id}"):
            return None
        try:
            return by_value(fn, args)
        except TypeError as error:
            raise TypeError(f"step {step_id!r}: {error}") from None
        except RecursionError:
            raise ValueError(f"step {step_id!r}: its arguments are nested too deep to be copied") from None

    def sleep(self, step_id: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """Sleep, durably, for up to 1000 years. Raises ValueError for a bad id or duration."""
        return self._ask(step_id, SleepCall(duration_ms(duration), None), source_of_caller())

    def sleep_until(self, step_id: str, when: datetime) -> Coroutine[Any, Any, None]:
        """Sleep until an aware datetime, by the log's time; from the last day of the year 9999 on (`datetime.max`), for ever.

        Raises ValueError for a datetime without a time zone.
        """
        return self._ask(step_id, SleepCall(None, ms_of(when)), source_of_caller())

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
        """The oldest signal of this name that no wait of the run has taken yet; None after `timeout`.

        `schema`: a type that pydantic validates. Raises InputInvalid for data that do not fit; the signal is then used up. If
        the schema itself makes a value that differs at each replay (`default_factory=uuid4`), the run is quarantined.
        """
        codec = ANY if schema is None else codec_for(schema)

        def make(name: str, data: Any) -> Signal[Any]:
            return Signal(_made(codec, f"signal {name!r}", data), name)

        timeout_ms = None if timeout is None else duration_ms(timeout)
        return self._ask(step_id, WaitCall(_named(signal, "a signal"), timeout_ms, make), source_of_caller())

    @overload
    def callback(
        self, step_id: str, *, timeout: Duration | None = None, heartbeat: Duration | None = None, schema: type[T]
    ) -> Coroutine[Any, Any, Callback[T]]: ...

    @overload
    def callback(
        self, step_id: str, *, timeout: Duration | None = None, heartbeat: Duration | None = None, schema: None = None
    ) -> Coroutine[Any, Any, Callback[Any]]: ...

    def callback(
        self, step_id: str, *, timeout: Duration | None = None, heartbeat: Duration | None = None, schema: Any = None
    ) -> Coroutine[Any, Any, Callback[Any]]:
        """A callback: an `id` to hand out, by which somebody outside gives the data that `await callback` returns.

        The callback is durable when this returns, so the id may be handed out; a later answer finds the run wherever it runs.
        `timeout`: how long to wait for the answer, from now on; `heartbeat`: the longest time without a heartbeat. After either,
        `await callback` raises CallbackTimedOut. `schema`: a type that pydantic validates, as for `wait_for_signal`.
        Raises ValueError for a bad id or duration.
        """
        return self._open(self._path(step_id), self._callback_call(timeout, heartbeat, schema), source_of_caller())

    @overload
    def wait_for_callback(
        self,
        step_id: str,
        submit: Callable[[str], object],
        *,
        timeout: Duration | None = None,
        heartbeat: Duration | None = None,
        schema: type[T],
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def wait_for_callback(
        self,
        step_id: str,
        submit: Callable[[str], object],
        *,
        timeout: Duration | None = None,
        heartbeat: Duration | None = None,
        schema: None = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for_callback(
        self,
        step_id: str,
        submit: Callable[[str], object],
        *,
        timeout: Duration | None = None,
        heartbeat: Duration | None = None,
        schema: Any = None,
        retry: Retry | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Make a callback, run `submit(callback id)` as a step, and return the data of the answer.

        The step's id is `step_id/submit`; it runs when the callback is durable, and a retried one gets the same id. Its result is
        not used. The other arguments, and all errors, are those of `callback` and `run`. If the step fails, or the code stops
        waiting, the callback is over.
        """
        _check_function(step_id, submit, retry, "wait_for_callback")
        call = self._callback_call(timeout, heartbeat, schema)
        return self._submit(self._path(step_id), call, submit, retry or _DEFAULT_RETRY, source_of_caller())

    def _callback_call(self, timeout: Duration | None, heartbeat: Duration | None, schema: Any) -> CallbackCall:
        codec = ANY if schema is None else codec_for(schema)
        timeout_ms = None if timeout is None else duration_ms(timeout)
        heartbeat_ms = None if heartbeat is None else duration_ms(heartbeat)

        def make(step_id: str, data: Any) -> Any:
            return _made(codec, f"callback {step_id!r}", data)

        return CallbackCall(self._execution.run.id, timeout_ms, heartbeat_ms, make)

    def send_signal(self, step_id: str, *, signal: str, data: Any = None, run_id: str) -> Coroutine[Any, Any, None]:
        """Send a signal to another run, exactly once. The data are written now, a model or dataclass by its own class.

        Raises StepFailed (RunNotFound) if no open run has this id, ValueError for a bad name, run id or step id, and InputInvalid
        for data that JSON cannot hold as they are. A replay of a step whose result is in the log checks nothing but the step id.
        """
        send = self._ports.send_signal
        json = b"null"
        if not self._execution.is_known(f"{self._scope}{step_id}"):
            _named(signal, "a signal")
            if not valid_run_id(run_id):
                raise ValueError(no_run_id(run_id))
            json = written(data, f"the data of signal {signal!r}")

        async def deliver() -> None:
            await send(run_id, signal, json, current_step().idempotency_key)

        return self._ask(step_id, StepCall(deliver, (), _DEFAULT_RETRY, None, False, ANY), source_of_caller())

    def publish(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Publish a value under a key: `run.published(key)` reads the last one, whoever asks, and `run.watch()` all as they come.

        Does not wait for the log: the values go there in the order of the calls. The value is taken now, plain JSON or a model or
        dataclass. A scope does not change the key. Raises ValueError for a bad key and above 100 keys, ValueInvalid for a value
        that would not come back as it was, PayloadTooLarge above 100 kB, and RuntimeError in a step function.
        """
        running = current_attempt.get()
        return self._execution.tell(publication(key, value, None if running is None else running.step_id))

    @asynccontextmanager
    async def scope(self, name: str) -> AsyncGenerator[Step[Ext]]:
        """A `Step` whose ids begin with `name/`: `async with step.scope("payment") as step`.

        Raises ValueError for a bad name, and if the name and the scopes around it have more than 1,000 characters together.
        """
        yield self._scoped(name)

    def _scoped(self, *names: str) -> Self:
        path = self._scope
        for name in names:
            if type(name) is not str:
                raise _no_id(name)
            path = f"{path}{_valid(name)}/"
        if len(path) > MAX_PATH_CHARS:
            raise _too_long(path)
        return type(self)(self._execution, self._ports, path)

    def _check_run(self, step_id: str, fn: Any, retry: Any, timeout: Any, method: str = "run") -> None:
        """Raise for arguments that `run` would not take; `method` is the one that the code has called."""
        self._path(step_id)
        _check_function(step_id, fn, retry, method)
        if timeout is not None:
            duration_ms(timeout)

    @contextmanager
    def shield(self) -> Generator[None]:
        """Delay a cancellation of the run until the block ends, for compensation and clean-up."""
        task = asyncio.current_task()
        if not isinstance(task, DeterministicTask):
            raise RuntimeError("step.shield() is for workflow code; it has no effect in a step function")
        task.shielded += 1
        try:
            yield
        finally:
            task.left_shield()

    async def _open(self, path: str, call: CallbackCall, source: Source) -> Callback[Any]:
        return Callback(*await self._wait(path, call, source))

    async def _submit(self, path: str, call: CallbackCall, submit: Callable[[str], object], retry: Retry, source: Source) -> Any:
        callback_id, op = await self._wait(path, call, source)
        callback: Callback[Any] = Callback(callback_id, op)
        try:
            inner = Step[Any](self._execution, self._ports, f"{path}/")
            args = (callback_id,)
            copies = inner._copies("submit", submit, args) if type(submit) is partial else None
            codec, pace = _callee(submit)
            step = StepCall(submit, args, retry, None, False, codec, copies, pace=pace)
            await inner._ask("submit", step, source)
            return await callback
        except BaseException:
            self._execution.drop(op)
            raise

    def _ask(self, step_id: str, call: Call, source: Source) -> Coroutine[Any, Any, Any]:
        return self._wait(self._path(step_id), call, source)

    def _path(self, step_id: str) -> str:
        """The id with its scopes. Raises ValueError for a bad one, and RuntimeError inside a step."""
        running = current_attempt.get()
        if running is not None:
            raise RuntimeError(
                f"step {step_id!r} was called inside step {running.step_id!r}; steps do not nest: call it from the workflow"
            )
        if type(step_id) is not str:
            raise _no_id(step_id)
        path = f"{self._scope}{_valid(step_id)}"
        if len(path) > MAX_PATH_CHARS:
            raise _too_long(path)
        return path

    async def _wait(self, step_id: str, call: Call, source: Source) -> Any:
        op = self._execution.request(step_id, call, source)
        try:
            assert op.future is not None
            return await op.future
        except asyncio.CancelledError:
            self._execution.drop(op)
            raise


@by_function
def _callee(fn: Callable[..., Any]) -> tuple[Codec, Pace]:
    """All that is known of a step function, in one look-up."""
    return result_codec(fn), pace_of(fn)


def _check_function(step_id: str, fn: object, retry: object, method: str) -> None:
    if not callable(fn):
        raise _misused(step_id, fn, {}, method)
    if not isinstance(retry, Retry | None):
        raise _no_retry(step_id, retry, method)


def _no_retry(step_id: object, retry: object, method: str = "run") -> TypeError:
    write = f"Retry({retry})" if type(retry) is int else "Retry()" if retry is Retry else "Retry(5)"
    return TypeError(f"step.{method}({shown(step_id)}, retry={shown(retry)}): write retry={write}")


def _made(codec: Codec, of: str, data: Any) -> Any:
    """The value that the code gets for recorded data `of` a signal or a callback, in words.

    Raises InputInvalid for data that do not fit, and MadeAnew if a replay would make another value of them.
    """
    try:
        made = codec.decode(data)
    except ValidationError as error:
        raise InputInvalid(f"{of}: {describe(error)}", error.errors()) from error
    try:
        place = codec.differs_anew(data, made)
    except Exception:  # noqa: BLE001  # the user's types may raise anything; values that cannot be compared count as the same
        return made
    if place is not None:
        raise MadeAnew(
            f"the data of {of} do not fix `{place}`: the schema makes it itself, another one at each replay. Let "
            "the sender give it, or take it out of the schema and make it in the workflow: in a step, or by ctx.uuid4()"
        )
    return made


def _misused(step_id: str, fn: object, unexpected: dict[str, Any], method: str = "run") -> TypeError:
    call = f"step.{method}({step_id!r}"
    if unexpected:
        names = ", ".join(f"{name}=…" for name in unexpected)
        return TypeError(
            f"{call}) has no option {names}: it passes the arguments after the function on by position. To pass "
            f"named arguments write {call}, functools.partial({getattr(fn, '__name__', 'fn')}, {names}))"
        )
    if inspect.iscoroutine(fn):
        fn.close()
        name = fn.__name__
        return TypeError(f"{call}) was given {name}(…), a call: pass the function, {call}, {name}, …)")
    return TypeError(
        f"{call}) was given {shown(fn)} ({type(fn).__name__}), which is not a function. If a call returned it, "
        f"pass the function, not its call: {call}, f, …)"
    )


def _no_id(step_id: object) -> ValueError:
    """The error for an id of another type, such as a str enum or an object without a hash."""
    return ValueError(f"{shown(step_id)} ({type(step_id).__name__}) is not a step id: give a plain str")


def _too_long(path: str) -> ValueError:
    return ValueError(
        f"a step id has at most {MAX_PATH_CHARS:,} characters, the names of its scopes included: nest fewer scopes, or give them "
        f"shorter names than in {quoted(path)}"
    )


@lru_cache(maxsize=4096)
def _valid(step_id: str) -> str:
    if not valid_name(step_id) or step_id[0] == "@" or "#" in step_id:
        raise ValueError(
            f'{quoted(step_id)} is not a step id: 1 to 200 printable characters, without "#", not beginning with "@"'
        )
    return step_id


def _named(name: str, what: str) -> str:
    if not valid_name(name):
        raise ValueError(f"{quoted(name)} is not the name of {what}: 1 to 200 printable characters")
    return name


class AttemptInfo(Protocol):
    """The worker's object for a running attempt, as far as `RunningStep` uses it."""

    @property
    def run_id(self) -> str: ...
    @property
    def step_id(self) -> str: ...
    @property
    def key(self) -> str: ...

    number: int
    heartbeat: Any

    def beat(self, details: Any) -> None: ...


class RunningStep:
    """The running attempt, which `current_step()` returns."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: AttemptInfo) -> None:
        self._attempt = attempt

    @property
    def run_id(self) -> str:
        """The run that the step belongs to."""
        return self._attempt.run_id

    @property
    def step_id(self) -> str:
        """The id of the step, with its scopes as a path."""
        return self._attempt.step_id

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._attempt.number

    @property
    def idempotency_key(self) -> str:
        """A text that is the same for every attempt of the step and different for each run, even if a later run has the same
        id. Pass it to the services that the step calls. `<run id>.<8 hex digits>/<step id>`.
        """
        return self._attempt.key

    @property
    def last_heartbeat(self) -> Any:
        """The details that earlier attempts recorded last; None if there are none."""
        return own(self._attempt.heartbeat)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The logger `stepfold.run` with run, step and attempt as extra fields."""
        return RunLog(logger, {"run_id": self.run_id, "step_id": self.step_id, "attempt": self.attempt})

    def heartbeat(self, details: Any = None) -> None:
        """Record the progress of this attempt (JSON). If the attempt fails or is lost, the next one reads it in `last_heartbeat`.

        The details are copied now. Frequent calls are cheap: the worker records the latest details about once a second. May be
        called from the step's thread. Raises ValueInvalid for details that JSON cannot hold as they are, PayloadTooLarge above
        100 kB, and RuntimeError once the attempt has ended: a thread or task that it left behind, such as one that went on after
        its `timeout`, learns from this error that nobody waits for it.
        """
        self._attempt.beat(details)


current_attempt: ContextVar[AttemptInfo | None] = ContextVar("stepfold_current_attempt", default=None)


def current_step() -> RunningStep:
    """The running attempt, inside a step function. Raises RuntimeError elsewhere."""
    attempt = current_attempt.get()
    if attempt is None:
        raise RuntimeError("current_step() was called outside a step function")
    return RunningStep(attempt)
