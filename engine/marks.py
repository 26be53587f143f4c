"""What stood at a place of a log, so that a log that was restored, cut off or made again is told from the one that was read.

A position says how long a log was, and one that was put back to an older copy is soon as long again. So whoever keeps what
they made of a log (a checkpoint, a projection, an owner while its partition is away) keeps marks with it, and asks for
them before they go on. There are two:

- the last record below the position. A log is only appended to, so where this record is the same, so is all before it:
  what a restored log has been given since was appended at another time and under another request id or claim, so that the
  same place holds another record, or none yet;
- the claim in force there. Its nonce is random: a log that any worker has served since is told whatever clocks did.

A record is marked when somebody keeps the mark, not when it is read: that costs nothing on the way of a record.
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
    """A place, and what stood there."""

    offset: int
    digest: str


def mark_of(record: Record) -> Mark:
    """Total."""
    key = record.key.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(_HEAD.pack(record.offset & _INT64, record.timestamp & _INT64, len(key)), digest_size=16)
    digest.update(key)
    digest.update(record.value)
    return Mark(record.offset, digest.hexdigest())


def marks_of(claim: Mark | None, last: Mark | Record | None) -> list[Mark]:
    """The marks of a reader: of the claim in force and of the last record that was read, as far as there are any."""
    newest = mark_of(last) if isinstance(last, Record) else last
    return [mark for mark in dict.fromkeys((claim, newest)) if mark is not None]


def marks_from(kept: Any) -> list[Mark]:
    """Marks as they were kept in JSON. Raises ValueError for anything else."""
    if not isinstance(kept, list):
        raise ValueError(f"{kept!r} is no list of marks")
    marks: list[Mark] = []
    for one in cast(list[Any], kept):
        match one:
            case [int(offset), str(digest)]:
                marks.append(Mark(offset, digest))
            case _:
                raise ValueError(f"{one!r} is no mark")
    return marks


async def moved(log: Log, partition: int, marks: Iterable[Mark], start: int, end: int) -> int | None:
    """The offset of the first of these marks whose record does not stand there any more; None where all do.

    `start`, `end`: the partition's bounds; what is below can no longer be asked for. Raises LogUnavailable.
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
    """The record that stands there; None where others follow, but none has this offset."""
    reader = log.reader(partition, offset)
    try:
        while reader.position <= offset:
            for record in await reader.read(1, READ_S):
                return record if record.offset == offset else None
        return None
    finally:
        await reader.close()
