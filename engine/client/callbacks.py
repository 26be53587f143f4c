"""Answers to callbacks: each is appended to the run's history, and read back to learn whether the fold accepted it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple

from ..log import Ack, Entry, partition_of
from ..operations.callback import CallbackId
from ..values.duration import Duration
from ..worker.host import MAX_PAYLOAD_BYTES
from .requests import Sender, Taken, callback_completed, callback_failed, callback_heartbeat, check_size, untaken
from .run import Gateway

DATA = "the data of the callback"


class Answered(NamedTuple):
    """An answer that is in the log. `counts`: whether the fold accepted it, or a request of the same id before it."""

    counts: bool
    run_id: str
    ack: Ack


async def complete(
    gateway: Gateway, id: str, data: Taken, timeout: Duration | None, asked: Sender, request: str | None = None
) -> Answered:
    """Answer with data. As the two below, raises CallbackIdInvalid and RunNotFound; `request`: of this answer, else a new one."""
    callback, log, request = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    encoded = untaken(data)
    check_size(encoded, MAX_PAYLOAD_BYTES, DATA)
    return await _send(
        gateway, callback_completed(callback, encoded, request=request, at=log.now(), asked=asked), request, timeout
    )


async def counts(answer: Coroutine[Any, Any, Answered]) -> bool:
    """Whether an answer counts."""
    return (await answer).counts


async def fail(
    gateway: Gateway, id: str, type: str, message: str, timeout: Duration | None, asked: Sender, request: str | None = None
) -> Answered:
    """Answer with an error. Raises ValueError for a type or message that is not valid."""
    callback, log, request = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    return await _send(
        gateway, callback_failed(callback, type, message, request=request, at=log.now(), asked=asked), request, timeout
    )


async def heartbeat(gateway: Gateway, id: str, timeout: Duration | None, asked: Sender, request: str | None = None) -> Answered:
    """Send a heartbeat."""
    callback, log, request = CallbackId.parse(id), gateway.connected(), request or gateway.ids()
    return await _send(gateway, callback_heartbeat(callback, request=request, at=log.now(), asked=asked), request, timeout)


async def _send(gateway: Gateway, entry: Entry, request: str, timeout: Duration | None) -> Answered:
    log, run_id = gateway.connected(), entry.key
    async with gateway.patience(timeout):
        (await gateway.views.read(run_id)).found(log)
        [ack] = await log.append(partition_of(run_id, log.partitions), [entry])
        run = (await gateway.views.read(run_id)).run
    return Answered(run is not None and request in run.requests, run_id, ack)
