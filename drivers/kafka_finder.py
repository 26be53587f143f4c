"""Finding the records of a key, where Kafka has no index: what has been read once is not read again for nothing.

The first question reads the partition as far back as it asks. From then on it is known, at four bytes a run, in which stretches
which keys are, and only those are read again. Claims are asked for with every run and are few, so they are kept.
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
    """Offsets from `start` to below `end`, and the marks of the keys of all records in between, sorted."""

    start: int
    end: int
    marks: array[int]

    def may_hold(self, marks: Iterable[int]) -> bool:
        known = self.marks
        places = ((bisect_left(known, mark), mark) for mark in marks)
        return any(at < len(known) and known[at] == mark for at, mark in places)


class Finder:
    """One partition. `scan` gives what `make` makes of the records from an offset to below another, portion by portion;
    `record` makes a Record of a raw one.
    """

    def __init__(self, scan: Scan, record: Callable[[Any], Record]) -> None:
        self._scan = scan
        self._record = record
        self._stretches: list[_Stretch] = []  # one after another, without a gap
        self._claims: list[Record] = []  # of all of these
        self._reading = asyncio.Lock()

    @property
    def end(self) -> int:
        """What is below is known."""
        return self._stretches[-1].end if self._stretches else 0

    async def find(self, keys: Iterable[bytes], first: int, end: int) -> list[Record]:
        """The records of these keys from `first` to below `end`, in order. Raises what `scan` raises."""
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
        """Find what is wanted, and learn what is there; what was learnt stays if this is given up half way."""
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
