"""Finding by key on Kafka: all that is there, in order, and nothing is read twice that need not be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from stepfold.drivers.kafka import finder as kafka_finder
from stepfold.drivers.kafka.finder import Finder, Make
from stepfold.log import CLAIM_KEY, Record

KEYS = [CLAIM_KEY, *(f"run-{number}" for number in range(30)), "never"]


class Partition:
    """Raw records with gaps between their offsets; `reads` are the ranges that were read."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.records: list[Record] = []
        self.end = 0
        self.reads: list[tuple[int, int]] = []
        self.fails_after = 1_000_000

    def grow(self, count: int) -> None:
        for _ in range(count):
            self.end += self.random.choice((0, 0, 0, 2))
            self.records.append(Record(self.end, 0, self.random.choice(KEYS[:-1]), b""))
            self.end += 1

    async def scan(self, start: int, end: int, make: Make) -> AsyncGenerator[list[Record]]:
        self.reads.append((start, end))
        portion: list[Record] = []
        for record in self.records:
            if start <= record.offset < end:
                self.fails_after -= 1
                if self.fails_after == 0:
                    raise OSError("away")
                raw: Any = SimpleNamespace(offset=record.offset, key=record.key.encode())
                made = make(raw)
                if made is not None:
                    portion.append(made)
                if self.random.random() < 0.1:
                    yield portion
                    portion = []
                    await asyncio.sleep(0)
        yield portion

    def held(self, keys: list[str], first: int) -> list[Record]:
        return [record for record in self.records if record.key in keys and record.offset >= first]


def finder_of(partition: Partition) -> Finder:
    return Finder(partition.scan, lambda raw: Record(raw.offset, 0, raw.key.decode(), b""))


@pytest.mark.parametrize("seed", range(20))
async def test_all_is_found_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_finder, "STRETCH_RECORDS", 10)
    random = Random(seed)
    partition = Partition(random)
    finder = finder_of(partition)

    async def ask() -> None:
        keys = random.sample(KEYS, random.randrange(4))
        first = random.choice((0, random.randrange(partition.end + 1), partition.end))
        found = await finder.find([key.encode() for key in keys], first, partition.end)
        assert found == partition.held(keys, first)

    for _ in range(30):
        partition.grow(random.randrange(30))
        if random.random() < 0.2:
            partition.fails_after = 1 + random.randrange(30)
            with_failure = await asyncio.gather(ask(), ask(), return_exceptions=True)
            assert {type(result) for result in with_failure} <= {OSError, type(None)}
            partition.fails_after = 1_000_000
        await asyncio.gather(ask(), ask(), ask())


async def test_what_cannot_hold_a_key_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_finder, "STRETCH_RECORDS", 10)
    partition = Partition(Random(0))
    partition.grow(1_000)
    partition.records[503] = partition.records[503]._replace(key="rare")
    finder = finder_of(partition)
    for _ in range(2):
        partition.reads.clear()
        assert [record.key for record in await finder.find([b"rare"], 0, partition.end)] == ["rare"]
    [(start, end)] = partition.reads
    assert start <= partition.records[503].offset < end < start + 40
    partition.reads.clear()
    assert await finder.find([b"never"], 0, partition.end) == []
    assert len(await finder.find([CLAIM_KEY.encode()], 0, partition.end)) > 10
    assert partition.reads == []


async def test_what_was_learnt_before_a_failure_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_finder, "STRETCH_RECORDS", 10)
    partition = Partition(Random(0))
    partition.grow(1_000)
    finder = finder_of(partition)
    for _ in range(3):
        partition.fails_after = 300
        with pytest.raises(OSError, match="away"):
            await finder.find([b"never"], 0, partition.end)
    partition.fails_after = 1_000
    assert await finder.find([b"never"], 0, partition.end) == []
    starts = [start for start, _ in partition.reads]
    assert starts[0] == 0 and all(later > earlier for earlier, later in pairwise(starts))
