"""Disks that are full or may not be written, under SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, until
from machine import mounted, require_root, run
from rawlog import Audit, SQLiteHistory

from stepfold import Client, ConfigError
from stepfold.drivers import SQLiteDriver
from stepfold.log import Entry

pytestmark = pytest.mark.root


def fill(disk: Path) -> None:
    """To the last byte."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while filler.write(b"x" * size):
                    pass
            except OSError:
                continue


async def test_work_goes_on_when_a_full_disk_has_room_again(tmp_path: Path) -> None:
    require_root()
    with (
        mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk,
        Fleet(f"sqlite:///{disk}/log.db", tmp_path, seed=0) as fleet,
    ):
        history, audit = SQLiteHistory(disk / "log.db"), Audit()
        for _ in range(2):
            fleet.worker()
        client = fleet.client(rate=20)
        await until(lambda: audit.counts.ends.total() > 10, history, audit)
        for _ in range(2):
            fill(disk)
            said = fleet.said(client).count("disk is full")
            await until(lambda said=said: fleet.said(client).count("disk is full") > said + 1, history, audit)
            refused_after = len(fleet.acknowledged())
            (disk / "filler").unlink()
            await until(lambda refused_after=refused_after: len(fleet.acknowledged()) > refused_after + 10, history, audit)
        print(await fleet.finish(client, history, audit))


async def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """Whether or not somebody uses it elsewhere."""
    require_root()
    (tmp_path / "disk").mkdir()
    driver = SQLiteDriver(tmp_path / "disk" / "log.db")
    await driver.open()
    await driver.append(0, [Entry("a", b"{}")])
    with mounted(tmp_path / "read-only", "--bind", tmp_path / "disk") as disk:
        run("mount", "-o", "remount,bind,ro", disk)
        for _ in "while it is used", "after it was closed":
            with pytest.raises(ConfigError, match=r"log\.db cannot be written.* must be writable"):
                async with Client(f"sqlite:///{disk}/log.db"):
                    pass
            await driver.close()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["log.db"]
