"""Answers questions about a run: reads its records, replays its code here, and calls a query of its workflow.

No worker is asked and nothing is appended. The replay runs in a thread of its own, so code that blocks does not hold the caller's
loop; a watchdog interrupts code that does not return.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, overload

import orjson

from ..authoring.context import Context
from ..authoring.query import Query
from ..authoring.workflow import Registry, Workflow
from ..core.state import RunState
from ..errors import (
    ErrorInfo,
    NonDeterminism,
    QueryFailed,
    QueryUnknown,
    RunNotFound,
    WorkflowUnknown,
    disagreement,
)
from ..log import CLAIM_KEY, Log
from ..replay.execution import Execution
from ..replay.frames import line_of
from ..replay.question import ask
from ..values.annotations import name_of
from ..values.names import quoted
from ..worker import watchdog
from ..worker.interrupts import from_keyboard
from ..worker.owner.live import stuck
from ..worker.watchdog import Stuck, Watch, Watchdog
from .local import LocalReplay
from .run import Gateway
from .view import RunView, state_for

P = ParamSpec("P")
T = TypeVar("T")

_WHERE = "Ask where the code with which the run goes on is installed, or about an earlier moment, with until="


class QueryAnswer(NamedTuple):
    """The answer of a query. `json`: as its function's annotation writes it."""

    query: Query
    json: bytes

    def value(self) -> Any:
        """The answer as its function's annotation says."""
        return self.query.answer.decode(orjson.loads(self.json))


