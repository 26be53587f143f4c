"""The client: registers workflows, starts runs, and makes workers.

The client appends requests to the history itself. A request has no claim, and the fold judges it like any other
record. So the client learns exactly whether a run id was free, even without a worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from types import TracebackType
from typing import Any, Literal, Self, overload

from typing_extensions import TypeVar

from ..authoring.context import Context
from ..authoring.step import Step
from ..authoring.workflow import DEFAULT_VERSION, Registry, Workflow
from ..core.state import RunState
from ..errors import ConfigError
from ..log import MAX_PAYLOAD_BYTES, Ack, Log, partition_of
from ..replay.loop import DeterministicLoop
from ..values.codec import ANY, Codec, written
from ..values.duration import Duration, duration_ms
from ..values.options import whole
from ..values.same import shown
from ..worker.host import Settings
from ..worker.serving import LoopEnded, serve
from ..worker.stopping import end_process
from ..worker.threads import Report, Threads
from ..worker.watchdog import Watchdog
from ..worker.worker import Worker
from . import bulk, callbacks
from .asking import ask
from .inspecting import Inspection
from .observing import observing
from .patience import Patience
from .requests import (
    NOBODY,
    Sender,
    cancel_requested,
    check_size,
    checked_run_id,
    of_signal,
    signal_received,
    taken,
    users_own,
)
from .run import Run, coroutine_function
from .starting import FirstSignal, Start, start
from .tail import RunViews, Tail
from .tracing import provider_of, trace_now

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)
State = TypeVar("State", default=Any)

logger = logging.getLogger("stepfold.worker")

_running_loop = asyncio.events._get_running_loop

DEFAULT_URL = "sqlite:///stepfold.db"


class Client:
    """Registers workflows and starts runs on one log.

    `url`: `memory://`, `sqlite:///path` or `kafka://host:port/namespace`; without it `STEPFOLD_URL`, else
    "sqlite:///stepfold.db". `driver`: a log that you made, instead of a URL. `timeout`: how long a call waits for the log before
    it raises LogUnavailable, unless the call has its own. `random` is the source of jitter, `ids` of run ids and request ids.
    `tracing`: spans of runs and steps, by OpenTelemetry's tracer provider (True: the process's), in the traces of those who start
    them. Raises ConfigError for a bad URL.

    Enter the client with `async with`. Until the block ends, the client and its handles belong to the event loop of the block.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        driver: Log | None = None,
        timeout: Duration = 10,
        random: Random | None = None,
        ids: Callable[[], str] | None = None,
        threads: Callable[[Report], Threads] | None = None,
        tracing: object = False,
    ) -> None:
        if driver is not None and url is not None:
            raise ConfigError("Client(url, driver=...): give one of them")
        if driver is not None and not hasattr(driver, "append"):
            raise ConfigError(
                f"Client(driver={shown(driver)}): a driver is a log that you made, such as MemoryDriver(); give a URL first"
            )
        if not isinstance(random, Random | None):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise TypeError(f"Client(random={shown(random)}): it must be a random.Random")
        if ids is not None and not callable(ids):
            raise TypeError(f"Client(ids={shown(ids)}): it must be a function that returns a new text at each call")
        self.log: Log = (
            driver if driver is not None else _open(os.environ.get("STEPFOLD_URL") or DEFAULT_URL if url is None else url)
        )
        self.registry = Registry()
        self._provider = provider_of(tracing)
        self.ids = ids or (lambda: uuid.uuid4().hex)
        self._random = random
        self._threads = threads
        self.views = RunViews(self.log)
        self._patience = Patience(self.log.name)
        self._timeout_s = duration_ms(timeout) / 1000
        self._entered = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop of `async with`
        self._workers: list[Worker] = []
        self._tails: dict[int, Tail] = {}

    # -- workflows

    @overload
    def workflow(
        self, id: str, *, version: str = DEFAULT_VERSION
    ) -> Callable[[Callable[[Context[In], Step[Any]], Coroutine[Any, Any, Out]]], Workflow[In, Out]]: ...

    @overload
    def workflow(
        self, id: str, *, version: str = DEFAULT_VERSION, input_schema: type[In]
    ) -> Callable[[Callable[[Context[Any], Step[Any]], Coroutine[Any, Any, Out]]], Workflow[In, Out]]: ...

    @overload
    def workflow(
        self, id: str, *, version: str = DEFAULT_VERSION, state: Callable[[], State]
    ) -> Callable[[Callable[[Context[In, State], Step[Any]], Coroutine[Any, Any, Out]]], Workflow[In, Out]]: ...

    @overload
    def workflow(
        self, id: str, *, version: str = DEFAULT_VERSION, input_schema: type[In], state: Callable[[], State]
    ) -> Callable[[Callable[[Context[Any, State], Step[Any]], Coroutine[Any, Any, Out]]], Workflow[In, Out]]: ...

    def workflow(
        self,
        id: str,
        *,
        version: str = DEFAULT_VERSION,
        input_schema: Any = None,
        state: Callable[[], Any] | None = None,
    ) -> Any:
        """Register `async def handler(ctx: Context[Model], step: Step)` as a workflow.

        The input of a run is validated as `Model`, or as `input_schema`. `state`: the class of `ctx.state`, made without
        arguments, for a handler that takes a `Context[Model, Class]`. Raises ConfigError for a handler or annotation that cannot
        work, and for an id and version that are registered already.
        """

        def register(handler: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Workflow[Any, Any]:
            workflow: Workflow[Any, Any] = Workflow(handler, users_own(id), version, input_schema, state)
            self.registry.add(workflow)
            return workflow

        if callable(id):
            raise ConfigError('@client.workflow needs an id: @client.workflow(id="process-order")')
        return register

    # -- connecting

    async def __aenter__(self) -> Self:
        if self._entered == 0:
            self._loop = asyncio.get_running_loop()
            try:
                await self.log.open()
            except BaseException:
                self._loop = None
                raise
            # a test may have given the client another log
            self.views, self._patience = RunViews(self.log), Patience(self.log.name)
        else:
            self._check_loop()
        self._entered += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._check_loop()
        self._entered -= 1
        if self._entered == 0:
            self.views.clear()
            self._patience.close()
            for tail in self._tails.values():
                await tail.close()
            self._tails.clear()
            self._loop = None
            await self.log.close()

    def connected(self) -> Log:
        """The log. Raises ConfigError outside `async with client`, and in another event loop."""
        if self._entered == 0:
            raise ConfigError("the client is not connected; use it inside `async with client:`")
        self._check_loop()
        return self.log

    def _check_loop(self) -> None:
        loop = _running_loop()
        if loop is not self._loop:
            if isinstance(loop, DeterministicLoop):
                raise loop.client_refusal()
            closed = " (which has ended without leaving the client)" if self._loop is not None and self._loop.is_closed() else ""
            raise ConfigError(
                f"this client of {self.log.name} belongs to another event loop{closed}: make one client for each loop, "
                f"or call it in its own by asyncio.run_coroutine_threadsafe(call, loop)"
            )

    def patience(self, timeout: Duration | None = None) -> AbstractAsyncContextManager[None]:
        """An `async with` block that raises LogUnavailable after `timeout`, or after the client's timeout."""
        return self._patience.within(self._timeout_s if timeout is None else duration_ms(timeout) / 1000)

    def tail(self, run_id: str) -> Tail:
        """The tail that follows the run's partition."""
        log = self.connected()
        partition = partition_of(run_id, log.partitions)
        tail = self._tails.get(partition)
        if tail is None:
            tail = self._tails[partition] = Tail(log, partition)
        return tail

    # -- runs

    @overload
    def start_workflow(
        self,
        workflow: Workflow[In, Out],
        data: In | dict[str, Any] = ...,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
        signal: tuple[str, Any] | None = None,
        timeout: Duration | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Coroutine[Any, Any, Run[Out]]: ...

    @overload
    def start_workflow(
        self,
        workflow: str,
        data: Any = None,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
        version: str | None = None,
        signal: tuple[str, Any] | FirstSignal | None = None,
        timeout: Duration | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Coroutine[Any, Any, Run[Any]]: ...

    @coroutine_function
    def start_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        data: Any = None,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
        version: str | None = None,
        signal: tuple[str, Any] | FirstSignal | None = None,
        timeout: Duration | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Coroutine[Any, Any, Run[Any]]:
        """Start a run and return its handle. The run is durable when the `await` returns.

        The input is validated and written at the call: a later change does not reach it. All errors come at the `await`.

        The same `run_id` again returns the existing run, or raises RunAlreadyExists with `if_exists="reject"`. It always
        raises RunAlreadyExists if the workflow or the input differ. If the workflow is registered here, it validates the input
        before anything is written. Raises InputInvalid, PayloadTooLarge, ConfigError and LogUnavailable.

        `signal=(name, data)` sends the run a signal in the same append, or sends it to the existing run; RunEnded if that has
        ended. Each call is a signal of its own, also one that repeats a call which raised LogUnavailable.

        `timeout`: how long to wait for the log, as in all calls. After it the run may have started all the same; with your own
        `run_id` a repeat is harmless. `by` (a name of up to 200 characters) and `why` (10,000): for people, as in all requests.
        """
        known = self.registry.find(workflow, version) if isinstance(workflow, str) else workflow

        def encode() -> bytes:
            if isinstance(known, Workflow):
                return known.encode_input(data)
            return written(data, f"the input of workflow {workflow!r}")

        trace, first = trace_now(self._provider is not None), FirstSignal.of(signal, self.ids)
        asked = Start(workflow, known, version, taken(encode), run_id, if_exists, Sender(by, why), trace, first)
        return self._start_workflow(asked, timeout)

    async def _start_workflow(self, asked: Start, timeout: Duration | None) -> Run[Any]:
        if getattr(self.connected(), "needs_local_worker", False) and not self._workers:
            raise ConfigError(
                f"{self.log.name} lives in this process only and no worker runs in it, so the run would wait for ever; "
                f"start it inside `async with client.worker():`"
            )
        async with self.patience(timeout):
            return await start(self, asked)

    def run(self, run_id: str) -> Run[Any]:
        """A handle for an existing run. The methods of the handle raise RunNotFound if the run does not exist."""
        return Run(self, checked_run_id(run_id), None)

    def inspect(self, run_id: str, *, until: int | None = None) -> Inspection:
        """A run to ask queries about: `await client.inspect(run_id).query("progress")` replays the run's code in this process.

        `until`: the offset of the last record to read, for the run as it was then; None: as it is now. Raises ConfigError for a
        bad id, TypeError and ValueError for a bad offset.
        """
        if until is not None:
            whole(until, "until", 0)
        return Inspection(self, self.registry, checked_run_id(run_id), until)

    def result_codec(self, run: RunState) -> Codec:
        """The codec for the result of a run: that of its workflow if it is registered here, else one for any JSON."""
        known = self.registry.find(run.workflow, run.version)
        return known.output if known is not None else ANY

    async def signal_run(self, run_id: str, name: str, data: bytes, request: str, asked: Sender = NOBODY) -> Ack | None:
        """Append a signal for a run, once for each `request`; `data`: JSON. Returns None if the run has this request already.

        Raises RunNotFound, RunEnded and PayloadTooLarge.
        """
        check_size(data, MAX_PAYLOAD_BYTES, of_signal(name))
        return await ask(
            self, signal_received(run_id, name, data, request=request, at=self.connected().now(), asked=asked), request
        )

    async def cancel_run(self, run_id: str, why: str | None, request: str, by: str | None = None) -> Ack | None:
        """Append a request to cancel a run, as `signal_run`. Raises RunNotFound and RunEnded."""
        return await ask(self, cancel_requested(run_id, why, request=request, at=self.connected().now(), by=by), request)

    @coroutine_function
    def complete_callback(
        self, id: str, data: Any = None, *, timeout: Duration | None = None, by: str | None = None, why: str | None = None
    ) -> Coroutine[Any, Any, bool]:
        """Answer a callback by its id. Returns whether the answer counts: whether the callback was open and had this id.

        It is durable when the `await` returns; the first of several counts, and the log keeps the others. The data are written at
        the call. All errors come at the `await`: CallbackIdInvalid, RunNotFound, InputInvalid for data that JSON cannot hold as
        they are, PayloadTooLarge and LogUnavailable.
        """
        return callbacks.counts(
            callbacks.complete(self, id, taken(lambda: written(data, callbacks.DATA)), timeout, Sender(by, why))
        )

    async def fail_callback(
        self,
        id: str,
        message: str,
        type: str = "CallbackFailed",
        *,
        timeout: Duration | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> bool:
        """Answer a callback: it has failed, and `await callback` raises CallbackFailed with this type and message.

        Otherwise as `complete_callback`. Raises ValueError for a bad type, and for a message above 10,000 characters.
        """
        return (await callbacks.fail(self, id, type, message, timeout, Sender(by, why))).counts

    async def heartbeat_callback(
        self, id: str, *, timeout: Duration | None = None, by: str | None = None, why: str | None = None
    ) -> bool:
        """Say that somebody still works on the answer: the callback's heartbeat time-out begins anew.

        Returns whether it counts, as `complete_callback`; False also says that nobody waits for the answer any more.
        """
        return (await callbacks.heartbeat(self, id, timeout, Sender(by, why))).counts

    # -- workers

    @asynccontextmanager
    async def worker(
        self,
        *,
        concurrency: int = 100,
        grace: Duration = 10,
        live_runs: int = 10_000,
        checkpoint_records: int = 20_000,
        metrics: str | None = None,
    ) -> AsyncGenerator[Worker]:
        """Execute the registered workflows until the block ends. Before the worker releases a partition it waits up to `grace`
        for the partition's running steps.

        `concurrency`: steps at a time; `live_runs`: runs per partition whose code stays in memory; `metrics`: where Prometheus
        finds its figures, "9464" (on loopback) or "HOST:PORT". Raises ValueError for a number that is too low, TypeError for one
        that is not whole, ConfigError and LogUnavailable.
        """
        whole(concurrency, "concurrency", 1)
        whole(live_runs, "live_runs", 0)
        whole(checkpoint_records, "checkpoint_records", 1)
        grace_s = duration_ms(grace) / 1000
        settings = Settings(concurrency=concurrency, grace_s=grace_s, live_runs=live_runs, checkpoint_records=checkpoint_records)
        async with self, observing(self.registry, metrics, self._provider) as (observer, begin):
            worker = Worker(
                self.log,
                self.registry,
                settings,
                self.signal_run,
                random=self._random,
                ids=self.ids,
                threads=self._threads,
                built_in=bulk.built_in(self),
                watch=None if getattr(asyncio.get_running_loop(), "virtual", False) else Watchdog(),
                observer=observer,
            )
            await worker.start()
            self._workers.append(worker)
            begin(worker)
            try:
                yield worker
            finally:
                self._workers.remove(worker)
                await worker.stop(grace_s)
        if worker.failure is not None:
            raise worker.failure

    def run_worker(
        self,
        *,
        concurrency: int = 100,
        grace: Duration = 10,
        metrics: str | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """As `worker`, but blocks until SIGINT, SIGTERM or SIGHUP. A second signal, half a second later or more, ends it at
        once.

        Serves on uvloop if it is installed (`stepfold[uvloop]`), and calls `on_start` when it serves. Outside the main thread,
        which alone gets signals, it serves until the process ends: make that thread a daemon. Raises ConfigError inside a running
        event loop.
        """
        if _running_loop() is not None:
            raise ConfigError(
                "run_worker() runs an event loop of its own, and here one runs already (an async function, a notebook): use "
                "`async with client.worker():` in it, or call run_worker() in a thread"
            )
        _serve(self.log.name, self.worker(concurrency=concurrency, grace=grace, metrics=metrics), on_start)


def _serve(name: str, opened: AbstractAsyncContextManager[Worker], on_start: Callable[[], None]) -> None:
    def on_end(worker: Worker | None) -> None:
        if worker is not None and worker.abandoned and threading.current_thread() is threading.main_thread():
            end_process(0)  # things that abandoned steps started, such as threads, might never end

    try:
        serve(name, opened, on_start=on_start, on_lost=logger.error, on_end=on_end)
    except LoopEnded as end:
        raise end.__cause__ or end from None


def _open(url: str) -> Log:
    from stepfold.drivers import open_driver  # the only place where the engine asks for a driver, by its URL

    return open_driver(url)
