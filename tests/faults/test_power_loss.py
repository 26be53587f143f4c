"""The power fails under SQLite: what was acknowledged under FULL is there, and a transaction is there as a whole or not at all.

The model: what was acknowledged is on the disk. What was written since may be there up to any byte of the WAL, or in any of its
sectors, and in place of the rest lies what was there before, zeros, or nothing. So the file and the WAL are copied after each
acknowledgement, and each loss is tried on a copy. That SQLite has synced by then is its promise under FULL, and not seen here.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from stepfold.drivers import SQLiteDriver
from stepfold.log import Entry

COMMITS = 20
WAL_HEADER, FRAME_HEADER, PAGE, SECTOR = 32, 24, 4096, 512
FRAME = FRAME_HEADER + PAGE
ENDS = (-PAGE, -PAGE + SECTOR, -1, 0, 1, FRAME_HEADER - 1)
"""Where the last write ends, from the end of a frame: within its page, with it, within the header of the next."""


class Disk(NamedTuple):
    """`records` have been acknowledged; `wal` lies on the disk, and counts up to byte `end`."""

    records: int
    wal: bytes
    end: int


class Written(NamedTuple):
    """What was appended, and what lay beside the file, which was not changed, after each acknowledgement."""

    file: bytes
    values: Sequence[bytes]
    disks: Sequence[Disk]


async def write(path: Path, *, wal_was_used: bool, choose: random.Random) -> Written:
    """`wal_was_used`: it begins anew, over what it held before."""
    driver = SQLiteDriver(path, partitions=1)
    await driver.open()
    first = _disk(path, 0)
    while wal_was_used and _salt(_disk(path, 0)) == _salt(first):
        await driver.checkpoint_put(0, {"filler": choose.randbytes(100_000)})
    file, values, disks = _bytes(path), list[bytes](), [_disk(path, 0)]
    for _ in range(COMMITS):
        new = [choose.randbytes(choose.choice([10, 300, 5000])) for _ in range(choose.choice([1, 1, 3]))]
        await driver.append(0, [Entry("run", value) for value in new])
        values += new
        disks.append(_disk(path, len(values)))
    assert _bytes(path) == file
    await driver.close()
    return Written(file, values, disks)


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _disk(path: Path, records: int) -> Disk:
    wal = _bytes(path.with_name(f"{path.name}-wal"))
    assert int.from_bytes(wal[8:12]) == PAGE
    end = WAL_HEADER
    while wal[end + 8 : end + 16] == wal[16:24]:  # the frame's salt is that of the header
        end += FRAME
    return Disk(records, wal[: end + 20 * FRAME], end)


def _salt(disk: Disk) -> bytes:
    return disk.wal[16:24]


def losses(before: Disk, after: Disk, choose: random.Random) -> Iterator[bytes]:
    """The WAL as it may be found when the power failed on the way from one to the other."""
    old = before.wal.ljust(len(after.wal), b"\0")
    for frame_end in range(before.end, after.end + 1, FRAME):
        for end in (frame_end + more for more in ENDS):
            if before.end < end <= after.end:
                yield after.wal[:end]
                yield after.wal[:end] + old[end:]
                yield after.wal[:end] + bytes(len(after.wal) - end)
    for _ in range(20):
        sectors = bytearray(old)
        for at in range(before.end // SECTOR * SECTOR, after.end, SECTOR):
            if choose.random() < 0.8:
                sectors[at : at + SECTOR] = after.wal[at : at + SECTOR]
        yield bytes(sectors)


def lay(path: Path, file: bytes, wal: bytes) -> None:
    """This is what is on the disk when the power comes back."""
    path.write_bytes(file)
    path.with_name(f"{path.name}-wal").write_bytes(wal)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def found(path: Path) -> Sequence[bytes]:
    """The records of the log, read by SQLite alone."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT offset, value FROM history ORDER BY offset").fetchall()
    assert [offset for offset, _ in rows] == list(range(len(rows)))
    return [value for _, value in rows]


async def goes_on(path: Path, records: int) -> None:
    """The driver appends behind what is there."""
    driver = SQLiteDriver(path)
    await driver.open()
    [ack] = await driver.append(0, [Entry("run", b"later")])
    await driver.close()
    assert ack.offset == records
    assert found(path)[-1] == b"later"


@pytest.mark.parametrize("wal_was_used", [False, True])
async def test_what_was_acknowledged_is_there(tmp_path: Path, wal_was_used: bool) -> None:
    choose = random.Random(1)
    (tmp_path / "written").mkdir()
    written = await write(tmp_path / "written" / "log.db", wal_was_used=wal_was_used, choose=choose)
    cut = tmp_path / "log.db"
    tried = kept = 0
    for before, after in zip(written.disks, written.disks[1:], strict=False):
        for wal in losses(before, after, choose):
            lay(cut, written.file, wal)
            there = found(cut)
            assert there in (written.values[: before.records], written.values[: after.records])
            tried += 1
            kept += len(there) == after.records
            if tried % 100 == 0:
                await goes_on(cut, len(there))
    print(f"{tried} losses, {kept} of them kept what was not yet acknowledged")
    assert tried > 500 and 0 < kept < tried
