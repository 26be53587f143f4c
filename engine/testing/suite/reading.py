"""Reading: by position, and by key."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

from ...log import CLAIM_KEY, Entry, Log, Record
from .base import SILENCE_S, LogTests, entries_of, entry, numbered


class ReadingTests(LogTests):
    """Readers: where they begin, how they wait, what they leave out."""

    async def test_a_reader_starts_anywhere(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            records = await self.contents(log)
            for start in (0, 1, 5, 9):
                reader = log.reader(0, records[start].offset)
                assert reader.position <= records[start].offset
                assert await self.take(reader, 10 - start) == records[start:]
                assert reader.position > records[-1].offset, "the position is behind what was read"
                await reader.close()

    async def test_a_reader_at_the_end_gets_only_news(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            _, end = await log.bounds(0)
            reader = log.reader(0, end)
            assert list(await reader.read(wait=SILENCE_S)) == []
            await log.append(0, [entry("run", n=10)])
            assert entries_of(await self.take(reader, 1)) == [entry("run", n=10)]
            await reader.close()

    async def test_a_reader_gives_at_most_what_it_is_asked_for(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            reader = log.reader(0, 0)
            got: list[Entry] = []
            while len(got) < 10:
                portion = await self.within(reader.read(3, wait=None))
                assert 1 <= len(portion) <= 3
                got += entries_of(portion)
            assert got == numbered(10)
            await reader.close()

    async def test_a_silent_log_gives_an_empty_answer(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(2))
            reader = log.reader(0, 0)
            await self.take(reader, 2)
            position = reader.position
            assert list(await self.within(reader.read())) == []
            assert list(await self.within(reader.read(wait=SILENCE_S))) == []
            assert reader.position >= position
            await log.append(0, [entry("run", n=2)])
            assert entries_of(await self.take(reader, 1)) == [entry("run", n=2)]
            await reader.close()

    async def test_an_append_wakes_a_waiting_reader(self) -> None:
        async with self.fresh() as log:
            await self.wakes(log, log)

    async def test_an_append_of_another_instance_wakes_a_waiting_reader(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            await self.wakes(log, other)

    async def wakes(self, mine: Log, writer: Log) -> None:
        partition = mine.partitions - 1
        reader = mine.reader(partition, 0)
        for number in range(5):
            reading = asyncio.create_task(reader.read(wait=None))
            await asyncio.sleep(0.1 * number)
            assert not reading.done(), "there was nothing to read"
            await writer.append(partition, [entry("run", n=number)])
            assert entries_of(await self.within(reading)) == [entry("run", n=number)]
        await reader.close()

    async def test_a_read_with_a_long_wait_ends_with_the_news(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            reader = log.reader(0, 0)
            reading = asyncio.create_task(reader.read(wait=self.deadline_s * 100))
            await asyncio.sleep(SILENCE_S)
            await other.append(0, [entry("run")])
            assert entries_of(await self.within(reading)) == [entry("run")]
            await reader.close()

    async def test_a_cancelled_read_loses_nothing(self) -> None:
        count = 60
        chance = random.Random(7)

        async def write(log: Log) -> None:
            for one in numbered(count):
                await log.append(0, [one])
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))

        async with self.fresh() as log, self.second(log) as other:
            writing = asyncio.create_task(write(other))
            reader = log.reader(0, 0)
            got: list[Record] = []

            async def read() -> None:
                while len(got) < count:
                    reading = asyncio.create_task(reader.read(3, wait=None))
                    await asyncio.sleep(chance.choice((0, 0, 0.001, 0.003, 0.01, 0.03)))
                    reading.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        got.extend(await reading)

            await self.within(read())
            await writing
            assert entries_of(got) == numbered(count)
            await reader.close()

    async def test_seek_leaves_records_out(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            records = await self.contents(log)
            reader = log.reader(0, 0)
            first = await self.within(reader.read(2, wait=None))
            assert list(first) == records[: len(first)]
            reader.seek(records[6].offset)
            assert reader.position == records[6].offset
            assert await self.take(reader, 4) == records[6:]
            await log.append(0, numbered(3, "skipped"))
            _, end = await log.bounds(0)
            reader.seek(end)
            assert list(await reader.read(wait=SILENCE_S)) == []
            await log.append(0, [entry("wanted")])
            assert entries_of(await self.take(reader, 1)) == [entry("wanted")]
            await reader.close()

    async def test_readers_are_independent(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            one, two = log.reader(0, 0), log.reader(0, 0)
            assert entries_of(await self.take(one, 10, limit=4)) == numbered(10)
            await one.close()
            assert entries_of(await self.take(two, 10, limit=7)) == numbered(10)
            await two.close()

    async def test_bounds_enclose_the_records(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(3))
            first, end = await log.bounds(0)
            records = await self.contents(log)
            assert first <= records[0].offset and records[-1].offset < end
            await log.append(0, [entry("run", n=3)])
            assert (await self.contents(log))[-1].offset >= end, "the next append gets at least the end"


class FindingTests(LogTests):
    """The records of keys."""

    async def test_find_gives_the_records_of_the_keys_in_order(self) -> None:
        async with self.fresh() as log:
            sent = [entry(f"run-{n % 7}", n=n) for n in range(70)]
            sent[10:10] = [entry(CLAIM_KEY, owner="a")]
            await log.append(0, sent)
            records = await self.contents(log)

            async def check(keys: Sequence[str], start: int = 0) -> None:
                expected = [record for record in records if record.key in keys and record.offset >= start]
                assert list(await self.within(log.find(0, keys, start))) == expected, f"find({keys[:5]}, start={start})"

            await check(["run-3"])
            await check([CLAIM_KEY])
            await check(["run-5", CLAIM_KEY, "run-2"])
            await check(["run-3", "run-3"])
            await check(["unknown"])
            await check(["unknown", "run-1"])
            await check([])
            await check(["run-3", "run-4"], records[30].offset)
            await check(["run-3"], records[-1].offset + 1)
            await check([f"run-{n}" for n in range(3_000)])
