"""Reads runs outside a worker: from the log, by the same fold.

A run depends only on the claims and its own records. So `read_run` folds only those, and `RunViews` folds only the ones that
are new since its last read. `Tail` follows one partition and reports the end of runs; it waits for the log, never for a worker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from operator import itemgetter
from weakref import WeakSet

from ..core.fold import PartitionState, fold
from ..core.state import EXPECTED, RunState
from ..errors import LogUnavailable
from ..events import NEVER_ENDS, Event, parse
from ..log import CLAIM_KEY, Log, Record, partition_of

LINGER_S = 5.0
READ_RECORDS = 2000
KNOWN_RUNS = 1000
KNOWN_BYTES = 16_000_000
"""How many runs `RunViews` keeps, and how many bytes of records; it keeps at least one run."""


class RunView:
    """One run, read from its records: the folded state, the accepted events, and whether a worker owns its partition.

    `kept`: the number of signals kept for a run of this id that has not begun.
    """

    __slots__ = ("events", "kept", "owned", "run")

    def __init__(self, run: RunState | None, events: list[Event], owned: bool, kept: int) -> None:
        self.run = run
        self.events = events
        self.owned = owned
        self.kept = kept


async def read_run(log: Log, run_id: str, *, events: bool = False) -> RunView:
    """Read the run as it is now; with its events only if asked for. Raises LogUnavailable."""
    partition = partition_of(run_id, log.partitions)
    records = await log.find(partition, (run_id, CLAIM_KEY))
    state = PartitionState(partition, log.partitions)
    run: RunState | None = None
    found: list[Event] = []
    early: list[Event] = []  # signals that came since then for the next run of this id
    for record in records:
        change = fold(state, record)
        if change is None or (change.run is None and change.early is None):
            continue
        if change.run is not None and change.run is not run:
            run = change.run
            found, early = early, []
        if events:
            (found if change.early is None else early).append(parse(change.event, record.offset, record.timestamp))
    return RunView(run, found, state.owner is not None, state.kept_for(run_id, log.now()))


class _Known:
    """One run, folded as far as its records have been read."""

    __slots__ = ("last", "run", "size_bytes", "state")

    def __init__(self, state: PartitionState, records: Sequence[Record]) -> None:
        self.state = state
        self.run: RunState | None = None
        self.last = records[0]
        self.size_bytes = 0
        self.take(records)

    def take(self, records: Iterable[Record]) -> None:
        for record in records:
            change = fold(self.state, record)
            if change is not None and change.run is not None:
                self.run = change.run
            if record.offset > self.last.offset:
                self.last = record
                self.size_bytes += len(record.value)


class RunViews:
    """Reads runs and keeps their state, so that n signals to a run cost n reads of a record or two.

    Each read begins with the last record read before. If that record is another one, the log was cut off, made again or
    restored from a copy, and the run is read anew.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._size_bytes = 0

    async def read(self, run_id: str) -> RunView:
        """Read the run as it is now, without its events. Raises LogUnavailable.

        Use the state before you await anything: other reads change it.
        """
        partition = partition_of(run_id, self._log.partitions)
        known = self._known.get(run_id)
        if known is not None:
            last = known.last
            records = await self._log.find(partition, (run_id, CLAIM_KEY), last.offset)
            if not records or records[0] != last:
                known = None
            else:
                before = known.size_bytes
                known.take(records)  # `fold` skips records that another read has folded meanwhile
                if self._known.get(run_id) is known:
                    self._size_bytes += known.size_bytes - before
        if known is None:
            records = await self._log.find(partition, (run_id, CLAIM_KEY))
            if not records:
                self._drop(run_id)
                return RunView(None, [], owned=False, kept=0)
            known = _Known(PartitionState(partition, self._log.partitions), records)
        self._keep(run_id, known)
        return RunView(known.run, [], known.state.owner is not None, known.state.kept_for(run_id, self._log.now()))

    def clear(self) -> None:
        self._known.clear()
        self._size_bytes = 0

    def _keep(self, run_id: str, known: _Known) -> None:
        if self._known.get(run_id) is not known:
            self._drop(run_id)
            self._known[run_id] = known
            self._size_bytes += known.size_bytes
        self._known.move_to_end(run_id)
        while len(self._known) > 1 and (len(self._known) > KNOWN_RUNS or self._size_bytes > KNOWN_BYTES):
            self._drop(next(iter(self._known)))

    def _drop(self, run_id: str) -> None:
        known = self._known.pop(run_id, None)
        if known is not None:
            self._size_bytes -= known.size_bytes


class Watch:
    """Waits for the end of one run. Its tail holds it weakly, so the waiting code must hold it."""

    __slots__ = ("__weakref__", "ended", "held", "needs_all", "state")

    def __init__(self, state: PartitionState, held: list[Record] | None = None) -> None:
        self.state = state
        self.held = held  # records that the tail read while the past was being read
        self.needs_all = (
            # Until the run's version is known, any record may tell it, and with it how to decode the result; then few records
            # matter.
            True
        )
        self.ended: asyncio.Future[RunState] = asyncio.get_running_loop().create_future()

    @property
    def begun(self) -> bool:
        """Whether a run of the id is open; early signals do not count."""
        return any(run.phase != EXPECTED for run in map(self.state.runs.peek, self.state.runs.ids()))

    def take(self, record: Record) -> None:
        if self.held is not None:
            self.held.append(record)
            return
        change = fold(self.state, record)
        if change is None or change.run is None:
            return
        self.needs_all = change.run.version is None
        if change.run.ended and not self.ended.done():
            self.ended.set_result(change.run)

    def catch_up(self, past: Sequence[Record]) -> None:
        """Fold the past, then the held records; if the id was reused, the last run counts."""
        held, self.held = self.held or [], None
        last: RunState | None = None
        for record in (*past, *held):
            change = fold(self.state, record)
            if change is not None and change.run is not None:
                last = change.run
        if last is not None:
            self.needs_all = last.version is None
            if last.ended:
                self.ended.set_result(last)


