"""What is remembered of runs that have ended: their ids, for as long as the memory of their partition. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import cast

REMEMBER_MS = 24 * 3600 * 1000
"""A partition's memory, unless its first claim says otherwise: how long after its end a run's id cannot be used again, by the
log's time."""
MARGIN_MS = REMEMBER_MS
"""How much later it is dropped: who drops it has a clock that may be ahead of the log's, and must judge as those who keep it."""


def fingerprint(run_id: str) -> int:
    """128 bits that stand for a run id."""
    return int.from_bytes(hashlib.blake2b(run_id.encode("utf-8", "surrogatepass"), digest_size=16).digest())


class Ended:
    """The ids of ended runs, remembered for the partition's memory: fingerprints with the time of the end, and 32 bits that say
    how the run was started, where that is worth knowing.

    Kept in chunks of bytes in the order of the ends, so that a checkpoint writes only the chunk that grows: a time to count
    from, then the entries. An index says in which chunks to look for an id. A chunk that was taken back is not indexed at
    once, so that a restart does not wait for that: each question indexes some, and searches those that are left.
    """

    BASE = struct.Struct(">q")
    ENTRY = struct.Struct(">12sII")
    SPAN_MS = 2**32  # of an entry's time; a chunk counts from half of it before its first one, for the log's time may step back
    LEAST_MS = -(2**62)  # whatever a log says of its time: what a chunk counts from, below that, fits into 64 bits
    CHUNK_ENTRIES = 4096
    BUCKETS = 4096
    HINT_BYTES = 8  # of a mark's 12: the search in a bucket is a search for these
    PLACE_BYTES = HINT_BYTES + 4

    def __init__(self) -> None:
        self.chunks: dict[int, bytearray] = {}
        self._index: dict[int, bytearray] = {}  # bucket -> places: a hint and the number of the chunk
        self._unindexed: list[int] = []

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
        """The digest of a run that ended less than `memory_ms` before `now`; None where there is none."""
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
        """Drop the chunks of which every entry is past remembering, with a margin; gives their numbers. The growing one stays."""
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
        """Take back a chunk; chunks come in the order of their numbers."""
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
    """Where `wanted` stands in `data`, at multiples of `step` from `start` on."""
    at = data.find(wanted, start)
    while at >= 0:
        if (at - start) % step == 0:
            yield at
        at = data.find(wanted, at + 1)
