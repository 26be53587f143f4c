"""Follows a log with projections: reads on the event loop, and hands each batch to the database thread.

It does not need workers: it can also follow a log that no worker serves. If a projection fails, it stops and the others continue.
The runner waits until outages of the log and the database are over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from stepfold.client.client import Client
from stepfold.errors import ConfigError, LogUnavailable, ProjectionFailed
from stepfold.log import Log, Reader
from stepfold.marks import Mark, moved
from stepfold.values.backoff import Pauses
from stepfold.values.duration import Duration, duration_ms

from .base import Projection
from .feed import POSITIONS, REBUILD, Database, Feed, Stale, brief, check, is_outage, is_sound, marks_in
from .reading import Readers

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("stepfold.projections")

BATCH_RECORDS = 1000
"""The most records in one transaction."""
RETRY_S = (0.2, 5.0)
"""The first and the longest pause before the runner tries the log or the database again."""
POLL_S = 0.1
NOT_RUNNING = "the projections are not running: use the runner inside `async with ProjectionRunner(...) as runner:`"


class Lag(NamedTuple):
    """How far a projection is in one partition: its position, and the offset at which the log ends.

    `stopped`: why the projection has stopped there; None if it has not. The rows of a stopped projection may belong to another
    log.
    """

    projection: str
    partition: int
    position: int
    end: int
    stopped: str | None = None

    @property
    def behind(self) -> int:
        """The number of offsets that are not applied."""
        return max(0, self.end - self.position)


def positions(connection: sa.Connection, projection: str) -> dict[int, int]:
    """Partition -> position of a projection in the tables that this connection sees: all records below it are applied."""
    query = sa.select(POSITIONS.c.partition, POSITIONS.c.position).where(POSITIONS.c.projection == projection)
    return {row.partition: row.position for row in connection.execute(query.order_by(POSITIONS.c.partition))}


class _Follower:
    """A feed, with its reader and its task on the event loop."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.reader: Reader | None = None
        self.busy = False
        self.task: asyncio.Task[None] | None = None
        self.trouble = ""
        self.troubled_since: float | None = None  # since when it has made no progress because of errors, by the loop's clock


async def differs(log: Log, partition: int, position: int, marks: Sequence[Mark], bounds: tuple[int, int]) -> str | None:
    """How the log differs from the records applied below `position`, in words; None if it does not."""
    _, end = bounds
    offset = await moved(log, partition, marks, *bounds)
    restored = "it was restored from an older copy, was recreated, or has lost its end"
    if offset is not None and offset < end:
        return f"offset {offset} holds another one ({restored})"
    if offset is not None or position > end:
        return f"it ends at offset {end}, and they go up to {position} ({restored})"
    return None


