"""Marks: digests of records, by which a reader notices that a log was restored, cut off or made again.

A position alone cannot show that: a log that was restored from an older copy soon is as long again. So everything that keeps
what it derived from a log (a checkpoint, a projection, an owner whose partition is away) keeps marks with it, and checks
them before it goes on. There are two:

- the last record below the position. A log only grows, so if this record is the same, all records before it are the same.
  Records that a restored log got since then have another time, and another request id or claim; so the same offset holds
  another record, or none yet;
- the claim that is current at the position. Its nonce is random, so it differs in a log that any worker has served since a
  restore, even if the clocks were wrong.

A mark is computed when it is kept, and not for each record that is read.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from .log import Log, Record

READ_S = 1.0
_HEAD = struct.Struct(">QQI")
_INT64 = 2**64 - 1


class Mark(NamedTuple):
    """An offset, and the digest of the record there."""

    offset: int
    digest: str


def mark_of(record: Record) -> Mark:
    """The mark of a record. Total."""
    key = record.key.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(_HEAD.pack(record.offset & _INT64, record.timestamp & _INT64, len(key)), digest_size=16)
    digest.update(key)
    digest.update(record.value)
    return Mark(record.offset, digest.hexdigest())


def marks_of(claim: Mark | None, last: Mark | Record | None) -> list[Mark]:
    """The marks that a reader keeps: of the current claim and of the last record that it read, without those that are None."""
    newest = mark_of(last) if isinstance(last, Record) else last
    return [mark for mark in dict.fromkeys((claim, newest)) if mark is not None]


def marks_from(kept: Any) -> list[Mark]:
    """The marks in JSON that was kept, a list of [offset, digest]. Raises ValueError for anything else."""
    if not isinstance(kept, list):
        raise ValueError(f"{kept!r} is not a list of marks")
    marks: list[Mark] = []
    for one in cast(list[Any], kept):
        match one:
            case [int(offset), str(digest)]:
                marks.append(Mark(offset, digest))
            case _:
                raise ValueError(f"{one!r} is not a mark")
    return marks


async def moved(log: Log, partition: int, marks: Iterable[Mark], start: int, end: int) -> int | None:
    """The offset of the first mark whose record the log no longer holds; None if it holds all.

    `start`, `end`: the partition's bounds; marks below `start` cannot be checked and are skipped. Raises LogUnavailable.
    """
    for mark in sorted(marks):
        if mark.offset < start:
            continue
        if mark.offset >= end:
            return mark.offset
        record = await _record_at(log, partition, mark.offset)
        if record is None or mark_of(record) != mark:
            return mark.offset
    return None


async def _record_at(log: Log, partition: int, offset: int) -> Record | None:
    """The record at `offset`; None if no record has this offset but later ones exist."""
    reader = log.reader(partition, offset)
    try:
        while reader.position <= offset:
            for record in await reader.read(1, READ_S):
                return record if record.offset == offset else None
        return None
    finally:
        await reader.close()
