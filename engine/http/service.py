"""A connected client for the routes, and the projections that it keeps up to date meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import sqlalchemy as sa

from stepfold.projections import ActionsProjection, Lag, Projection, ProjectionRunner, RunsProjection, StepsProjection

from ..client.client import Client
from ..core.fold import PartitionState, fold
from ..errors import ValueInvalid, WorkflowCancelled, WorkflowFailed
from ..log import CLAIM_KEY, partition_of
from .panels import Dashboards
from .pasts import Pasts
from .problems import HttpRefusal
from .watching import Watching

READ_S = 2.0
"""How long a read of the tables may take."""

P = ParamSpec("P")
T = TypeVar("T")


class LogPosition(NamedTuple):
    """A place in the log: everything below `offset` of `partition`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LogPosition:
        """Raises ValueError."""
        partition, colon, offset = text.partition(":")
        if not colon or not all(part.isascii() and part.isdecimal() and len(part) <= 19 for part in (partition, offset)):
            raise ValueError(f"{text[:60]!r} is not a position: partition:offset, such as 3:1287")
        return cls(int(partition), int(offset))


class TableNews:
    """Tells waiting pages that the tables have changed. `number`: of the changes; `listeners`: the streams that are open."""

    def __init__(self) -> None:
        self.number = 0
        self.listeners = 0
        self._changed = asyncio.Event()

    def tell(self, lag: Lag) -> None:
        self.number += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, number: int) -> int:
        """Wait until there are changes beyond this one, and return the number of the last."""
        while self.number <= number:
            await self._changed.wait()
        return self.number


class PartitionBounds(NamedTuple):
    """A partition: its owner (None: no worker), and the offsets that the log holds."""

    partition: int
    owner: str | None
    start: int
    end: int


@dataclass(slots=True)
class OpenStreams:
    """The number of streams of histories that are open."""

    open: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """One log, served. `projections`: of this log, in the given database or the default one; `news`: of their tables."""

    client: Client
    projections: ProjectionRunner
    news: TableNews
    watching: Watching
    dashboards: Dashboards
    pasts: Pasts
    streams: OpenStreams = field(default_factory=OpenStreams)

    async def partitions(self) -> list[PartitionBounds]:
        """All partitions of the log, with their owners by the claims. Raises LogUnavailable."""
        log = self.client.connected()
        found: list[PartitionBounds] = []
        async with self.client.patience():
            for partition in range(log.partitions):
                state = PartitionState(partition, log.partitions)
                for record in await log.find(partition, (CLAIM_KEY,)):
                    fold(state, record)
                found.append(PartitionBounds(partition, state.owner, *await log.bounds(partition)))
        return found

    async def changed(self, run_id: str, offset: int, limit_s: float) -> None:
        """Wait until the run, or the owner of its partition, has a record at `offset` or behind it; at most `limit_s`."""
        log = self.client.connected()
        until = time.monotonic() + limit_s
        async with self.watching.watch(run_id, partition_of(run_id, log.partitions)) as watcher:
            while (await self.client.views.read(run_id)).state.offset <= offset:
                left_s = until - time.monotonic()
                if left_s <= 0 or not await watcher.wait(left_s):
                    return

    async def ended(self, run_id: str, limit_s: float) -> None:
        """Wait until the run has ended; at most `limit_s`."""
        with contextlib.suppress(TimeoutError, WorkflowFailed, WorkflowCancelled, ValueInvalid):
            await self.client.run(run_id).result(limit_s)

    async def reached(self, position: LogPosition, limit_s: float) -> bool:
        """Whether the tables hold everything below `position`; waits up to `limit_s` for that."""
        return await self.projections.reached(position.partition, position.offset, limit_s)

    async def read(self, ask: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask the tables, with a limit. Raises HttpRefusal if they take longer."""
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
    """Connect the client and keep the tables up to date, those of `projections` too. Raises LogUnavailable and ConfigError."""
    news, kept = TableNews(), [RunsProjection(), StepsProjection(), ActionsProjection(), *projections]
    async with client, ProjectionRunner(client, kept, database=database, on_progress=news.tell) as runner:
        watching = Watching(client.log)
        try:
            yield Service(client, runner, news, watching, Dashboards(runner, projections), Pasts(client.log))
        finally:
            await watching.close()
