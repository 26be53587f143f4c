"""The projections of a world: a process of their own, and a database that goes away and outlives the log that it was made of."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from run_rows import positions_and_rows
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.projections import ActionsProjection, ProjectionRunner, RunsProjection, StepsProjection
from stepfold.testing.processes import Process

if TYPE_CHECKING:
    from world import World


class Projecting:
    """`runner` while there is one whose rows are of the log as it is now."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runner: ProjectionRunner | None = None
        self._process: Process | None = None
        self._again: asyncio.Task[None] | None = None

    async def start(self, made_before: sa.Engine | None = None, after_s: float = 0) -> None:
        """`made_before`: the database that is there; what is in it need not be of this log any more."""
        if after_s:
            await asyncio.sleep(after_s)
        process = self._process = self._world.born("projections")
        together = [StepsProjection(), RunsProjection(), ActionsProjection()]  # they share one fold
        runner = ProjectionRunner(self._world.client_of(process), together, database=made_before or "sqlite://")
        while True:
            try:
                await process.start(runner.__aenter__())
            except (LogUnavailable, ConfigError):  # the database may be away, too
                await asyncio.sleep(1)
            else:
                break
        if made_before is None:
            random = self._world.source("database")
            rate = self._world.intensity * random.choice((0.05, 0.3))
            if "database" not in self._world.plan.off and rate:
                event.listen(runner.engine, "commit", partial(self._commit, random, rate))
        while made_before is not None and not await self._is_refreshed(runner):
            await asyncio.sleep(1)
        self.runner = runner

    @staticmethod
    async def _is_refreshed(runner: ProjectionRunner) -> bool:
        """Where they see that their rows are of other records they are made anew. What is away comes back."""
        try:
            await runner.catch_up()
        except (LogUnavailable, OperationalError):
            return False
        except ConfigError:
            try:
                await runner.rebuild()
            except (LogUnavailable, OperationalError):
                return False
        return True

    def die(self, comes_s: float) -> None:
        """And come again so much later."""
        if self.runner is not None and self._process is not None:
            old, self.runner = self.runner, None
            self._world.graves.append(old)
            self._process.kill()
            self._again = self._world.loop.create_task(self.start(old.engine, comes_s), context=self._world.log.context)

    def _commit(self, random: Random, rate: float, connection: sa.Connection) -> None:
        """The database may go away when a transaction is to end: before it has, or before it says so."""
        if self._world.faulty and random.random() < rate:
            done = random.random() < 0.5
            self._world.happened("database", f"it goes away {'after' if done else 'before'} a commit")
            if done:
                connection.connection.commit()
            raise OperationalError("COMMIT", None, Exception("the database has gone away"))

    async def tell(self) -> list[dict[str, Any]]:
        """The observer learns what they hold, if they are there."""
        if self.runner is None:
            return []
        positions, rows = await self.runner.query(positions_and_rows)
        self._world.tell(lambda eye: eye.projected(positions, {row["run_id"]: row for row in rows}))
        return rows

    async def check(self) -> None:
        """They are what they would be if they were made anew."""
        if self._again is not None:
            await self._again
        if (runner := self.runner) is None:
            return
        await runner.catch_up()
        before = await self.tell()
        await runner.rebuild()
        after = await self.tell()
        if before != after:
            raise AssertionError(f"a projection differs from its rebuild: {before} and {after}")
        await runner.__aexit__(None, None, None)
        await runner.log.close()
