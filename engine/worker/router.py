"""The inbox router: turns records of the inbox into records of the history, or into dead letters.

A good request becomes one record of the history. The record says where the request was found, so the fold recognises a request
that is routed twice, however late. So a router may die at any point, as long as it leaves no gaps: it appends requests in the
order of the inbox, and begins the next portion only when all of the last one is durable. The router checks the input of a start
against the model of its workflow. If this worker does not know the workflow, the router passes the start on, and the run waits
for a worker that knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..authoring.workflow import Registry
from ..client.requests import (
    Sender,
    callback_completed,
    callback_failed,
    callback_heartbeat,
    cancel_requested,
    signal_received,
    started,
    users_own,
)
from ..errors import ConfigError, ErrorInfo, InputInvalid, LogUnavailable, message_of
from ..log import Entry, EntryTooLarge, Inbox, InboxRecord, Log, partition_of
from ..values.digits import held, raw
from .inbox import InboxRequest, Refused, parse, place_of
from .interrupts import from_keyboard
from .observer import Note, Observer
from .watchdog import Stuck, Watch

logger = logging.getLogger("stepfold.worker")

PAUSE_S = 1.0


class Router:
    """Serves one member's share of the inbox until it is cancelled."""

    def __init__(
        self, log: Log, inbox: Inbox, registry: Registry, max_payload_bytes: int, watch: Watch, observer: Observer | None = None
    ) -> None:
        self._log = log
        self._inbox = inbox
        self._registry = registry
        self._max_payload_bytes = max_payload_bytes
        self._watch = watch
        self._observer = observer

    async def run(self) -> None:
        told = ""
        while True:
            try:
                records = await self._inbox.receive()
                await self._route(records)
                await self._inbox.done(records)
                told = ""
            except LogUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    logger.warning("%s: the inbox: %s; trying again", self._log.name, told)
                await asyncio.sleep(PAUSE_S)

    async def _route(self, records: Sequence[InboxRecord]) -> None:
        routed: dict[int, list[tuple[InboxRecord, Entry]]] = defaultdict(list)
        for record in records:
            try:
                entry = self._entry(record)
            except Refused as refusal:
                await self._refuse(record, str(refusal))
            else:
                routed[partition_of(entry.key, self._log.partitions)].append((record, entry))
        await asyncio.gather(*(self._append(partition, batch) for partition, batch in routed.items()))

    async def _append(self, partition: int, batch: Sequence[tuple[InboxRecord, Entry]]) -> None:
        """Append requests in order. One that is too large for today's history goes to the dead letters."""
        while batch:
            try:
                await self._log.append(partition, [entry for _, entry in batch])
                self._note("inbox", len(batch))
                return
            except EntryTooLarge as error:
                refused = len(error.appended)
                self._note("inbox", refused)
                await self._refuse(batch[refused][0], message_of(error))
                batch = batch[refused + 1 :]

    async def _refuse(self, record: InboxRecord, reason: str) -> None:
        logger.warning("inbox record %s goes to the dead letters: %s", record.place, reason)
        await self._inbox.refuse(record, reason)
        self._note("dead-letter")

    def _note(self, note: Note, times: int = 1) -> None:
        if self._observer is not None:
            for _ in range(times):
                self._observer.noted(note)

    def _entry(self, record: InboxRecord) -> Entry:
        """The record of the history for a record of the inbox. Raises Refused."""
        request = parse(record)
        try:
            entry = self._watch.ask(
                lambda: (f"the check of inbox record {record.place}", {}), partial(self._check, request, record)
            )
        except Stuck:
            at = ", ".join(self._watch.lines) or "an unknown line"
            raise Refused(f"the check did not return: a validator of the input blocks, or spins (at {at})") from None
        if len(entry.value) > self._log.max_value_bytes:  # all its fields together, not only the data
            raise Refused(f"it would be {len(entry.value):,} bytes in the history; the limit is {self._log.max_value_bytes:,}")
        return entry

    def _check(self, request: InboxRequest, record: InboxRecord) -> Entry:
        try:
            return self._checked(request, place_of(record), self._log.now())
        except (Refused, Stuck):
            raise
        except (InputInvalid, ConfigError, ValueError) as error:
            raise Refused(message_of(error)) from error
        except BaseException as error:  # a model's validator may raise anything: the router refuses this record
            if from_keyboard(error):
                raise
            raise Refused(f"the check failed: {ErrorInfo.of(error)}") from error

    def _checked(self, request: InboxRequest, place: dict[str, Any] | None, at: int) -> Entry:
        data, asked = raw(request.data), Sender(request.by, request.why)
        if len(data) > self._max_payload_bytes:
            raise Refused(f"its data is {len(data):,} bytes; the limit is {self._max_payload_bytes:,}")
        if request.type == "start":
            assert request.workflow is not None and request.run_id is not None
            users_own(request.workflow)
            workflow = self._registry.find(request.workflow, request.version)
            data = held(request.data) if workflow is None else workflow.encode_json(request.data)
            named = request.run_id, request.workflow, request.version
            return started(*named, data, request=request.id, at=at, place=place, asked=asked, trace=request.trace)
        if request.type == "signal":
            if request.run_id is None or request.signal is None:
                raise Refused("a signal without `run_id`: named signals are not served yet; address the signal to a run")
            data = held(request.data)
            return signal_received(request.run_id, request.signal, data, request=request.id, at=at, place=place, asked=asked)
        if request.type == "cancel":
            assert request.run_id is not None
            reason = request.why if request.reason is None else request.reason
            return cancel_requested(request.run_id, reason, request=request.id, at=at, place=place, by=request.by)
        if request.callback is not None:
            if request.error is not None:
                return callback_failed(request.callback, *request.error, request=request.id, at=at, place=place, asked=asked)
            if request.heartbeat:
                return callback_heartbeat(request.callback, request=request.id, at=at, place=place, asked=asked)
            return callback_completed(request.callback, held(request.data), request=request.id, at=at, place=place, asked=asked)
        raise Refused(f"event {request.event!r}: events trigger no workflows yet; send a start")
