"""The client: registers workflows, starts and reads runs, and makes workers.

It appends its requests to the history itself. A request is under no claim and judged by the fold like any other record,
so whether a run id was free is known exactly, without any worker being there.
"""

from __future__ import annotations

import asyncio
import os
import signal as signals
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from types import TracebackType
from typing import Any, Generic, Literal, Self, cast, overload

import orjson
from typing_extensions import TypeVar

from .codec import ANY, Codec
from .context import Context
from .duration import Duration, duration_ms
from .errors import ConfigError, ErrorInfo, RunAlreadyExists, RunNotFound, WorkflowCancelled, WorkflowFailed
from .events import Event
from .fold import OpenSleep, OpenWait, RunState
from .host import MAX_PAYLOAD_BYTES, Settings
from .log import Log, partition_of
from .requests import cancel_requested, check_size, checked_run_id, signal_received, started
from .step import Step
from .tail import RunView, Tail, Watch, read_run
from .worker import RunInThread, Worker
from .workflow import DEFAULT_VERSION, Registry, Workflow, plain_input

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

DEFAULT_URL = "sqlite:///stepfold.db"
SIGNALLED_TWICE_S = 0.5
"""A signal that comes again within this time after the first is the same one."""
State = Literal["pending", "running", "waiting", "paused", "quarantined", "completed", "failed", "cancelled", "continued"]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands. `waiting_on`: in words, what must happen next; `started_at`, `ended_at`: UTC."""

    id: str
    workflow: str
    version: str | None
    state: State
    started_at: datetime
    ended_at: datetime | None
    waiting_on: list[str]
    attempt: int
    result: Any
    error: ErrorInfo | None
    reason: str | None
    steps_completed: int


class Run(Generic[Out]):
    """A handle for one run."""

    def __init__(self, client: Client, run_id: str, codec: Codec | None, watch: Watch | None = None, start: int = 0) -> None:
        self.id = run_id
        self._start = start  # none of its records is below this offset
        self._client = client
        self._codec = codec
        self._watch = watch

    def __repr__(self) -> str:
        return f"<Run {self.id!r}>"

    async def result(self, timeout: Duration | None = None) -> Out:
        """The workflow's return value, once the run has completed.

        Raises WorkflowFailed, WorkflowCancelled, RunNotFound, TimeoutError (after `timeout`; the run goes on) and
        LogUnavailable.
        """
        limit_s = None if timeout is None else duration_ms(timeout) / 1000
        try:
            async with asyncio.timeout(limit_s):
                run = await self._end()
        except TimeoutError:
            raise TimeoutError(f"run {self.id!r} has not ended within {limit_s:g} s; it goes on") from None
        if run.phase == "completed":
            codec = self._codec or self._client.result_codec(run)
            return cast(Out, codec.decode(run.result))
        if run.phase == "cancelled":
            raise WorkflowCancelled(run.id, run.reason)
        raise WorkflowFailed(run.id, ErrorInfo.from_json(run.error))

    async def _end(self) -> RunState:
        watch = self._watch
        if watch is None or (watch.ended.done() and watch.ended.exception() is not None):  # the log could not be read on
            watch = await self._client.tail(self.id).watch(self.id, self._start)
            if not watch.state.runs and not watch.ended.done():
                raise RunNotFound(f"{self._client.log.name} has no run {self.id!r}")
            self._watch = watch
        return await asyncio.shield(watch.ended)

    async def status(self) -> RunStatus:
        """Where the run stands now. Raises RunNotFound."""
        return _status(await self._view())

    async def history(self) -> list[Event]:
        """The run's accepted events, in order. Raises RunNotFound."""
        return (await self._view(events=True)).events

    async def signal(self, name: str, data: Any = None) -> None:
        """Send the run a signal; kept until it is waited for. Raises RunNotFound, also when the run has ended."""
        await self._client.signal_run(self.id, name, data, self._client.ids())

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to end; its code sees CancelledError and may clean up. Raises RunNotFound, also when it has ended."""
        await self._client.cancel_run(self.id, reason)

    async def _view(self, events: bool = False) -> RunView:
        log = self._client.connected()
        view = await read_run(log, self.id, events=events)
        if view.run is None:
            raise RunNotFound(f"{log.name} has no run {self.id!r}")
        return view


class Client:
    """Workflows on one log.

    `url`: `memory://`, `sqlite:///path` or `kafka://host:port/namespace`; without one `STEPFOLD_URL`, else
    "sqlite:///stepfold.db". `driver`: a log of one's own making instead. `random` and `ids` are the sources of jitter, run
    ids and request ids. Raises ConfigError for a URL that is none.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        driver: Log | None = None,
        random: Random | None = None,
        ids: Callable[[], str] | None = None,
        run_in_thread: RunInThread | None = None,
    ) -> None:
        if driver is not None and url is not None:
            raise ConfigError("Client(url, driver=...): give one of them")
        self.log: Log = driver if driver is not None else _open(url or os.environ.get("STEPFOLD_URL") or DEFAULT_URL)
        self.registry = Registry()
        self.ids = ids or (lambda: uuid.uuid4().hex)
        self._random = random
        self._run_in_thread = run_in_thread
        self._entered = 0
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

    def workflow(self, id: str, *, version: str = DEFAULT_VERSION, input_schema: Any = None) -> Any:
        """Register `async def handler(ctx: Context[Model], step: Step)` as a workflow.

        Its input is validated as `Model`, or as `input_schema`. Raises ConfigError for a handler or annotation that cannot
        work, and for an id and version registered before.
        """

        def register(handler: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Workflow[Any, Any]:
            workflow: Workflow[Any, Any] = Workflow(handler, id, version, input_schema)
            self.registry.add(workflow)
            return workflow

        if callable(id):
            raise ConfigError('@client.workflow needs an id: @client.workflow(id="process-order")')
        return register

    # -- connecting

    async def __aenter__(self) -> Self:
        if self._entered == 0:
            await self.log.open()
        self._entered += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._entered -= 1
        if self._entered == 0:
            for tail in self._tails.values():
                await tail.close()
            self._tails.clear()
            await self.log.close()

    def connected(self) -> Log:
        """The log. Raises ConfigError outside `async with client`."""
        if self._entered == 0:
            raise ConfigError("the client is not connected; use it inside `async with client:`")
        return self.log

    def tail(self, run_id: str) -> Tail:
        """Who follows the run's partition for this client."""
        log = self.connected()
        partition = partition_of(run_id, log.partitions)
        found = self._tails.get(partition)
        if found is None:
            found = self._tails[partition] = Tail(log, partition)
        return found

    # -- runs

    @overload
    async def start_workflow(
        self,
        workflow: Workflow[In, Out],
        data: In | dict[str, Any] = ...,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
    ) -> Run[Out]: ...

    @overload
    async def start_workflow(
        self,
        workflow: str,
        data: Any = None,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
        version: str | None = None,
    ) -> Run[Any]: ...

    async def start_workflow(
        self,
        workflow: Workflow[Any, Any] | str,
        data: Any = None,
        *,
        run_id: str | None = None,
        if_exists: Literal["return", "reject"] = "return",
        version: str | None = None,
    ) -> Run[Any]:
        """Start a run; it is durable when this returns.

        The same `run_id` again gives the run that exists, or raises RunAlreadyExists with `if_exists="reject"`, and always
        when the workflow or the input differ. A workflow that is registered here validates its input before anything is
        written. Raises InputInvalid, PayloadTooLarge, ConfigError and LogUnavailable.
        """
        log = self.connected()
        if isinstance(workflow, str):
            known = self.registry.find(workflow, version)
            workflow_id = workflow
        elif not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise ConfigError(f"{workflow!r} is no workflow; give a registered one, or the id of one that a worker knows")
        else:
            known = workflow
            workflow_id = workflow.id
            version = workflow.version
        if getattr(log, "needs_local_worker", False) and not self._workers:
            raise ConfigError(
                f"{log.name} lives in this process only and no worker runs in it, so the run would wait for ever; "
                f"start it inside `async with client.worker():`"
            )
        encoded = known.encode_input(data) if known is not None else plain_input(data, f"the input of workflow {workflow_id!r}")
        if known is not None and version is None:
            version = known.version
        check_size(encoded, MAX_PAYLOAD_BYTES, f"the input of workflow {workflow_id!r}")
        request = self.ids()
        codec = known.output if known is not None else None
        if run_id is None:
            run_id = request
            watch = self.tail(run_id).expect(run_id)
            entry = started(run_id, workflow_id, version, encoded, request=request, at=log.now())
            [ack] = await log.append(partition_of(run_id, log.partitions), [entry])
            return Run(self, run_id, codec, watch, max(ack.offset, 0))
        existing = (await read_run(log, checked_run_id(run_id))).run
        if existing is None or existing.ended:
            entry = started(run_id, workflow_id, version, encoded, request=request, at=log.now())
            await log.append(partition_of(run_id, log.partitions), [entry])
            existing = (await read_run(log, run_id)).run
            if existing is not None and request in existing.requests:
                return Run(self, run_id, codec, start=existing.start)
        if existing is None:
            raise ConfigError(f"run {run_id!r} was not accepted by {log.name}: its workers use an older format; upgrade them")
        if existing.workflow != workflow_id or existing.input != orjson.loads(encoded):
            raise RunAlreadyExists(
                f"run {run_id!r} exists, of workflow {existing.workflow!r} with another input; choose another run id"
            )
        if if_exists == "reject":
            raise RunAlreadyExists(f"run {run_id!r} exists since {_utc(existing.started_at):%Y-%m-%d %H:%M:%S} UTC")
        return Run(self, run_id, codec, start=existing.start)

    def run(self, run_id: str) -> Run[Any]:
        """A handle for a run that exists. Its methods raise RunNotFound where it does not."""
        return Run(self, checked_run_id(run_id), None)

    def result_codec(self, run: RunState) -> Codec:
        """How the result of a run is decoded: by its workflow, if that is registered here."""
        known = self.registry.find(run.workflow, run.version)
        return known.output if known is not None else ANY

    async def signal_run(self, run_id: str, name: str, data: Any, request: str) -> None:
        """Append a signal for a run, once for each `request`. Raises RunNotFound, PayloadTooLarge."""
        log = self.connected()
        encoded = plain_input(data, f"the data of signal {name!r}")
        check_size(encoded, MAX_PAYLOAD_BYTES, f"the data of signal {name!r}")
        entry = signal_received(run_id, name, encoded, request=request, at=log.now())
        view = await read_run(log, run_id)
        if view.run is not None and request in view.run.requests:
            return
        _must_be_open(log, view, run_id, "a signal")
        await log.append(partition_of(run_id, log.partitions), [entry])

    async def cancel_run(self, run_id: str, reason: str | None) -> None:
        """Append a request to cancel. Raises RunNotFound."""
        log = self.connected()
        entry = cancel_requested(run_id, reason, request=self.ids(), at=log.now())
        _must_be_open(log, await read_run(log, run_id), run_id, "a cancellation")
        await log.append(partition_of(run_id, log.partitions), [entry])

    # -- workers

    @asynccontextmanager
    async def worker(
        self,
        *,
        concurrency: int = 100,
        grace: Duration = 10,
        live_runs: int = 10_000,
        checkpoint_records: int = 20_000,
    ) -> AsyncGenerator[Worker]:
        """Execute the registered workflows until the block ends; giving a partition up waits up to `grace` for running steps.

        `concurrency`: steps at a time; `live_runs`: runs per partition whose code stays in memory. Raises ValueError for a
        `concurrency` below 1, ConfigError and LogUnavailable.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: at least 1")
        grace_s = duration_ms(grace) / 1000
        settings = Settings(concurrency=concurrency, grace_s=grace_s, live_runs=live_runs, checkpoint_records=checkpoint_records)
        async with self:
            worker = Worker(
                self.log,
                self.registry,
                settings,
                self.signal_run,
                random=self._random,
                ids=self.ids,
                run_in_thread=self._run_in_thread,
            )
            await worker.start()
            self._workers.append(worker)
            try:
                yield worker
            finally:
                self._workers.remove(worker)
                await worker.stop(grace_s)
        if worker.failure is not None:
            raise worker.failure

    def run_worker(self, *, concurrency: int = 100, grace: Duration = 10) -> None:
        """The same, blocking, until SIGINT or SIGTERM. Another one, half a second later or more, ends it at once."""

        async def serve() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()

            def told(number: int) -> None:
                stop.set()
                # `timeout` and some supervisors signal the process and its group, so this one twice.
                loop.call_later(SIGNALLED_TWICE_S, loop.remove_signal_handler, number)

            for number in (signals.SIGINT, signals.SIGTERM):
                loop.add_signal_handler(number, told, number)
            async with self.worker(concurrency=concurrency, grace=grace) as worker:
                waits: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), asyncio.create_task(worker.wait())]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    task.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

        asyncio.run(serve())


def _open(url: str) -> Log:
    from stepfold.drivers import open_driver  # the one place where the engine looks for a driver, by its URL

    return open_driver(url)


def _must_be_open(log: Log, view: RunView, run_id: str, what: str) -> None:
    if view.run is None:
        raise RunNotFound(f"{log.name} has no run {run_id!r}; {what} needs one")
    if view.run.ended:
        raise RunNotFound(f"run {run_id!r} has ended ({view.run.phase}); {what} needs an open run")


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _status(view: RunView) -> RunStatus:
    run = view.run
    assert run is not None
    waiting_on = [] if run.ended else waiting_words(run, view.owned)
    return RunStatus(
        id=run.id,
        workflow=run.workflow,
        version=run.version,
        state=run_state(run, view.owned),
        started_at=_utc(run.started_at),
        ended_at=None if run.ended_at is None else _utc(run.ended_at),
        waiting_on=waiting_on,
        attempt=1,
        result=run.result,
        error=None if run.error is None else ErrorInfo.from_json(run.error),
        reason=run.reason,
        steps_completed=sum(delivery.kind == "result" for delivery in run.journal),
    )


def run_state(run: RunState, owned: bool) -> State:
    """The state in one word. `owned`: whether a worker owns the run's partition."""
    if run.phase != "open":
        return cast(State, run.phase)
    if run.awaits_worker or (not run.decided and not owned):
        return "pending"
    return "waiting" if run.open else "running"


def waiting_words(run: RunState, owned: bool) -> list[str]:
    """What the run waits for, for people."""
    if run.phase == "quarantined":
        return [f"somebody to mend it: {ErrorInfo.from_json(run.error)}"]
    if run.awaits_worker:
        version = f" version {run.version!r}" if run.version is not None else ""
        return [f"a worker that knows workflow {run.workflow!r}{version}"]
    words: list[str] = []
    for step_id, op in run.open.items():
        if isinstance(op, OpenSleep):
            words.append(f"sleep {step_id!r} until {_utc(op.wake_at):%Y-%m-%d %H:%M:%S} UTC")
        elif isinstance(op, OpenWait):
            until = f", until {_utc(op.timeout_at):%Y-%m-%d %H:%M:%S} UTC" if op.timeout_at is not None else ""
            words.append(f"signal {op.signal!r} (step {step_id!r}{until})")
        elif op.next_at is not None:
            at = f"{_utc(op.next_at):%Y-%m-%d %H:%M:%S} UTC"
            words.append(f"step {step_id!r}: attempt {op.attempts + 1} at {at}, after {ErrorInfo.from_json(op.error)}")
        else:
            words.append(f"step {step_id!r}: the result of attempt {op.attempts + 1}")
    if not words:
        words.append("the result of a step" if owned else "a worker")
    return words
