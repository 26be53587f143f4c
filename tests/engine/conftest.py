"""A fresh log for each test, on every driver that needs nothing but this machine."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from local_logs import NewLog

from stepfold import Client
from stepfold.drivers import MemoryDriver, SQLiteDriver


@pytest.fixture(params=["memory", "sqlite"])
def new_log(request: pytest.FixtureRequest, tmp_path: Path) -> NewLog:
    name = uuid4().hex
    if request.param == "memory":
        return lambda: MemoryDriver(name)
    return lambda: SQLiteDriver(tmp_path / "runs.db", partitions=2)


@pytest.fixture
def client(new_log: NewLog) -> Client:
    return Client(driver=new_log())
