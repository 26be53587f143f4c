from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.log import Log
from stepfold.projections import feed, runner


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many transactions and snapshots out of few records."""
    monkeypatch.setattr(runner, "BATCH_RECORDS", 3)
    monkeypatch.setattr(feed, "SNAPSHOT_RECORDS", 7)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tables.db'}"


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    driver = MemoryDriver(uuid4().hex) if request.param == "memory" else SQLiteDriver(tmp_path / "runs.db", partitions=3)
    await driver.open()
    yield driver
    await driver.close()
