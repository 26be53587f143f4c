"""Reads runs outside a worker: from the log, by the same fold.

`read_run` reads one run with its events, and `follow` goes on with what comes. `RunViews` reads only the records that are new
since its last read. `Tail` follows one partition and reports the end of runs. All wait for the log, never for a worker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple
from weakref import WeakSet

from ..core.fold import PartitionState, fold
from ..core.state import RunState
from ..errors import LogUnavailable
from ..events import NEVER_ENDS, Event
from ..log import CLAIM_KEY, Log, Record, partition_of
from .view import RunHistory, RunView, state_for

LINGER_S = 5.0
NEWS_S = 1.0
READ_RECORDS = 2000
KNOWN_RUNS = 1000
KNOWN_BYTES = 16_000_000
"""How many runs `RunViews` keeps, and how many bytes of records; it keeps at least one run."""


async def read_run(log: Log, run_id: str) -> RunHistory:
    """Read the run as it is now, with its events. Raises LogUnavailable."""
    history = RunHistory(run_id, state_for(log, run_id))
    for record in await log.find(history.state.partition, (run_id, CLAIM_KEY)):
        history.take(record)
    return history


class News(NamedTuple):
    """One piece of news of a run. `event`: None if only the owner changed; `owner`: the worker that then owned the partition.

    `past`: later news was already known when this was yielded; `history` holds it.
    """

    event: Event | None
    history: RunHistory
    owner: str | None
    past: bool = False


async def follow(log: Log, run_id: str, *, wait_for_start: bool = False) -> AsyncGenerator[News]:
    """Yield all news of the run from its start, as it comes; stops after the event that ends the run.

    Raises LogUnavailable, and RunNotFound unless `wait_for_start` is set.
    """
    history = RunHistory(run_id, state_for(log, run_id))
    partition = history.state.partition
    _, end = await log.bounds(partition)
    past = _news(history, await log.find(partition, (run_id, CLAIM_KEY)))
    if not wait_for_start:
        history.found(log)
    for news in past:
        yield news._replace(past=news is not past[-1])
    reader = log.reader(partition, end)
    try:
        while history.run is None or not history.run.ended:
            for news in _news(history, await reader.read(1000, NEWS_S)):
                yield news
    finally:
        await reader.close()


def _news(history: RunHistory, records: Iterable[Record]) -> list[News]:
    """Take records into `history`. Earlier runs of this id ended long ago: they are no news."""
    news: list[News] = []
    for record in records:
        if record.key not in (history.run_id, CLAIM_KEY):
            continue
        before, change = history.run, history.take(record)
        if change is None or change.early is not None:
            continue
        if history.run is not before:
            news = [News(event, history, history.owner) for event in history.events]
        elif history.run is not None:
            news.append(News(None if change.run is None else history.events[-1], history, history.owner))
    return news


class _Known(RunView):
    """One run, folded as far as its records have been read."""

    __slots__ = ("last", "size_bytes")

    def __init__(self, run_id: str, state: PartitionState, records: Sequence[Record]) -> None:
        super().__init__(run_id, state)
        self.last = records[0]
        self.size_bytes = 0
        self.take_all(records)

    def take_all(self, records: Iterable[Record]) -> None:
        for record in records:
            self.take(record)
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
        """Read the run as it is now. Raises LogUnavailable.

        Use the view before you await anything: other reads change it.
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
                known.take_all(records)  # `fold` skips records that another read has folded meanwhile
                if self._known.get(run_id) is known:
                    self._size_bytes += known.size_bytes - before
        if known is None:
            records = await self._log.find(partition, (run_id, CLAIM_KEY))
            if not records:
                self._drop(run_id)
                return RunView(run_id, state_for(self._log, run_id))
            known = _Known(run_id, state_for(self._log, run_id), records)
        self._keep(run_id, known)
        return known

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


class RunWatch:
    """Waits for the end of one run. Its tail holds it weakly, so the waiting code must hold it."""

    __slots__ = ("__weakref__", "ended", "held", "needs_all", "view")

    def __init__(self, view: RunView, held: list[Record] | None = None) -> None:
        self.view = view
        self.held = held  # records that the tail read while the past was being read
        self.needs_all = (
            # Until the run's version is known, any record may tell it, and with it how to decode the result; then few records
            # matter.
            True
        )
        self.ended: asyncio.Future[RunState] = asyncio.get_running_loop().create_future()

    def take(self, record: Record) -> None:
        if self.held is not None:
            self.held.append(record)
        elif self.view.take(record) is not None:
            self._look()

    def catch_up(self, past: Sequence[Record]) -> None:
        """Fold the past, then the held records; if the id was reused, the last run counts."""
        held, self.held = self.held or [], None
        for record in (*past, *held):
            self.view.take(record)
        self._look()

    def _look(self) -> None:
        run = self.view.run
        if run is not None:
            self.needs_all = run.version is None
            if run.ended and not self.ended.done():
                self.ended.set_result(run)


class _RunWatches(WeakSet[RunWatch]):
    """The watches of one run."""

    needs_all = True  # whether any of them does


class Tail:
    """Follows one partition while anybody waits for the end of a run in it."""

    def __init__(self, log: Log, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._watches: dict[str, _RunWatches] = {}
        self._claims = PartitionState(partition, log.partitions)
        self._claimed: list[tuple[int, str | None, int]] = []  # (offset, owner, format) of every accepted claim
        self._position = 0  # `_claimed` holds all claims below this offset
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    def expect(self, run_id: str) -> RunWatch | None:
        """A watch for a run that is about to be started; None unless the tail follows the partition already."""
        if self._ready is None or not self._ready.done():
            return None
        watch = RunWatch(RunView(run_id, self._state_at(self._claims.offset)))
        self._add(run_id, watch)
        return watch

    async def watch(self, run_id: str, start: int = 0) -> RunWatch:
        """A watch for a run that may have begun or ended long ago. It has no record below `start`. Raises LogUnavailable."""
        watch = RunWatch(RunView(run_id, PartitionState(self._partition, self._log.partitions)), [])
        self._add(run_id, watch)
        await self._follow()
        start = min(start, self._position)
        watch.view.state = self._state_at(start)
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

    def _add(self, run_id: str, watch: RunWatch) -> None:
        watches = self._watches.get(run_id)
        if watches is None:
            watches = self._watches[run_id] = _RunWatches()
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
            self._fail(ready, self._closed())
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
            if self._ready is not None:  # the task was cancelled before it began
                self._fail(self._ready, self._closed())
                self._watches.clear()
                self._ready = None

    def _closed(self) -> LogUnavailable:
        return LogUnavailable(f"the client of {self._log.name} was closed while a call waited for a result")