class Inspection:
    """A run, or one of its past moments, that queries can be asked about."""

    def __init__(self, gateway: Gateway, registry: Registry, run_id: str, until: int | None) -> None:
        self.id = run_id
        self.until = until
        self._gateway = gateway
        self._registry = registry

    def __repr__(self) -> str:
        return f"<Inspection of run {self.id!r}{'' if self.until is None else f' until {self.until}'}>"

    @overload
    async def query(
        self, query: Callable[Concatenate[Context[Any, Any], P], Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def query(self, query: Callable[Concatenate[Context[Any, Any], P], T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def query(self, query: str, /, *args: Any, **kwargs: Any) -> Any: ...

    async def query(self, query: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The answer of a query of the run's workflow, by its name or by its function, with its further arguments.

        Reads the run's records, and replays its code in this process; nothing else happens, and no worker is needed. The run may
        have ended. Arguments and answer are copies, typed by the annotations of the function.

        Raises RunNotFound; WorkflowUnknown and QueryUnknown if the code is not registered here; InputInvalid for arguments that
        do not fit; NonDeterminism for code that disagrees with the history, or does not return; QueryFailed for a query that
        raises an error, waits, asks for an operation or does not return; ValueInvalid for an answer that JSON cannot hold as it
        is; and LogUnavailable.
        """
        return (await self.answer(query, args, kwargs)).value()

    async def answer(self, query: str | Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> QueryAnswer:
        """As `query`, with the JSON of the answer."""
        run = await self._read()
        workflow = self._registry.find(run.workflow, run.version)
        if workflow is None:
            raise _unknown_workflow(self._registry, run)
        known = workflow.queries.find(query)
        if known is None:
            raise _unknown_query(workflow, query, run)
        virtual = getattr(asyncio.get_running_loop(), "virtual", False)
        watch = Watch() if virtual else Watchdog()
        call = partial(_answer, run, workflow, known, (args, kwargs), self._gateway.connected(), watch)
        return QueryAnswer(known, call() if virtual else await _in_thread(call, run, watch))

    async def _read(self) -> RunState:
        """The run, with a state that nobody else has."""
        log = self._gateway.connected()
        view = RunView(self.id, state_for(log, self.id))
        async with self._gateway.patience():
            records = await log.find(view.state.partition, (self.id, CLAIM_KEY))
        for record in records:
            if self.until is None or record.offset <= self.until:
                view.take(record)
        if view.run is None and self.until is not None:
            raise RunNotFound(self.id, log.name, f"this log has no run {self.id!r} that had begun at offset {self.until}")
        return view.found(log)


def _answer(
    run: RunState,
    workflow: Workflow[Any, Any],
    query: Query,
    call: tuple[Sequence[Any], Mapping[str, Any]],
    log: Log,
    watch: Watch,
) -> bytes:
    """Replay the code, then call the query. Raises as `Inspection.query`."""
    contexts: list[Context[Any, Any]] = []
    with LocalReplay(run, workflow, log, watch, contexts.append) as local:
        local.watched(partial(_replay, local.execution, run))
        if not contexts:
            raise QueryFailed(run.id, query.name, local.watched(partial(_why_not_begun, local.execution)))
        try:
            return local.watched(partial(_ask, local.execution, query, contexts[0], *call))
        except NonDeterminism:
            message = f"it did not return within {watchdog.STOP_S:g} s: it blocks, or it spins"
        raise QueryFailed(run.id, query.name, ErrorInfo("TimeoutError", message), ", ".join(watch.lines))


def _replay(execution: Execution, run: RunState) -> None:
    try:
        execution.advance()
        return
    except NonDeterminism as error:
        said = disagreement(error)
    except BaseException as error:  # the run's code or its objects may raise anything
        if issubclass(type(error), Stuck) or from_keyboard(error):
            raise
        said = {"message": f"the code of run {run.id!r} could not be replayed: {ErrorInfo.of(error)}"}
    source = tuple(said.get("source", ()))
    raise NonDeterminism(
        f"{said['message']}. {_WHERE}", expected=said.get("expected", ""), found=said.get("found", ""), source=source
    )


def _why_not_begun(execution: Execution) -> ErrorInfo:
    ended = execution.outcome
    why = "it was cancelled before" if ended is None or ended.error is None else f"{ErrorInfo.of(ended.error)}"
    return ErrorInfo("RuntimeError", f"the code of the run has not begun: {why}")


def _ask(execution: Execution, query: Query, ctx: Context[Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Raises InputInvalid, ValueInvalid and QueryFailed; Stuck if the watchdog interrupts it."""
    arguments = execution.inside(query.arguments, args, kwargs)
    try:
        value = ask(execution, lambda: query.ask(ctx, arguments))
    except BaseException as error:  # the query may raise anything
        if issubclass(type(error), Stuck) or from_keyboard(error):
            raise
        failed = QueryFailed(execution.run.id, query.name, execution.inside(ErrorInfo.of, error), line_of(error))
    else:
        return execution.inside(query.encode, value)
    raise failed


async def _in_thread(call: Callable[[], bytes], run: RunState, watch: Watch) -> bytes:
    """Call a function in a thread of its own. Raises as it does, and NonDeterminism if it cannot be interrupted; that thread then
    stays until its call returns, or the process ends."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes] = loop.create_future()

    def work() -> None:
        try:
            tell = partial(_set, answered, call(), None)
        except BaseException as error:  # noqa: BLE001  # the caller gets it
            tell = partial(_set, answered, b"", error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=work, name="stepfold-inspect", daemon=True).start()
    while not (await asyncio.wait((answered,), timeout=watchdog.LOOK_S))[0]:
        if watch.gave_up:
            raise stuck(run, watch)
    return answered.result()


def _set(answered: asyncio.Future[bytes], json: bytes, error: BaseException | None) -> None:
    if answered.done():
        return
    if error is None:
        answered.set_result(json)
    else:
        answered.set_exception(error)
        answered.exception()  # marks it as retrieved: the caller may have been cancelled


def _unknown_workflow(registry: Registry, run: RunState) -> WorkflowUnknown:
    version = "" if run.version is None else f" version {run.version!r}"
    others = sorted({one.version for one in registry if one.id == run.workflow})
    known = f"; it has version {', '.join(others)}" if others else ""
    return WorkflowUnknown(
        f"run {run.id!r} is of workflow {run.workflow!r}{version}, which this client does not have{known}: a query replays the "
        "code, so import the module that registers it",
        workflow=run.workflow,
        version=run.version,
    )


def _unknown_query(workflow: Workflow[Any, Any], query: str | Callable[..., Any], run: RunState) -> QueryUnknown:
    name = query if isinstance(query, str) else name_of(query)
    known = ", ".join(workflow.queries.names()) or "none"
    return QueryUnknown(
        f"workflow {workflow.id!r} version {workflow.version!r} of run {run.id!r} has no query {quoted(name)}; it has: {known}. "
        "@workflow.query registers a function as one",
        query=name,
    )
