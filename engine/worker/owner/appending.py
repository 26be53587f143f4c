"""The append queue of one partition: `emit` adds a decision, `run` appends all that waits at once while the queue fills again.

An acknowledged record is folded at once if it follows directly on the folded offset; otherwise the reader brings it. Only a
record that has come back in one of these ways counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from ...core.lifecycle import ENDS
from ...core.messages import EXTRA_BYTES, MOST_EXTRA_BYTES
from ...core.state import RunState
from ...errors import PayloadTooLarge
from ...events import PLAIN, SHAPES, decode, encode
from ...log import Ack, Entry, EntryTooLarge, Reader, Record, entry_of, record_of
from ..clock import STEADY_MS
from .ownership import Ownership

logger = logging.getLogger("stepfold.worker")

MAX_QUEUED = 2000
MAX_QUEUED_BYTES = 4_000_000
"""How long the append queue grows before code that tells much waits. Other records never wait."""


class Appending:
    """`take` folds acknowledged records and acts on them. `not_taken` decides something smaller for a decision that the log
    refuses.
    """

    def __init__(
        self,
        ownership: Ownership,
        take: Callable[[Sequence[Record]], None],
        not_taken: Callable[[RunState, dict[str, Any], PayloadTooLarge], None],
    ) -> None:
        self.compare = True  # compare the log's time with this worker's clock at the next append
        self._ownership = ownership
        self._log = ownership.log
        self._partition = ownership.partition
        self._take = take
        self._not_taken = not_taken
        self._max_value_bytes = ownership.log.max_value_bytes
        self._queue: list[Entry] = []
        self._queued_bytes = 0
        self._under_way = False
        self._drained = asyncio.Event()  # a waiting `flushed` clears it; set when the queue is empty
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether code that tells much should wait before it tells more."""
        return len(self._queue) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES

    def emit(self, run: RunState, type: str, at: int | None = None, /, **fields: Any) -> None:
        """Append a decision about a run. `at`: its time, None for now.

        Raises PayloadTooLarge for a record above the log's limit, and TypeError for what JSON cannot hold. Queued, such a record
        would stop the whole partition; raised here, it concerns this run alone.
        """
        ownership = self._ownership
        if not ownership.active:
            return
        event: dict[str, Any] = {
            "type": type,
            "v": PLAIN,
            "run_id": run.id,
            "at": self._log.now() if at is None else at,
            "claim": ownership.claim,
            **fields,
        }
        if run.version is None and type != "workflow-unknown":
            live = ownership.live.get(run.id)
            if live is not None:
                event["version"] = live.workflow.version
        value = encode(event)
        if len(value) > self._max_value_bytes - MOST_EXTRA_BYTES:
            self._check_size(run, event, len(value))
        self.append(entry_of((run.id, value)))

    def append(self, entry: Entry) -> None:
        """Append a record as it is."""
        if not self._queue:
            self._wake.set()
        self._queue.append(entry)
        self._queued_bytes += len(entry.value)

    def _check_size(self, run: RunState, event: dict[str, Any], size: int) -> None:
        """Raise PayloadTooLarge for a record that the log would refuse, or whose message to another run it might refuse."""
        largest = self._max_value_bytes
        if SHAPES[event["type"]].passes_on:
            largest -= EXTRA_BYTES
        elif event["type"] in ENDS and run.parent is not None:
            largest -= EXTRA_BYTES + len(orjson.dumps([*run.parent]))
        if size > largest:
            raise PayloadTooLarge(
                f"{_record_in_words(event)} has {size:,} bytes, and {self._log.name} takes {largest:,}: store what is large "
                "elsewhere and keep a reference to it"
            )

    async def run(self, reader: Reader) -> None:
        """Append what is in the queue, until cancelled. Raises LogUnavailable."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                entries, self._queue, self._queued_bytes = self._queue, [], 0
                self._under_way = True
                compare, self.compare = self.compare, False
                before = self._log.now() if compare else 0
                refused: EntryTooLarge | None = None
                try:
                    acks = await self._log.append(self._partition, entries)
                except EntryTooLarge as error:
                    acks, refused = error.appended, error
                finally:
                    self._under_way = False
                if compare and acks and acks[-1].offset >= 0:
                    self._compare_clocks(before, acks[-1].timestamp)
                self._take_own(reader, entries, acks)
                if refused is not None:
                    self._queue[:0] = entries[len(acks) + 1 :]
                    self._refused(entries[len(acks)], refused)
                del entries, acks, refused  # keeps no reference while this waits
            self._drained.set()

    async def flushed(self) -> None:
        """Wait until everything in the queue is durable, or the owner has ended."""
        while self._ownership.active and (self._queue or self._under_way):
            self._drained.clear()
            await self._drained.wait()

    def ended(self) -> None:
        """The owner has ended: nobody waits any longer for the queue."""
        self._drained.set()

    def clear(self) -> None:
        """Drop the queue."""
        self._queue.clear()
        self._queued_bytes = 0

    def _compare_clocks(self, before: int, timestamp: int) -> None:
        """Warn if the log's time of an append lies outside the interval from `before` to now."""
        ahead_ms = max(timestamp - self._log.now(), 0) or min(timestamp - before, 0)
        if abs(ahead_ms) > STEADY_MS:
            self._ownership.worker.clocks_differ(ahead_ms)

    def _refused(self, entry: Entry, error: EntryTooLarge) -> None:
        """The log does not take a record today, though it is below `max_value_bytes`: somebody has lowered the log's limit.

        As in `emit`, the step or run whose result it is fails, or its run is quarantined. The records behind it are appended
        without it: nothing acts on a record before the fold has it, so none of them depends on it.
        """
        state, event = self._ownership.state, decode(entry.value)
        run = None if state is None else state.runs.get(entry.key)
        if run is None or event is None or not self._ownership.active:
            return
        too_large = PayloadTooLarge(f"{_record_in_words(event)} does not fit into the log: {error}")
        logger.error("%s partition %d: %s", self._log.name, self._partition, too_large, extra={"run_id": run.id})
        self._not_taken(run, event, too_large)

    def _take_own(self, reader: Reader, entries: Sequence[Entry], acks: Sequence[Ack]) -> None:
        """Fold our own append as far as it follows directly on the folded offset; the reader brings the rest."""
        state = self._ownership.state
        assert state is not None
        offset = state.offset
        known: list[Record] = []
        for entry, ack in zip(entries, acks, strict=False):
            if ack.offset != offset:
                break
            known.append(record_of((offset, ack.timestamp, *entry)))
            offset += 1
        if known:
            reader.seek(offset)
            self._take(known)


def _record_in_words(event: dict[str, Any]) -> str:
    step = f", step {event['step_id']!r}," if "step_id" in event else ""
    return f"the record {event['type']} of run {event['run_id']!r}{step}"
