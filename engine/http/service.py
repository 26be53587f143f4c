"""A connected client for the routes, and the projections that it keeps up to date meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from stepfold.projections import ProjectionRunner, RunsProjection, StepsProjection

from ..client.client import Client

POLL_S = 0.02


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


@dataclass(frozen=True, slots=True)
class Service:
    """One log, served. `projections`: of this log, in the given database or the default one."""

    client: Client
    projections: ProjectionRunner

    async def reached(self, position: LogPosition, limit_s: float) -> bool:
        """Whether the tables hold everything below `position`; waits up to `limit_s` for that."""
        until = time.monotonic() + limit_s
        while True:
            behind = [lag for lag in await self.projections.lag() if lag.partition == position.partition]
            if all(lag.position >= min(position.offset, lag.end) for lag in behind):
                return True
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def serving(client: Client, database: str | sa.URL | sa.Engine | None) -> AsyncGenerator[Service]:
    """Connect the client and keep the tables up to date. Raises LogUnavailable and ConfigError."""
    async with client, ProjectionRunner(client, [RunsProjection(), StepsProjection()], database=database) as projections:
        yield Service(client, projections)
