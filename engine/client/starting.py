"""Starts a run: appends the request, with a signal behind it if the caller has one, and reads what the log made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import orjson

from ..authoring.workflow import Workflow
from ..errors import ConfigError, RunAlreadyExists
from ..log import Entry, Log, partition_of
from ..values.codec import Codec, written
from ..values.same import same_json, shown
from ..values.times import said
from ..values.trace import Trace
from ..worker.host import MAX_PAYLOAD_BYTES
from .asking import ask
from .requests import Sender, Taken, check_size, checked_run_id, of_signal, signal_received, started, taken, untaken, users_own
from .run import Gateway, Run

IF_EXISTS = ("return", "reject")


class FirstSignal(NamedTuple):
    """A signal that goes with the start. `request`: its id, which makes a repeat harmless."""

    name: str
    data: Taken
    request: str

    @classmethod
    def of(cls, signal: tuple[str, Any] | FirstSignal | None, new_id: Callable[[], str]) -> FirstSignal | None:
        """The signal of an argument `signal=(name, data)`, with its data as they are now. `new_id` makes its id."""
        if signal is None or isinstance(signal, FirstSignal):
            return signal
        if not isinstance(signal, tuple) or len(signal) != 2:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            error = TypeError(f"signal={shown(signal)}: give its name and its data: signal=('approve', data)")
            return cls("", error, "")
        name, data = signal
        return cls(name, taken(lambda: written(data, of_signal(name))), new_id())


class Start(NamedTuple):
    """A run to start. `known`: the workflow if it is registered here; `data`: the input as JSON."""

    workflow: Workflow[Any, Any] | str
    known: Workflow[Any, Any] | None
    version: str | None
    data: Taken
    run_id: str | None
    if_exists: str
    asked: Sender
    trace: Trace | None
    signal: FirstSignal | None

    @property
    def codec(self) -> Codec | None:
        return None if self.known is None else self.known.output

    def of_which(self) -> tuple[str, str | None]:
        """The id of the workflow, and the version to start. Raises ConfigError."""
        if isinstance(self.workflow, str):
            version = self.known.version if self.version is None and self.known is not None else self.version
            return users_own(self.workflow), version
        if not isinstance(self.workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise ConfigError(f"{self.workflow!r} is not a workflow; pass a registered one, or the id of one that a worker knows")
        return self.workflow.id, self.workflow.version


async def start(gateway: Gateway, asked: Start) -> Run[Any]:
    """Start the run. Raises as `Client.start_workflow` does."""
    log = gateway.connected()
    workflow_id, version = asked.of_which()
    if asked.if_exists not in IF_EXISTS:
        raise ValueError(f"if_exists={shown(asked.if_exists)}: it must be {' or '.join(map(repr, IF_EXISTS))}")
    data = untaken(asked.data)
    check_size(data, MAX_PAYLOAD_BYTES, f"the input of workflow {workflow_id!r}")
    request = gateway.ids()
    entries = partial(_entries, gateway, log, asked, workflow_id, version, data, request)
    if asked.run_id is not None:
        return await _named(gateway, log, asked, workflow_id, data, request, entries)
    watch = gateway.tail(request).expect(request)
    acks = await log.append(partition_of(request, log.partitions), list(entries()))
    return Run(gateway, request, asked.codec, watch, max(acks[0].offset, 0), new=True)


def _entries(
    gateway: Gateway, log: Log, asked: Start, workflow_id: str, version: str | None, data: bytes, request: str
) -> Iterator[Entry]:
    """The request to start, and the signal behind it. Raises as `started` and `signal_received` do."""
    run_id = request if asked.run_id is None else asked.run_id
    yield started(run_id, workflow_id, version, data, request=request, at=log.now(), asked=asked.asked, trace=asked.trace)
    if asked.signal is not None:
        name, sent = asked.signal.name, untaken(asked.signal.data)
        check_size(sent, MAX_PAYLOAD_BYTES, of_signal(name))
        yield signal_received(run_id, name, sent, request=asked.signal.request, at=log.now(), asked=asked.asked)


async def _named(
    gateway: Gateway,
    log: Log,
    asked: Start,
    workflow_id: str,
    data: bytes,
    request: str,
    made: Callable[[], Iterator[Entry]],
) -> Run[Any]:
    """Start a run under an id of the caller's, or find the one that has it."""
    assert asked.run_id is not None
    run_id = checked_run_id(asked.run_id)
    existing = (await gateway.views.read(run_id)).run
    entries = list(made())
    appended = existing is None or existing.ended
    if appended:
        await log.append(partition_of(run_id, log.partitions), entries)
        existing = (await gateway.views.read(run_id)).run
        if existing is not None and existing.request == request:
            return Run(gateway, run_id, asked.codec, start=existing.start, new=True)
    if existing is None:
        raise ConfigError(f"run {run_id!r} was not accepted by {log.name}: its workers use an older format; upgrade them")
    if existing.workflow != workflow_id or not same_json(existing.start_input, orjson.loads(data)):
        raise RunAlreadyExists(
            f"run {run_id!r} exists already, of workflow {existing.workflow!r} and with another input; choose another run id"
        )
    if asked.if_exists == "reject":
        raise RunAlreadyExists(f"run {run_id!r} has existed since {said(existing.started_at)}")
    if asked.signal is not None and (not appended or existing.ended):
        await ask(gateway, entries[1], asked.signal.request)
    return Run(gateway, run_id, asked.codec, start=existing.start)
