"""How anyone outside a worker reads runs: from the log, by the same fold.

A run depends on the claims and its own records only, so `read_run` folds just those. `Tail` follows one partition and
tells who waits for the end of a run; it waits on the log's outcome, never on a worker.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter
from weakref import WeakSet

from .errors import LogUnavailable
from .events import Event, parse
from .fold import PartitionState, RunState, fold
from .log import CLAIM_KEY, Log, Record, partition_of

LINGER_S = 5.0
READ_RECORDS = 2000
_NO_END = (b'{"type":"step-', b'{"type":"sleep-', b'{"type":"wait-', b'{"type":"attempt-', b'{"type":"signal-')
"""How records begin that cannot end a run, nor decide whether another may: not worth decoding here."""


class RunView:
    """One run as its records tell it: the folded state, the accepted events, and who owns its partition now."""

    __slots__ = ("events", "owned", "run")

    def __init__(self, run: RunState | None, events: list[Event], owned: bool) -> None:
        self.run = run
        self.events = events
        self.owned = owned


async def read_run(log: Log, run_id: str, *, events: bool = False) -> RunView:
    """The run as it is now; its events only if asked for."""
    partition = partition_of(run_id, log.partitions)
    records = await log.find(partition, (run_id, CLAIM_KEY))
    state = PartitionState(partition, log.partitions)
    run: RunState | None = None
    found: list[Event] = []
    for record in records:
        change = fold(state, record)
        if change is None or change.run is None:
            continue
        if change.run is not run:
            run = change.run
            found.clear()
        if events:
            found.append(parse(change.event, record.offset, record.timestamp))
    return RunView(run, found, state.owner is not None)


class Watch:
    """Waits for the end of one run; kept alive by whoever waits."""

    __slots__ = ("__weakref__", "ended", "held", "state")

    def __init__(self, state: PartitionState, held: list[Record] | None = None) -> None:
        self.state = state
        self.held = held  # what the tail brought while the past was being read
        self.ended: asyncio.Future[RunState] = asyncio.get_running_loop().create_future()

    def take(self, record: Record) -> None:
        if self.held is not None:
            self.held.append(record)
            return
        change = fold(self.state, record)
        if change is not None and change.run is not None and change.run.ended and not self.ended.done():
            self.ended.set_result(change.run)

    def catch_up(self, past: Sequence[Record]) -> None:
        """Fold what has been; of several runs that had the id one after another, the last one counts."""
        held, self.held = self.held or [], None
        last: RunState | None = None
        for record in (*past, *held):
            change = fold(self.state, record)
            if change is not None and change.run is not None:
                last = change.run
        if last is not None and last.ended:
            self.ended.set_result(last)


class Tail:
    """Follows one partition as long as somebody waits for a run of it to end."""

    def __init__(self, log: Log, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._watches: dict[str, WeakSet[Watch]] = {}
        self._claims = PartitionState(partition, log.partitions)
        self._claimed: list[tuple[int, str | None, int]] = []  # (offset, owner, format) of every accepted claim
        self._position = 0  # all claims below are among these
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    def expect(self, run_id: str) -> Watch | None:
        """A watch for a run that is about to be started; None while nobody follows the partition."""
        if self._ready is None or not self._ready.done():
            return None
        watch = Watch(self._state_at(self._claims.offset))
        self._add(run_id, watch)
        return watch

    async def watch(self, run_id: str, start: int = 0) -> Watch:
        """A watch for a run that may have begun, or ended, long ago; none of its records is below `start`."""
        watch = Watch(PartitionState(self._partition, self._log.partitions), [])
        self._add(run_id, watch)
        await self._follow()
        start = min(start, self._position)
        watch.state = self._state_at(start)
        watch.catch_up(await self._log.find(self._partition, (run_id, CLAIM_KEY), start))
        return watch

    def _state_at(self, offset: int) -> PartitionState:
        """Nothing but the claim that was current at an offset."""
        state = PartitionState(self._partition, self._log.partitions)
        state.offset = offset
        at = bisect_left(self._claimed, offset, key=itemgetter(0))
        if at:
            state.claim, state.owner, state.format = self._claimed[at - 1]
        return state

    def _claim(self, record: Record) -> None:
        if fold(self._claims, record) is not None:
            self._claimed.append((self._claims.claim, self._claims.owner, self._claims.format))

    def _add(self, run_id: str, watch: Watch) -> None:
        watches = self._watches.get(run_id)
        if watches is None:
            watches = self._watches[run_id] = WeakSet()
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
            self._fail(ready, LogUnavailable(f"the client of {self._log.name} was closed while a result was waited for"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to those who wait
            self._fail(ready, error)
        finally:
            self._watches.clear()
            self._ready = None

    def _fail(self, ready: asyncio.Future[None], error: Exception) -> None:
        waiting = [watch.ended for watches in self._watches.values() for watch in watches]
        for future in (ready, *waiting):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever does not wait yet is not told

    def _take(self, record: Record) -> None:
        key = record.key
        if key == CLAIM_KEY:
            self._claim(record)
            for watches in self._watches.values():
                for watch in watches:
                    watch.take(record)
        elif key in self._watches and not record.value.startswith(_NO_END):
            waiting = False
            for watch in self._watches[key]:
                watch.take(record)
                waiting = waiting or not watch.ended.done()
            if not waiting:
                del self._watches[key]

    def _wanted(self) -> bool:
        """Drop what nobody waits for any more; whether anybody does."""
        idle = [run_id for run_id, watches in self._watches.items() if not any(not watch.ended.done() for watch in watches)]
        for run_id in idle:
            del self._watches[run_id]
        return bool(self._watches)

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
