"""Appends a request to an open run, once."""

from __future__ import annotations

from ..errors import RunEnded, RunNotFound
from ..log import Ack, Entry, partition_of
from .run import Gateway


async def ask(gateway: Gateway, entry: Entry, request: str) -> Ack | None:
    """Append the entry of `request`; returns None if the run has it already. Raises RunNotFound and RunEnded."""
    log, run_id = gateway.connected(), entry.key
    run = (await gateway.views.read(run_id)).run
    if run is not None and request in run.requests:
        return None
    if run is None:
        raise RunNotFound(run_id, log.name)
    if run.ended:
        raise RunEnded(run_id, log.name, run.phase)
    [ack] = await log.append(partition_of(run_id, log.partitions), [entry])
    return ack