class ProjectionRunner:
    """Keeps projections up to date with a log, from `async with` until its end.

    `source`: a client, or an open log. `database`: an SQLAlchemy URL or engine; `default_database(log)` by default.
    `on_progress` is called after each batch, on the event loop. `patience`: how long `catch_up` and `rebuild` wait for a log or
    database that cannot be read before they raise LogUnavailable; without it they wait until it can be read.

    Entering raises LogUnavailable, and ConfigError if the database cannot be used. `failures` holds the error of each stopped
    projection, by its name; `catch_up` and `wait` raise it.
    """

    def __init__(
        self,
        source: Client | Log,
        projections: Sequence[Projection],
        *,
        database: str | sa.URL | sa.Engine | None = None,
        on_progress: Callable[[Lag], None] | None = None,
        patience: Duration | None = None,
    ) -> None:
        check(projections)
        self.log: Log = source.log if isinstance(source, Client) else source
        self.failures: dict[str, ProjectionFailed | ConfigError] = {}
        self._client = source if isinstance(source, Client) else None
        self._projections = list(projections)
        self._database = Database(self.log, database)
        self._on_progress = on_progress
        self._patience_s = None if patience is None else duration_ms(patience) / 1000
        self._followers: dict[str, list[_Follower]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._readers: Readers | None = None
        self._news = asyncio.Event()
        self._undo = contextlib.AsyncExitStack()

    @property
    def engine(self) -> sa.Engine:
        """The database, for reading. A reader that keeps a connection to an in-memory database blocks everything else."""
        return self._database.engine

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            if self._client is not None:
                await undo.enter_async_context(self._client)
            self._thread = ThreadPoolExecutor(1, "stepfold-projections")
            self._readers = Readers(self._database.engine)
            undo.push_async_callback(self._close)
            await self._do(self._database.open)
            for projection in self._projections:
                await self._start(projection)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    async def _close(self) -> None:
        for name in list(self._followers):
            await self._stop(name)
        thread, self._thread = self._thread, None
        readers, self._readers = self._readers, None
        if readers is not None:
            await readers.close()
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)
        self._database.close()

    # -- public methods

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the projections that the runner keeps up to date."""
        return tuple(projection.name for projection in self._projections)

    async def catch_up(self) -> None:
        """Apply all records up to the current end of the log.

        Raises the first failure after all other projections are up to date, and LogUnavailable if the runner has a `patience`.
        """
        await self._catch_up(self._projections)

    async def rebuild(self, *names: str) -> None:
        """Empty the tables of these projections (of all, without names), and apply the log from its beginning to its current end.

        Raises the same errors as `catch_up`, and ConfigError for an unknown name.
        """
        self._running()
        unknown = set(names) - {projection.name for projection in self._projections}
        if unknown:
            raise ConfigError(f"this runner has no projection {', '.join(map(repr, sorted(unknown)))}")
        chosen = [projection for projection in self._projections if not names or projection.name in names]
        for projection in chosen:
            await self._stop(projection.name)
            self.failures.pop(projection.name, None)
            try:
                await self._do(self._database.wipe, projection)
            finally:  # if the database does not answer, follow as before; `rebuild` can be called again
                await self._start(projection)
        await self._catch_up(chosen)

    async def lag(self) -> list[Lag]:
        """The lag of every projection in the database, by name and partition; `stopped` is set if its rows belong to another log.

        Raises LogUnavailable, and ConfigError if the database cannot be read.
        """
        order = POSITIONS.c.projection, POSITIONS.c.partition
        try:
            rows = await self.query(lambda connection: connection.execute(sa.select(POSITIONS).order_by(*order)).all())
        except SQLAlchemyError as error:
            raise ConfigError(f"the positions in {self._database.name} cannot be read: {brief(error)}. {REBUILD}") from error
        return [await self._lag(row) for row in rows if is_sound(row) and row.partition < self.log.partitions]

    async def _lag(self, row: sa.Row[Any]) -> Lag:
        start, end = await self.log.bounds(row.partition)
        stopped = None if row.stopped is None else str(row.stopped)
        why = await differs(self.log, row.partition, row.position, marks_in(row), (start, end))
        if row.log_id != self.log.id:
            why = (
                "it was recreated" if self._database.is_default else f"they are of another log, or {self.log.name} was recreated"
            )
        if why is not None:
            stopped = f"its rows were made from other records than the log holds now: {why}. {REBUILD}"
        return Lag(row.projection, row.partition, row.position, end, stopped)

    async def query(self, ask: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `ask(connection, ...)` off the event loop. It sees whole transactions only, and its writes are rolled back."""
        return await self._reader().ask(lambda connection: ask(connection, *args, **kwargs))

    async def query_within(
        self, limit_s: float, ask: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `query`, with a limit: after `limit_s` seconds the database stops its work, and this raises TimeoutError."""
        return await self._reader().ask(lambda connection: ask(connection, *args, **kwargs), limit_s)

    async def reached(self, partition: int, offset: int, limit_s: float) -> bool:
        """Whether all projections have applied the partition's records below `offset`, or up to the log's end if that is lower.

        Waits up to `limit_s` seconds for that. Raises LogUnavailable.
        """
        self._running()
        _, end = await self.log.bounds(partition)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not all(self._reached(of[partition], min(offset, end)) for of in self._followers.values()):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._news.wait()
                return True
        return False

    async def wait(self) -> None:
        """Wait until a projection fails, and raise its error."""
        while not self.failures:
            await self._news.wait()
        raise next(iter(self.failures.values()))

    # -- following the log

    async def _start(self, projection: Projection) -> None:
        """Start to follow the log. The projection's tables exist when this returns, unless loading fails."""
        followers = [_Follower(Feed(self._database, projection, partition)) for partition in range(self.log.partitions)]
        self._followers[projection.name] = followers
        with contextlib.suppress(Exception):  # the follower gets the error again, and waits or fails
            await self._do(followers[0].feed.load)
        for follower in followers:
            name = f"stepfold-{projection.name}-{follower.feed.partition}"
            follower.task = asyncio.create_task(self._follow(follower), name=name)

    async def _stop(self, name: str) -> None:
        tasks = [follower.task for follower in self._followers.pop(name) if follower.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, follower: _Follower) -> None:
        """Feed the projection until it fails."""
        feed = follower.feed
        backoff = Pauses(*RETRY_S)
        while True:
            position = feed.position
            try:
                await self._feed(follower)
            except Stale:
                feed.state = None
                continue
            except ConfigError as error:
                self._fail(feed.projection.name, error)
                return
            except Exception as error:  # noqa: BLE001 - any error is waited out or ends this projection
                feed.state = None
                if not isinstance(error, LogUnavailable) and not is_outage(error):
                    await self._stopped(feed, error)
                    return
                if feed.position > position:
                    backoff.reset()
                pause_s = backoff.next_s()
                follower.trouble = brief(error)
                if follower.troubled_since is None:
                    follower.troubled_since = asyncio.get_running_loop().time()
                logger.warning("projection %s: %s; trying again in %.1f s", feed.projection.name, brief(error), pause_s)
                await asyncio.sleep(pause_s)

    async def _stopped(self, feed: Feed, error: Exception) -> None:
        """Stop this projection because of `error`, and store and log the reason."""
        if isinstance(error, ProjectionFailed):
            failure = error
        else:
            failure = feed.failed(f"{type(error).__name__}: {brief(error)}", feed.position)
            failure.__cause__ = error
        with contextlib.suppress(SQLAlchemyError):  # if the database cannot store the reason, it is still logged
            await self._do(feed.stop, str(failure))
        self._fail(feed.projection.name, failure)

    async def _feed(self, follower: _Follower) -> None:
        feed = follower.feed
        if feed.state is None:
            await self._do(feed.load)
        assert feed.state is not None
        needed = feed.state.offset
        start, end = await self.log.bounds(feed.partition)
        why = await differs(self.log, feed.partition, feed.position, feed.marks, (start, end))
        if why is not None:
            await self._do(feed.begin_again, why)
        if needed < start:
            raise feed.failed(
                f"the log holds offsets {start} to {end}, and those from {needed} on are needed: its beginning is gone. "
                f"Replace it with a copy that has it, or use a new namespace",
                feed.position,
            )
        try:
            if not await self._do(feed.join):
                await self._read(follower, needed, end)
            await self._ride(follower)
        finally:
            await self._do(feed.leave)

    async def _read(self, follower: _Follower, needed: int, end: int) -> None:
        """Feed the records from `needed` on, until another feed applies them for this one."""
        feed, rides = follower.feed, False
        reader = follower.reader = self.log.reader(feed.partition, needed)
        try:
            while not rides:
                records = await reader.read(BATCH_RECORDS, None)
                if not records:
                    continue
                follower.busy = True
                rides = await self._do(feed.take, records)
                follower.busy = False
                follower.troubled_since = None
                self._tell()
                if self._on_progress is not None:
                    end = max(end, feed.position)
                    for one in (feed, *feed.riders):
                        self._on_progress(Lag(one.projection.name, one.partition, one.position, end))
        finally:
            follower.reader = None
            follower.busy = False
            await reader.close()

    async def _ride(self, follower: _Follower) -> None:
        """Wait while another feed applies the records for this one, then raise Stale."""
        follower.troubled_since = None
        self._tell()
        await asyncio.shield(asyncio.wrap_future(follower.feed.dismissed))
        raise Stale

    def _reached(self, follower: _Follower, end: int) -> bool:
        """Whether all records below `end` are applied. Compares the reader's position too, because it also passes gaps in the
        log."""
        feed = follower.feed
        takes = feed.leader or feed
        of_partition = [followers[feed.partition] for followers in self._followers.values()]
        reads = next((other for other in of_partition if other.feed is takes), follower)
        if reads.reader is None or reads.busy:
            return False
        return feed.position >= end or reads.reader.position >= end

    def _fail(self, name: str, error: ProjectionFailed | ConfigError) -> None:
        if name in self.failures:
            return
        self.failures[name] = error
        logger.error("%s", error, exc_info=error.__cause__)
        for follower in self._followers[name]:
            if follower.task is not None and follower.task is not asyncio.current_task():
                follower.task.cancel()
        self._tell()

    async def _catch_up(self, projections: Sequence[Projection]) -> None:
        self._running()
        ends = await self._ends()
        for projection in projections:
            for follower in self._followers.get(projection.name, ()):
                end = ends[follower.feed.partition]
                while projection.name not in self.failures and not self._reached(follower, end):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._news.wait()
                    self._check_patience(follower)
        for projection in projections:
            if projection.name in self.failures:
                raise self.failures[projection.name]

    def _check_patience(self, follower: _Follower) -> None:
        if self._patience_s is None or follower.troubled_since is None:
            return
        waited_s = asyncio.get_running_loop().time() - follower.troubled_since
        if waited_s >= self._patience_s:
            feed = follower.feed
            raise LogUnavailable(
                f"projection {feed.projection.name!r} has made no progress in partition {feed.partition} for {waited_s:.0f} s: "
                f"{follower.trouble}"
            )

    async def _ends(self) -> list[int]:
        return [(await self.log.bounds(partition))[1] for partition in range(self.log.partitions)]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on the database thread, after the calls before it."""
        thread = self._running()
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: call(*args, **kwargs))

    def _running(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise ConfigError(NOT_RUNNING)
        return self._thread

    def _reader(self) -> Readers:
        if self._readers is None:
            raise ConfigError(NOT_RUNNING)
        return self._readers
