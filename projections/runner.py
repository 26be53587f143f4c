"""Follows a log with projections: reads on the event loop, and hands batch after batch to the database thread.

It knows nothing of workers; a log that is not served by any worker can be followed as well. A projection that fails stands
still, the others go on. Outages of the log and the database are waited out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from stepfold.backoff import Backoff
from stepfold.client import Client
from stepfold.errors import ConfigError, LogUnavailable, ProjectionFailed
from stepfold.log import Log, Reader

from .base import Projection
from .feed import POSITIONS, Database, Feed, Stale, brief, check

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("stepfold.projections")

BATCH_RECORDS = 1000
"""At most so many records go into one transaction."""
RETRY_S = (0.2, 5.0)
"""First and longest pause before the log or the database is tried again."""
POLL_S = 0.1


class Lag(NamedTuple):
    """How far a projection is in one partition: its position, and the offset at which the log ends."""

    projection: str
    partition: int
    position: int
    end: int

    @property
    def behind(self) -> int:
        """How many offsets are left."""
        return max(0, self.end - self.position)


class _Follower:
    """A feed as the event loop sees it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.reader: Reader | None = None
        self.busy = False
        self.task: asyncio.Task[None] | None = None

    def reached(self, end: int) -> bool:
        """Whether everything below `end` is applied. A reader passes gaps in the log, a position does not."""
        if self.reader is None or self.busy:
            return False
        return self.feed.position >= end or self.reader.position >= end


class ProjectionRunner:
    """Keeps projections up to date with a log, from `async with` until its end.

    `source`: a client, or a log that is open. `database`: an SQLAlchemy URL or engine, `default_database(log)` without one.
    `on_progress` is told after each batch, on the event loop.

    Entering raises ConfigError where the database cannot be used, and LogUnavailable. Why a projection has stopped is in
    `failures`, by its name; `catch_up` and `wait` raise it.
    """

    def __init__(
        self,
        source: Client | Log,
        projections: Sequence[Projection],
        *,
        database: str | sa.URL | sa.Engine | None = None,
        on_progress: Callable[[Lag], None] | None = None,
    ) -> None:
        check(projections)
        self.log: Log = source.log if isinstance(source, Client) else source
        self.failures: dict[str, ProjectionFailed | ConfigError] = {}
        self._client = source if isinstance(source, Client) else None
        self._projections = list(projections)
        self._database = Database(self.log, database)
        self._on_progress = on_progress
        self._followers: dict[str, list[_Follower]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._news = asyncio.Event()
        self._undo = contextlib.AsyncExitStack()

    @property
    def engine(self) -> sa.Engine:
        """The database, for reading. A reader that keeps a connection to an in-memory one holds everybody up."""
        return self._database.engine

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            if self._client is not None:
                await undo.enter_async_context(self._client)
            self._thread = ThreadPoolExecutor(1, "stepfold-projections")
            undo.push_async_callback(self._close)
            await self._do(self._database.open)
            for projection in self._projections:
                await self._start(projection)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._undo.aclose()

    async def _close(self) -> None:
        for name in list(self._followers):
            await self._stop(name)
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)
        self._database.close()

    # -- for its user

    async def catch_up(self) -> None:
        """Apply everything up to where the log ends now. Raises the first failure, when all others are there."""
        await self._catch_up(self._projections)

    async def rebuild(self, *names: str) -> None:
        """Empty the tables of these projections (of all, without names) and apply the log from its beginning to its end now."""
        self._running()
        unknown = set(names) - {projection.name for projection in self._projections}
        if unknown:
            raise ConfigError(f"this runner has no projection {', '.join(map(repr, sorted(unknown)))}")
        chosen = [projection for projection in self._projections if not names or projection.name in names]
        for projection in chosen:
            await self._stop(projection.name)
            self.failures.pop(projection.name, None)
            await self._do(self._database.wipe, projection)
            await self._start(projection)
        await self._catch_up(chosen)

    async def lag(self) -> list[Lag]:
        """How far every projection of this log is that the database knows, by name and partition."""
        columns = POSITIONS.c.projection, POSITIONS.c.partition, POSITIONS.c.position
        ours = sa.select(*columns).where(POSITIONS.c.log_id == self.log.id).order_by(*columns)
        rows = await self.query(lambda connection: connection.execute(ours).all())
        ends = await self._ends()
        return [Lag(name, partition, position, ends[partition]) for name, partition, position in rows]

    async def query(self, ask: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`ask(connection, ...)`, off the event loop and between two batches. What it writes is not kept."""

        def asked() -> T:
            with self._database.engine.connect() as connection:
                return ask(connection, *args, **kwargs)

        return await self._do(asked)

    async def wait(self) -> None:
        """Until a projection fails, and raise that."""
        while not self.failures:
            await self._news.wait()
        raise next(iter(self.failures.values()))

    # -- following the log

    async def _start(self, projection: Projection) -> None:
        """Its tables are there when this returns, unless it cannot be fed."""
        followers = [_Follower(Feed(self._database, projection, partition)) for partition in range(self.log.partitions)]
        self._followers[projection.name] = followers
        with contextlib.suppress(ConfigError, SQLAlchemyError):  # the follower meets it again, and waits or fails
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
        """Until the projection fails."""
        feed = follower.feed
        backoff = Backoff(*RETRY_S)
        while True:
            position = feed.position
            try:
                await self._feed(follower)
            except Stale:
                feed.state = None
                continue
            except (LogUnavailable, OperationalError, InterfaceError) as error:
                feed.state = None
                if feed.position > position:
                    backoff.reset()
                pause_s = backoff.next_s()
                logger.warning("projection %s: %s; trying again in %.1f s", feed.projection.name, brief(error), pause_s)
                await asyncio.sleep(pause_s)
            except (ConfigError, ProjectionFailed) as error:
                self._fail(feed.projection.name, error)
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends this projection and is told
                failure = feed.failed(f"{type(error).__name__}: {brief(error)}", feed.position)
                failure.__cause__ = error
                self._fail(feed.projection.name, failure)
                return

    async def _feed(self, follower: _Follower) -> None:
        feed = follower.feed
        if feed.state is None:
            await self._do(feed.load)
        assert feed.state is not None
        needed = feed.state.offset
        start, end = await self.log.bounds(feed.partition)
        if needed < start or feed.position > end:
            raise feed.failed(
                f"the log holds offsets {start} to {end}, and those from {needed} to {feed.position} are needed: records were "
                f"lost. Restore the log from a backup, or use a new namespace",
                feed.position,
            )
        reader = follower.reader = self.log.reader(feed.partition, needed)
        try:
            while True:
                records = await reader.read(BATCH_RECORDS, None)
                if not records:
                    continue
                follower.busy = True
                await self._do(feed.take, records)
                follower.busy = False
                self._tell()
                if self._on_progress is not None:
                    end = max(end, feed.position)
                    self._on_progress(Lag(feed.projection.name, feed.partition, feed.position, end))
        finally:
            follower.reader = None
            follower.busy = False
            await reader.close()

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
                while projection.name not in self.failures and not follower.reached(end):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._news.wait()
        for projection in projections:
            if projection.name in self.failures:
                raise self.failures[projection.name]

    async def _ends(self) -> list[int]:
        return [(await self.log.bounds(partition))[1] for partition in range(self.log.partitions)]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """On the database thread, after what it does already."""
        thread = self._running()
        return await asyncio.get_running_loop().run_in_executor(thread, lambda: call(*args, **kwargs))

    def _running(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise ConfigError(
                "the projections are not running: use the runner inside `async with ProjectionRunner(...) as runner:`"
            )
        return self._thread
