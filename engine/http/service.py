"""The state that routes share: a connected client, and the projections that the server keeps up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from stepfold.projections import ActionsProjection, Lag, Projection, ProjectionRunner, RunsProjection, StepsProjection

from ..client.client import Client
from ..client.requests import Sender
from ..core.fold import PartitionState, fold
from ..errors import StepfoldError, ValueInvalid, WorkflowCancelled, WorkflowFailed
from ..log import CLAIM_KEY, partition_of
from .delays import Delay, Delays, Lags
from .panels import Dashboards
from .pasts import Pasts
from .positions import LogPosition
from .problems import HttpRefusal
from .watching import Watching

logger = logging.getLogger("stepfold.http")

READ_S = 2.0
"""How long a read of the tables may take, at most."""

P = ParamSpec("P")
T = TypeVar("T")


class TableNews:
    """Tells waiting pages that the tables have changed. `number`: how many changes there were; `listeners`: how many streams are
    open."""

    def __init__(self) -> None:
        self.number = 0
        self.listeners = 0
        self._changed = asyncio.Event()

    def tell(self, lag: Lag | None = None) -> None:
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, number: int) -> int:
        """Wait for a change after this number, and return the number of the last change."""
        while self.number <= number:
            await self._changed.wait()
        return self.number


class PartitionBounds(NamedTuple):
    """A partition: its owner (None: no worker), the offsets `start` to `end` that the log holds, and since when the owner has it,
    in ms since 1970."""

    partition: int
    owner: str | None
    start: int
    end: int
    since: int | None

    def delay(self, delays: Mapping[int, Delay]) -> Delay:
        """Its delay; if no table has begun with the partition, all its records are behind."""
        return delays.get(self.partition) or Delay(self.start, self.end - self.start, None, None)


@dataclass(frozen=True, slots=True)
class WorkerClaims:
    """A worker, from its claims in the log. `host`, `pid`: from its name; `since`: the time of its oldest claim, in ms since
    1970."""

    worker: str
    host: str | None
    pid: int | None
    since: int
    partitions: list[PartitionBounds]


def workers_in(partitions: Sequence[PartitionBounds]) -> list[WorkerClaims]:
    """The workers that own these partitions, sorted by name."""
    owned: dict[str, list[PartitionBounds]] = {}
    for one in partitions:
        if one.owner is not None:
            owned.setdefault(one.owner, []).append(one)
    workers: list[WorkerClaims] = []
    for name, theirs in sorted(owned.items()):
        parts = re.fullmatch(r"(.+)-(\d{1,10})-[^-]{1,8}", name, re.DOTALL)
        host, pid = (None, None) if parts is None else (parts[1], int(parts[2]))
        workers.append(WorkerClaims(name, host, pid, min(one.since or 0 for one in theirs), theirs))
    return workers


@dataclass(slots=True)
class OpenStreams:
    """How many streams of one sort are open."""

    open: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """All that routes need of one log. `projections`: those that the server keeps; `news`: tells when their tables change."""

    client: Client
    projections: ProjectionRunner
    news: TableNews
    watching: Watching
    dashboards: Dashboards
    pasts: Pasts
    lags: Lags
    delays: Delays
    streams: OpenStreams = field(default_factory=OpenStreams)
    changes: OpenStreams = field(default_factory=OpenStreams)
    redriving: asyncio.Lock = field(default_factory=asyncio.Lock)
    rebuilding: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])

    def rebuild(self, projection: str, asked: Sender) -> bool:
        """Begin to rebuild a projection; False if a rebuild is under way already. Its lag tells how far the rebuild is."""
        if projection in self.rebuilding:
            return False
        logger.info("projection %s is rebuilt: asked by %s, %s", projection, asked.by or "nobody", asked.why or "nobody said why")
        self.rebuilding[projection] = asyncio.create_task(self._rebuilt(projection))
        return True

    async def close(self) -> None:
        """Cancel reads and rebuilds; the next server continues a rebuild."""
        self.lags.close()
        tasks = list(self.rebuilding.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _rebuilt(self, projection: str) -> None:
        try:
            await self.projections.rebuild(projection)
            logger.info("projection %s has been rebuilt", projection)
        except (StepfoldError, SQLAlchemyError) as error:
            logger.error("projection %s: the rebuild failed: %s", projection, error)  # noqa: TRY400  # the text says it all
        finally:
            del self.rebuilding[projection]
            self.news.tell()

    async def partitions(self) -> list[PartitionBounds]:
        """All partitions of the log, with their owners from the claims. Raises LogUnavailable."""
        log = self.client.connected()
        found: list[PartitionBounds] = []
        async with self.client.patience():
            for partition in range(log.partitions):
                state = PartitionState(partition, log.partitions)
                since = None
                for record in await log.find(partition, (CLAIM_KEY,)):
                    if fold(state, record) is not None:
                        since = record.timestamp
                owned_since = None if state.owner is None else since
                found.append(PartitionBounds(partition, state.owner, *await log.bounds(partition), owned_since))
        return found

    async def changed(self, run_id: str, offset: int, limit_s: float) -> None:
        """Wait, at most `limit_s`, for a record of the run or a claim of its partition at or after `offset`."""
        log = self.client.connected()
        until = time.monotonic() + limit_s
        async with self.watching.watch(run_id, partition_of(run_id, log.partitions)) as watcher:
            while (await self.client.views.read(run_id)).state.offset <= offset:
                left_s = until - time.monotonic()
                if left_s <= 0 or not await watcher.wait(left_s):
                    return

    async def ended(self, run_id: str, limit_s: float) -> None:
        """Wait until the run has ended, at most `limit_s`."""
        with contextlib.suppress(TimeoutError, WorkflowFailed, WorkflowCancelled, ValueInvalid):
            await self.client.run(run_id).result(limit_s)

    async def reached(self, position: LogPosition, limit_s: float) -> bool:
        """Wait, at most `limit_s`, until the tables hold everything below `position`; False if they do not by then."""
        return await self.projections.reached(position.partition, position.offset, limit_s)

    async def read(self, ask: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read the tables. Raises HttpRefusal if that takes longer than `READ_S`."""
        try:
            return await self.projections.query_within(READ_S, ask, *args, **kwargs)
        except TimeoutError:
            raise HttpRefusal(
                503,
                "search-too-long",
                f"the tables have not answered within {READ_S:g} s; ask for less, with other conditions or a longer text",
                headers={"Retry-After": "5"},
            ) from None


@contextlib.asynccontextmanager
async def serving(
    client: Client, database: str | sa.URL | sa.Engine | None, projections: Sequence[Projection]
) -> AsyncGenerator[Service]:
    """Connect the client, and keep the built-in projections and `projections` up to date. Raises LogUnavailable and
    ConfigError."""
    news, kept = TableNews(), [RunsProjection(), StepsProjection(), ActionsProjection(), *projections]
    async with client, ProjectionRunner(client, kept, database=database, on_progress=news.tell) as runner:
        watching = Watching(client.log)
        service = Service(
            client, runner, news, watching, Dashboards(runner, projections), Pasts(client.log), Lags(runner), Delays(client.log)
        )
        try:
            yield service
        finally:
            await service.close()
            await watching.close()
