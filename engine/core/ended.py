"""The ids of ended runs, kept for as long as their partition remembers them. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import cast

REMEMBER_MS = 24 * 3600 * 1000
"""A partition's memory, unless its first claim says otherwise: a run's id cannot be used again for this long after its end, by
the log's time."""
MARGIN_MS = REMEMBER_MS
"""An id is dropped only this much later: the clock of the owner that drops it may run ahead of the log's, and owners that
still hold the id must reach the same verdict."""


def fingerprint(run_id: str) -> int:
    """A digest of a run id, of 128 bits."""
    return int.from_bytes(hashlib.blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=16).digest())


class Ended:
    """The ids of ended runs. An entry holds a part of the id's fingerprint (the mark), the time of the end, and the 32-bit
    digest of the start (0 if the run was not started from an inbox).

    Chunks of bytes hold the entries in the order in which the runs ended, so a checkpoint writes only the chunk that grows. A
    chunk begins with a base time; its entries hold times relative to it. An index maps ids to chunks. `load` does not index a
    chunk, so that a restart is fast: each `find` indexes some of those chunks and searches the others.
    """

    BASE = struct.Struct(">q")
    ENTRY = struct.Struct(">12sII")
    SPAN_MS = 2**32  # range of an entry's time; the first entry stands in its middle, because the log's time may step back
    LEAST_MS = -(2**62)  # earlier times count as this one, so that the base of a chunk fits into 64 bits
    CHUNK_ENTRIES = 4096
    BUCKETS = 4096
    HINT_BYTES = 8  # of a mark's 12 bytes: `find` searches a bucket for these
    PLACE_BYTES = HINT_BYTES + 4

    def __init__(self) -> None:
        self.chunks: dict[int, bytearray] = {}
        self._index: dict[int, bytearray] = {}  # bucket -> entries: a hint and the number of a chunk
        self._unindexed: list[int] = []

    def copied(self) -> Ended:
        """Equal ids, which do not change with these."""
        twin = Ended()
        twin.chunks = {number: bytearray(chunk) for number, chunk in self.chunks.items()}
        twin._index = {bucket: bytearray(places) for bucket, places in self._index.items()}
        twin._unindexed = list(self._unindexed)
        return twin

    def __len__(self) -> int:
        return sum((len(chunk) - self.BASE.size) // self.ENTRY.size for chunk in self.chunks.values())

    def add(self, run_id: str, ended_at: int, digest: int = 0) -> None:
        mark = self._mark(run_id)
        ended_at = max(ended_at, self.LEAST_MS)
        last = next(reversed(self.chunks), 0)
        since = ended_at - self._base(last) if self.chunks else -1
        if not 0 <= since < self.SPAN_MS or len(self.chunks[last]) >= self.BASE.size + self.CHUNK_ENTRIES * self.ENTRY.size:
            last += bool(self.chunks)
            since = self.SPAN_MS // 2
            self.chunks[last] = bytearray(self.BASE.pack(ended_at - since))
        self.chunks[last].extend(self.ENTRY.pack(mark, since, digest))
        if not self._unindexed or self._unindexed[-1] != last:
            self._note(mark, last)

    def remembers(self, run_id: str, now: int, memory_ms: int = REMEMBER_MS) -> bool:
        """Whether the run ended less than `memory_ms` before `now`."""
        return self.find(run_id, now, memory_ms) is not None

    def find(self, run_id: str, now: int, memory_ms: int = REMEMBER_MS) -> int | None:
        """The digest of the run's start, if the run ended less than `memory_ms` before `now`; else None."""
        if not self.chunks:
            return None
        for number in self._unindexed[: 1 + len(self._unindexed) // 64]:
            self._unindexed.remove(number)
            for mark, *_ in self._entries(number):
                self._note(mark, number)
        mark = self._mark(run_id)
        hint = mark[: self.HINT_BYTES]
        bucket = self._index.get(self._bucket(mark), b"")
        places = _aligned(bucket, hint, self.PLACE_BYTES)
        numbers = [int.from_bytes(bucket[at + self.HINT_BYTES : at + self.PLACE_BYTES]) for at in places]
        for number in (*numbers, *self._unindexed):
            chunk = self.chunks[number]
            for at in _aligned(chunk, mark, self.ENTRY.size, self.BASE.size):
                _, since, digest = self.ENTRY.unpack_from(chunk, at)
                if now < self._base(number) + since + memory_ms:
                    return int(digest)
        return None

    def forget(self, now: int, memory_ms: int = REMEMBER_MS) -> list[int]:
        """Drop the chunks in which every entry ended more than `memory_ms` and `MARGIN_MS` ago; returns their numbers.

        The newest chunk stays, because it still grows.
        """
        dropped: list[int] = []
        for number in list(self.chunks)[:-1]:
            entries = list(self._entries(number))
            if self._base(number) + max(since for _, since, _ in entries) + memory_ms + MARGIN_MS > now:
                break
            if number in self._unindexed:
                self._unindexed.remove(number)
            else:
                for mark, *_ in entries:
                    bucket = self._index[self._bucket(mark)]
                    at = next(_aligned(bucket, self._place(mark, number), self.PLACE_BYTES))
                    del bucket[at : at + self.PLACE_BYTES]
            del self.chunks[number]
            dropped.append(number)
        return dropped

    def load(self, number: int, chunk: bytes | memoryview) -> None:
        """Add a stored chunk. The caller passes chunks in the order of their numbers."""
        self.chunks[number] = bytearray(chunk)
        self._unindexed.append(number)

    def _base(self, number: int) -> int:
        return int(self.BASE.unpack_from(self.chunks[number])[0])

    def _entries(self, number: int) -> Iterator[tuple[bytes, int, int]]:
        return cast("Iterator[tuple[bytes, int, int]]", self.ENTRY.iter_unpack(memoryview(self.chunks[number])[self.BASE.size :]))

    def _mark(self, run_id: str) -> bytes:
        return fingerprint(run_id).to_bytes(16)[:12]

    def _bucket(self, mark: bytes) -> int:
        return int.from_bytes(mark[-2:]) % self.BUCKETS

    def _place(self, mark: bytes, number: int) -> bytes:
        return mark[: self.HINT_BYTES] + number.to_bytes(self.PLACE_BYTES - self.HINT_BYTES)

    def _note(self, mark: bytes, number: int) -> None:
        self._index.setdefault(self._bucket(mark), bytearray()).extend(self._place(mark, number))


def _aligned(data: bytes | bytearray, wanted: bytes, step: int, start: int = 0) -> Iterator[int]:
    """The positions of `wanted` in `data` that are `start` plus a multiple of `step`."""
    at = data.find(wanted, start)
    while at >= 0:
        if (at - start) % step == 0:
            yield at
        at = data.find(wanted, at + 1)
