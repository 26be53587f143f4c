"""The handle of a run: its result, status and history, and the requests to it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, cast, overload

from pydantic import ValidationError
from typing_extensions import TypeVar

from ..core.state import RunState
from ..errors import ErrorInfo, ValueInvalid, WorkflowCancelled, WorkflowFailed
from ..events import Event
from ..log import Ack, Log
from ..operations.child import Child, children_of
from ..operations.publish import published_by
from ..values.codec import Codec, describe, own, written
from ..values.duration import Duration, duration_ms
from .changing import Published, StateChanged, changes
from .requests import NOBODY, Sender, Taken, of_signal, taken, untaken
from .status import RunStatus, status_of
from .tail import RunViews, RunWatch, Tail, read_run

Out = TypeVar("Out", default=Any)
Call = TypeVar("Call")


def coroutine_function(call: Call) -> Call:
    """Mark a plain function that returns a coroutine, for `inspect.iscoroutinefunction`; Python 3.11 knows no such mark."""
    mark: Callable[[Call], Call] | None = getattr(inspect, "markcoroutinefunction", None)
    return call if mark is None else mark(call)


class Gateway(Protocol):
    """The part of a client that the handles of its runs use."""

    ids: Callable[[], str]
    views: RunViews

    def connected(self) -> Log: ...

    def patience(self, timeout: Duration | None = None) -> AbstractAsyncContextManager[None]: ...

    def tail(self, run_id: str) -> Tail: ...

    def result_codec(self, run: RunState) -> Codec: ...

    async def signal_run(self, run_id: str, name: str, data: bytes, request: str, asked: Sender = NOBODY) -> Ack | None: ...

    async def cancel_run(self, run_id: str, why: str | None, request: str, by: str | None = None) -> Ack | None: ...


class Run(Generic[Out]):
    """A handle for one run. `new`: whether the call that returned the handle has started the run."""

    def __init__(
        self,
        gateway: Gateway,
        run_id: str,
        codec: Codec | None,
        watch: RunWatch | None = None,
        start: int = 0,
        *,
        new: bool = False,
    ) -> None:
        self.id = run_id
        self.new = new
        self._start = start  # offset below which the run has no record
        self._gateway = gateway
        self._codec = codec
        self._watch = watch

    def __repr__(self) -> str:
        return f"<Run {self.id!r}>"

    async def result(self, timeout: Duration | None = None) -> Out:
        """Wait for the run to complete, and return the workflow's return value.

        Raises WorkflowFailed, WorkflowCancelled, RunNotFound and LogUnavailable; TimeoutError after `timeout` (the run is
        still running); ValueInvalid if the recorded result does not fit the type that the workflow returns today.
        """
        limit_s = None if timeout is None else duration_ms(timeout) / 1000
        try:
            async with asyncio.timeout(limit_s):
                run = await self._end()
        except TimeoutError:
            raise TimeoutError(f"run {self.id!r} has not ended within {limit_s:g} s; it is still running") from None
        if run.phase == "completed":
            codec = self._codec or self._gateway.result_codec(run)
            try:
                return cast(Out, codec.decode(run.result))
            except Exception as error:
                raise ValueInvalid(
                    f"run {run.id!r} has completed, but its recorded result does not fit the type that workflow "
                    f"{run.workflow!r} returns today: {describe(error) if isinstance(error, ValidationError) else error}; "
                    "`(await run.status()).result` gives it as it was recorded"
                ) from error
        if run.phase == "cancelled":
            raise WorkflowCancelled(run.id, run.reason)
        raise WorkflowFailed(run.id, ErrorInfo.from_json(run.error))

    async def _end(self) -> RunState:
        watch = self._watch
        if watch is None or not watch.ended.done():
            self._gateway.connected()
        if watch is None or (watch.ended.done() and watch.ended.exception() is not None):  # the tail failed: read again
            log = self._gateway.connected()
            watch = await self._gateway.tail(self.id).watch(self.id, self._start)
            if not watch.ended.done():  # otherwise the run has ended, or the tail has, maybe with the client
                watch.view.found(log)
            self._watch = watch
        return await asyncio.shield(watch.ended)

    async def status(self, *, timeout: Duration | None = None) -> RunStatus:
        """The run's current status. Raises RunNotFound and LogUnavailable."""
        log = self._gateway.connected()
        async with self._gateway.patience(timeout):
            view = await self._gateway.views.read(self.id)
        return status_of(view.found(log), view.owner is not None)

    async def history(self, *, timeout: Duration | None = None) -> list[Event]:
        """The run's accepted events, in order. Raises RunNotFound and LogUnavailable."""
        log = self._gateway.connected()
        async with self._gateway.patience(timeout):
            history = await read_run(log, self.id)
        history.found(log)
        return history.events

    async def children(self, *, timeout: Duration | None = None) -> list[ChildRun]:
        """Handles for the runs that this run has started, detached ones too, in the order in which its code started them.

        Raises RunNotFound and LogUnavailable.
        """
        log = self._gateway.connected()
        async with self._gateway.patience(timeout):
            history = await read_run(log, self.id)
        history.found(log)
        return [ChildRun(self._gateway, child) for child in children_of(history.story())]

    @overload
    async def published(self, key: str, *, timeout: Duration | None = None) -> Any: ...

    @overload
    async def published(self, key: None = None, *, timeout: Duration | None = None) -> dict[str, Any]: ...

    async def published(self, key: str | None = None, *, timeout: Duration | None = None) -> Any:
        """The last value that the run's code has published under a key, None if there is none; without a key all, by key.

        Raises RunNotFound and LogUnavailable.
        """
        log = self._gateway.connected()
        async with self._gateway.patience(timeout):
            view = await self._gateway.views.read(self.id)
        values = {name: own(last.value) for name, last in published_by(view.found(log)).items()}
        return values if key is None else values.get(key)

    def watch(self, *, after: int = 0) -> AsyncGenerator[Published | StateChanged]:
        """All values that the code publishes, and the changes of the run's state, from its start to its end, as they come.

        `after`: the `position` of a change that this or another process has got; the next one is the first then. Raises
        RunNotFound and LogUnavailable; after that, a new call goes on from the last position.
        """
        return changes(self._gateway.connected(), self.id, after)

    @coroutine_function
    def signal(
        self, name: str, data: Any = None, *, timeout: Duration | None = None, by: str | None = None, why: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """Send the run a signal, which is kept until the run waits for it.

        The data are written at the call: a later change does not reach them. All errors come at the `await`: RunNotFound,
        RunEnded, InputInvalid for data that JSON cannot hold as they are, PayloadTooLarge and LogUnavailable.
        """
        return self._signal(name, taken(lambda: written(data, of_signal(name))), timeout, Sender(by, why))

    async def _signal(self, name: str, data: Taken, timeout: Duration | None, asked: Sender) -> None:
        self._gateway.connected()
        async with self._gateway.patience(timeout):
            await self._gateway.signal_run(self.id, name, untaken(data), self._gateway.ids(), asked)

    async def cancel(
        self, why: str | None = None, *, timeout: Duration | None = None, by: str | None = None, reason: str | None = None
    ) -> None:
        """Ask the run to end; `why` says why (`reason` is its older name), `by` who asks. Its code gets CancelledError and may
        clean up.

        Raises RunNotFound, RunEnded and LogUnavailable.
        """
        async with self._gateway.patience(timeout):
            await self._gateway.cancel_run(self.id, reason if why is None else why, self._gateway.ids(), by)


class ChildRun(Run[Any]):
    """A handle for a child, with what the log of its parent says of it.

    `workflow`: the id of its workflow; `step_id`: the operation of the parent that started it; `detached`: nobody waits for its
    end. `state`: "open" while the parent waits for the end; "completed", "failed" or "cancelled" after it; "detached", where the
    parent never hears of the end; "timed-out" or "dropped" where it waits no longer; "refused" where no child began, because
    another start has the id. `status()` reads the log of the child itself.
    """

    def __init__(self, gateway: Gateway, child: Child) -> None:
        super().__init__(gateway, child.id, None)
        self.workflow = child.workflow
        self.step_id = child.step_id
        self.state = child.state
        self.detached = child.detached

    def __repr__(self) -> str:
        return f"<ChildRun {self.id!r} {self.state}>"
