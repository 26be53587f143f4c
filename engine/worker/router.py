"""The inbox router: turns what anyone put into the inbox into records of the history, or into dead letters.

A good request becomes one history record that says where it was found, so that one that is read again is known, however
late; a router may die anywhere. For that it must leave no gaps: what was received is appended in its order, and nothing that
comes after it before all of it is durable. A start of
a workflow that is known here is checked against its model; one that is not known is passed on and waits for a worker
that knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..authoring.workflow import Registry
from ..client.requests import cancel_requested, signal_received, started
from ..errors import ConfigError, ErrorInfo, InputInvalid, LogUnavailable, message_of
from ..log import Entry, Inbox, InboxRecord, Log, partition_of
from ..values.digits import held, raw
from .inbox import Refused, Request, parse, place_of
from .interrupts import from_keyboard
from .watchdog import Stuck, Watch

logger = logging.getLogger("stepfold.worker")

PAUSE_S = 1.0


class Router:
    """Serves one member's share of the inbox until cancelled."""

    def __init__(self, log: Log, inbox: Inbox, registry: Registry, max_payload_bytes: int, watch: Watch) -> None:
        self._log = log
        self._inbox = inbox
        self._registry = registry
        self._max_payload_bytes = max_payload_bytes
        self._watch = watch

    async def run(self) -> None:
        while True:
            try:
                records = await self._inbox.receive()
                await self._route(records)
                await self._inbox.done(records)
            except LogUnavailable as error:
                logger.warning("%s: the inbox: %s; trying again", self._log.name, error)
                await asyncio.sleep(PAUSE_S)

    async def _route(self, records: Sequence[InboxRecord]) -> None:
        entries: dict[int, list[Entry]] = defaultdict(list)
        for record in records:
            try:
                entry = self._entry(record)
            except Refused as refusal:
                logger.warning("inbox record %s goes to the dead letters: %s", record.place, refusal)
                await self._inbox.refuse(record, str(refusal))
            else:
                entries[partition_of(entry.key, self._log.partitions)].append(entry)
        await asyncio.gather(*(self._log.append(partition, batch) for partition, batch in entries.items()))

    def _entry(self, record: InboxRecord) -> Entry:
        """The history record for an inbox record. Raises Refused."""
        request = parse(record)
        try:
            entry = self._watch.ask(
                lambda: (f"the check of inbox record {record.place}", {}), partial(self._check, request, record)
            )
        except Stuck:
            at = ", ".join(self._watch.lines) or "a place that cannot be told"
            raise Refused(f"checking it did not come back: a validator of the input blocks, or spins (at {at})") from None
        if len(entry.value) > self._log.max_value_bytes:  # all its fields together, not only the data
            raise Refused(f"it would be {len(entry.value):,} bytes in the history; the limit is {self._log.max_value_bytes:,}")
        return entry

    def _check(self, request: Request, record: InboxRecord) -> Entry:
        try:
            return self._checked(request, place_of(record), self._log.now())
        except (Refused, Stuck):
            raise
        except (InputInvalid, ConfigError, ValueError) as error:
            raise Refused(message_of(error)) from error
        except BaseException as error:  # a model's validator may raise anything: this record is refused
            if from_keyboard(error):
                raise
            raise Refused(f"checking it failed: {ErrorInfo.of(error)}") from error

    def _checked(self, request: Request, place: dict[str, Any] | None, at: int) -> Entry:
        data = raw(request.data)
        if len(data) > self._max_payload_bytes:
            raise Refused(f"its data is {len(data):,} bytes; the limit is {self._max_payload_bytes:,}")
        if request.kind == "start":
            assert request.workflow is not None and request.run_id is not None
            workflow = self._registry.find(request.workflow, request.version)
            data = held(request.data) if workflow is None else workflow.encode_json(request.data)
            return started(request.run_id, request.workflow, request.version, data, request=request.id, at=at, place=place)
        if request.kind == "signal":
            if request.run_id is None or request.signal is None:
                raise Refused("a signal without `run_id`: named signals are not served yet; address the signal to a run")
            data = held(request.data)
            return signal_received(request.run_id, request.signal, data, request=request.id, at=at, place=place)
        if request.kind == "cancel":
            assert request.run_id is not None
            return cancel_requested(request.run_id, request.reason, request=request.id, at=at, place=place)
        raise Refused(f"event {request.event!r}: events trigger no workflows yet; send a start")
