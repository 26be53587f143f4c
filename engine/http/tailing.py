"""The records of all partitions as one sequence, ordered by time: after positions, or before them."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from ..log import Log, Reader, Record
from .positions import LogPosition

Positions = dict[int, int]
"""An offset in each partition: everything below it has been read."""


class Tailed(NamedTuple):
    """A record, and its partition."""

    partition: int
    record: Record


def written(positions: Mapping[int, int]) -> str:
    """Positions as a part of a URL, such as `0:12-1:7`."""
    return "-".join(f"{partition}:{offset}" for partition, offset in sorted(positions.items()))


def read_positions(text: str, partitions: int) -> Positions:
    """Reads the text of `written`; a partition that is not named begins at 0. Raises ValueError for any other text."""
    found: Positions = dict.fromkeys(range(partitions), 0)
    for part in text.split("-"):
        try:
            position = LogPosition.parse(part)
        except ValueError as error:
            raise ValueError(f"{error}, several with - between them") from None
        if position.partition not in found:
            raise ValueError(f"there is no partition {position.partition}")
        found[position.partition] = position.offset
    return found


class TailReader:
    """Reads all partitions from `positions` up to `until`, during an `async with` block. Raises LogUnavailable."""

    def __init__(self, log: Log, positions: Mapping[int, int], until: Mapping[int, int] | None = None) -> None:
        self.positions: Positions = dict(positions)
        self._log = log
        self._until = until
        self._readers: dict[int, Reader] = {}

    async def __aenter__(self) -> Self:
        for partition in self.positions:
            start, end = await self._log.bounds(partition)
            self.positions[partition] = min(max(self.positions[partition], start), end)
            self._readers[partition] = self._log.reader(partition, self.positions[partition])
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(reader.close() for reader in self._readers.values()), return_exceptions=True)

    async def read(self, most: int) -> list[Tailed]:
        """The next records of all partitions, ordered by time, up to `most` of each partition; empty if there are none now.

        A record is returned only when all partitions have been read up to its time, so the order holds across calls.
        """
        known, limit = dict[int, list[Record]](), None
        for partition, reader in self._readers.items():
            records = [*await self._upto(partition, reader, most)]
            known[partition] = records
            _, end = await self._log.bounds(partition)
            if records and reader.position < min(end, self._until.get(partition, end) if self._until else end):
                last = _latest(records)
                limit = last if limit is None else min(limit, last)
        taken = [one for one in in_order(known) if limit is None or one.time <= limit]
        for one in taken:
            self.positions[one.partition] = one.record.offset + 1
        for partition, reader in self._readers.items():
            if limit is None or not known[partition]:
                self.positions[partition] = max(reader.position, self.positions[partition])
            elif reader.position != self.positions[partition]:  # the next call reads the rest again
                await reader.close()
                self._readers[partition] = self._log.reader(partition, self.positions[partition])
        return [Tailed(one.partition, one.record) for one in taken]

    async def _upto(self, partition: int, reader: Reader, most: int) -> Sequence[Record]:
        records = await reader.read(most)
        if self._until is None:
            return records
        return [record for record in records if record.offset < self._until.get(partition, record.offset + 1)]


class _Timed(NamedTuple):
    """A record with the time that orders it: the latest timestamp of the partition so far, because timestamps may step back."""

    time: int
    partition: int
    record: Record


def in_order(known: Mapping[int, Sequence[Record]]) -> Iterator[_Timed]:
    """The records of all partitions ordered by time; within a partition by offset."""
    return heapq.merge(*(_timed(partition, records) for partition, records in known.items()), key=lambda one: one[:2])


def _timed(partition: int, records: Sequence[Record]) -> Iterator[_Timed]:
    time = 0
    for record in records:
        time = max(time, record.timestamp)
        yield _Timed(time, partition, record)


def _latest(records: Sequence[Record]) -> int:
    return max(record.timestamp for record in records)


async def before(log: Log, until: Mapping[int, int], most: int) -> tuple[list[Tailed], Positions]:
    """The last records before the positions `until`, ordered by time, from at most `most` offsets of each partition; and the
    positions where they begin."""
    begin: Positions = {}
    for partition, offset in until.items():
        start, end = await log.bounds(partition)
        begin[partition] = max(start, min(offset, end) - most)
    known: dict[int, list[Record]] = {partition: [] for partition in begin}
    first = 0
    for partition, offset in begin.items():
        reader = log.reader(partition, offset)
        try:
            start, _ = await log.bounds(partition)
            while records := [record for record in await reader.read(most) if record.offset < until[partition]]:
                known[partition] += records
        finally:
            await reader.close()
        if offset > start and known[partition]:
            first = max(first, known[partition][0].timestamp)
    found = [one for one in in_order(known) if one.time >= first]
    for one in reversed(found):
        begin[one.partition] = one.record.offset
    for partition in begin:
        if not any(one.partition == partition for one in found):
            begin[partition] = until[partition]
    return [Tailed(one.partition, one.record) for one in found], begin
