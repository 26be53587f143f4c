"""The SQLite driver: the suite, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepfold.drivers import SQLiteDriver
from stepfold.log import Log
from stepfold.testing import LogSuite


class TestSuite(LogSuite):
    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.logs = 0

    async def open_log(self) -> Log:
        self.logs += 1
        return await self.opened(self.path / f"{self.logs}.db")

    async def reopen(self, log: Log) -> Log | None:
        return await self.opened(log.name.removeprefix("sqlite:///"))

    async def opened(self, path: Path | str) -> SQLiteDriver:
        log = SQLiteDriver(path)
        await log.open()
        return log
