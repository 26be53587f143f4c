"""Finds the records of a key. Kafka has no index of keys, so this keeps one in memory: stretch of offsets -> keys in it.

The first query reads the partition as far back as it asks. The index keeps four bytes a run; later queries read only stretches
that may hold the keys. Every query asks for the claims too; these are few, so the finder keeps them.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Final, NamedTuple

from stepfold.log import CLAIM_KEY, Record

STRETCH_RECORDS: Final = 5_000
_CLAIM: Final = CLAIM_KEY.encode()

Make = Callable[[Any], Record | None]
Scan = Callable[[int, int, Make], AsyncIterable[list[Record]]]


class _Stretch(NamedTuple):
    """The offsets from `start` to below `end`, and the sorted marks of all keys in them."""

    start: int
    end: int
    marks: array[int]

    def may_hold(self, marks: Iterable[int]) -> bool:
        known = self.marks
        places = ((bisect_left(known, mark), mark) for mark in marks)
        return any(at < len(known) and known[at] == mark for at, mark in places)


class Finder:
    """Finds records of one partition.

    `scan` yields, in portions, the results of `make` for the records from an offset to below another. `record` makes a Record
    from a raw record.
    """

    def __init__(self, scan: Scan, record: Callable[[Any], Record]) -> None:
        self._scan = scan
        self._record = record
        self._stretches: list[_Stretch] = []  # adjacent, in the order of their offsets
        self._claims: list[Record] = []  # all claims in these stretches
        self._reading = asyncio.Lock()

    @property
    def end(self) -> int:
        """The index covers all offsets below."""
        return self._stretches[-1].end if self._stretches else 0

    async def find(self, keys: Iterable[bytes], first: int, end: int) -> list[Record]:
        """The records of these keys from `first` to below `end`, in order. Raises the errors of `scan`."""
        wanted = frozenset(keys)
        runs = wanted - {_CLAIM}
        found: list[Record] = []
        async with self._reading:
            known = list(self._stretches)
            if known and first < known[0].start:
                earlier, claims = list[_Stretch](), list[Record]()
                await self._read(first, known[0].start, runs, found, earlier, claims)
                self._stretches[:0], self._claims[:0] = earlier, claims
            at = known[-1].end if known else first
            if at < end:
                await self._read(at, end, runs, found, self._stretches, self._claims)
        marks = [_mark(key) for key in runs]
        for stretch in known:
            if stretch.start < end and first < stretch.end and stretch.may_hold(marks):
                scan = self._scan(max(first, stretch.start), min(end, stretch.end), lambda raw: self._one_of(raw, runs))
                async for portion in scan:
                    found += portion
        if _CLAIM in wanted:
            found += self._claims
        return sorted(record for record in found if first <= record.offset < end)

    async def _read(
        self, start: int, end: int, runs: frozenset[bytes], found: list[Record], stretches: list[_Stretch], claims: list[Record]
    ) -> None:
        """Read a part, collect wanted records and extend the index. Finished stretches stay if this is cancelled."""
        marks = set[int]()
        claimed: list[Record] = []
        count = 0

        def finish(at: int) -> None:
            nonlocal start, count
            stretches.append(_Stretch(start, at, array("I", sorted(marks))))
            claims.extend(claimed)
            marks.clear()
            claimed.clear()
            start, count = at, 0

        def learn(raw: Any) -> Record | None:
            nonlocal count
            if count == STRETCH_RECORDS:
                finish(raw.offset)
            count += 1
            key: bytes | None = raw.key
            if key == _CLAIM:
                claimed.append(self._record(raw))
            elif key is not None:
                marks.add(_mark(key))
                return self._one_of(raw, runs)
            return None

        async for portion in self._scan(start, end, learn):
            found += portion
        finish(end)

    def _one_of(self, raw: Any, keys: frozenset[bytes]) -> Record | None:
        return self._record(raw) if raw.key in keys else None


def _mark(key: bytes) -> int:
    return hash(key) & 0xFFFFFFFF