class _Watches(WeakSet[Watch]):
    """The watches of one run."""

    needs_all = True  # whether any of them does


class Tail:
    """Follows one partition while anybody waits for the end of a run in it."""

    def __init__(self, log: Log, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._watches: dict[str, _Watches] = {}
        self._claims = PartitionState(partition, log.partitions)
        self._claimed: list[tuple[int, str | None, int]] = []  # (offset, owner, format) of every accepted claim
        self._position = 0  # `_claimed` holds all claims below this offset
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    def expect(self, run_id: str) -> Watch | None:
        """A watch for a run that is about to be started; None unless the tail follows the partition already."""
        if self._ready is None or not self._ready.done():
            return None
        watch = Watch(self._state_at(self._claims.offset))
        self._add(run_id, watch)
        return watch

    async def watch(self, run_id: str, start: int = 0) -> Watch:
        """A watch for a run that may have begun or ended long ago. It has no record below `start`. Raises LogUnavailable."""
        watch = Watch(PartitionState(self._partition, self._log.partitions), [])
        self._add(run_id, watch)
        await self._follow()
        start = min(start, self._position)
        watch.state = self._state_at(start)
        watch.catch_up(await self._log.find(self._partition, (run_id, CLAIM_KEY), start))
        return watch

    def _state_at(self, offset: int) -> PartitionState:
        """A state that holds only the claim in force at an offset."""
        state = PartitionState(self._partition, self._log.partitions)
        state.offset = offset
        at = bisect_left(self._claimed, offset, key=itemgetter(0))
        if at:
            state.claim, state.owner, state.format = self._claimed[at - 1]
            state.memory_ms = self._claims.memory_ms
        return state

    def _claim(self, record: Record) -> None:
        if fold(self._claims, record) is not None:
            self._claimed.append((self._claims.claim, self._claims.owner, self._claims.format))

    def _add(self, run_id: str, watch: Watch) -> None:
        watches = self._watches.get(run_id)
        if watches is None:
            watches = self._watches[run_id] = _Watches()
        watches.needs_all = True
        watches.add(watch)

    async def _follow(self) -> None:
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._ready), name=f"stepfold-tail-{self._partition}")
        await asyncio.shield(self._ready)

    async def _run(self, ready: asyncio.Future[None]) -> None:
        try:
            _, end = await self._log.bounds(self._partition)
            self._claims = PartitionState(self._partition, self._log.partitions)
            self._claimed = []
            for record in await self._log.find(self._partition, (CLAIM_KEY,)):
                self._claim(record)
            self._position = end
            reader = self._log.reader(self._partition, end)
            try:
                ready.set_result(None)
                quiet_s = LINGER_S
                while True:
                    records = await reader.read(READ_RECORDS, quiet_s)
                    for record in records:
                        self._take(record)
                    if records:
                        self._position = records[-1].offset + 1
                        quiet_s = LINGER_S
                    elif self._wanted():
                        quiet_s *= 2
                    else:
                        return
            finally:
                await reader.close()
        except asyncio.CancelledError:
            self._fail(ready, LogUnavailable(f"the client of {self._log.name} was closed while a call waited for a result"))
            raise
        except Exception as error:  # noqa: BLE001  # waiting callers get it
            self._fail(ready, error)
        finally:
            self._watches.clear()
            self._ready = None

    def _fail(self, ready: asyncio.Future[None], error: Exception) -> None:
        waiting = [watch.ended for watches in self._watches.values() for watch in watches]
        for future in (ready, *waiting):
            if not future.done():
                future.set_exception(error)
                future.exception()  # marks the error as retrieved: asyncio must not warn if nobody waits yet

    def _take(self, record: Record) -> None:
        key = record.key
        if key == CLAIM_KEY:
            self._claim(record)
            for watches in self._watches.values():
                for watch in watches:
                    watch.take(record)
            return
        watches = self._watches.get(key)
        if watches is None:
            return
        cannot_end = record.value.startswith(NEVER_ENDS)
        if cannot_end and not watches.needs_all:
            return
        waiting = watches.needs_all = False
        for watch in watches:
            if watch.needs_all or not cannot_end:
                watch.take(record)
            watches.needs_all = watches.needs_all or watch.needs_all
            waiting = waiting or not watch.ended.done()
        if not waiting:
            del self._watches[key]

    def _wanted(self) -> bool:
        """Drop runs that nobody waits for. Returns whether any are left."""
        idle = [run_id for run_id, watches in self._watches.items() if not any(not watch.ended.done() for watch in watches)]
        for run_id in idle:
            del self._watches[run_id]
        return bool(self._watches)

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
