"""Answers to callbacks: each is appended to the run's history, and read back to learn whether the fold accepted it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple

from ..events import decode
from ..log import MAX_PAYLOAD_BYTES, Ack, Entry, Log, partition_of
from ..operations.callback import CallbackId
from ..values.duration import Duration
from .requests import Sender, Taken, callback_completed, callback_failed, callback_heartbeat, check_size, untaken
from .run import Gateway

DATA = "the data of the callback"


class Answered(NamedTuple):
    """An answer that is in the log. `counts`: whether the fold accepted it, or a request of the same id before it; None for `ack`
    says the latter."""

    counts: bool
    run_id: str
    ack: Ack | None


async def complete(
    gateway: Gateway, id: str, data: Taken, timeout: Duration | None, asked: Sender, request: str | None = None
) -> Answered:
    """Answer with data. Raises CallbackIdInvalid and RunNotFound, as `fail` and `heartbeat` do. `request`: the id of this answer;
    without it a new one."""
    callback, log, key = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    encoded = untaken(data)
    check_size(encoded, MAX_PAYLOAD_BYTES, DATA)
    entry = callback_completed(callback, encoded, request=key, at=log.now(), asked=asked)
    return await _send(gateway, entry, key, timeout, shared=request is not None)


async def counts(answer: Coroutine[Any, Any, Answered]) -> bool:
    """Whether an answer counts."""
    return (await answer).counts


async def fail(
    gateway: Gateway, id: str, type: str, message: str, timeout: Duration | None, asked: Sender, request: str | None = None
) -> Answered:
    """Answer with an error. Raises ValueError for a type or message that is not valid."""
    callback, log, key = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    entry = callback_failed(callback, type, message, request=key, at=log.now(), asked=asked)
    return await _send(gateway, entry, key, timeout, shared=request is not None)


async def heartbeat(gateway: Gateway, id: str, timeout: Duration | None, asked: Sender, request: str | None = None) -> Answered:
    """Send a heartbeat."""
    callback, log, key = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    entry = callback_heartbeat(callback, request=key, at=log.now(), asked=asked)
    return await _send(gateway, entry, key, timeout, shared=request is not None)


async def _send(gateway: Gateway, entry: Entry, request: str, timeout: Duration | None, *, shared: bool) -> Answered:
    """Append the answer, unless the run has had its request. `shared`: others may send the same request id meanwhile."""
    log, run_id = gateway.connected(), entry.key
    partition = partition_of(run_id, log.partitions)
    async with gateway.patience(timeout):
        view = await gateway.views.read(run_id)
        if request in view.found(log).requests:
            return Answered(True, run_id, None)
        seen = view.state.offset
        [ack] = await log.append(partition, [entry])
        run = (await gateway.views.read(run_id)).run
        counts = run is not None and request in run.requests
        if counts and shared and await _first(log, partition, run_id, request, seen) != entry.value:
            return Answered(True, run_id, None)
    return Answered(counts, run_id, ack)


async def _first(log: Log, partition: int, run_id: str, request: str, start: int) -> bytes | None:
    """The first record of the request at or behind an offset."""
    for record in await log.find(partition, (run_id,), start):
        if (decode(record.value) or {}).get("request") == request:
            return record.value
    return None
