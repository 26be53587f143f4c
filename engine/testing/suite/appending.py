"""Appending: what is acknowledged, in which order, and who sees it."""

from __future__ import annotations

import asyncio

from ...errors import PayloadTooLarge
from ...log import CLAIM_KEY, Ack, Entry, Log
from .base import LogTests, entries_of, entry, numbered


class AppendingTests(LogTests):
    """Order, acknowledgements, limits, and several writers."""

    async def test_acks_rise_and_say_where_the_records_are(self) -> None:
        async with self.fresh() as log:
            acks: list[Ack] = []
            for one in numbered(10):
                acks += await log.append(0, [one])
            assert len(acks) == 10, "one ack for each entry"
            records = await self.contents(log)
            assert entries_of(records) == numbered(10)
            for ack, record in zip(acks, records, strict=True):
                assert ack.offset in (-1, record.offset), f"{ack} is not where {record} is"
                assert ack.offset == -1 or ack.timestamp == record.timestamp
            offsets = [record.offset for record in records]
            assert offsets == sorted(set(offsets)), "offsets rise"

    async def test_timestamps_are_milliseconds_of_the_logs_own_clock(self) -> None:
        async with self.fresh() as log:
            [ack] = await log.append(0, [entry("run")])
            hour_ms = 3_600_000
            assert abs(ack.timestamp - log.now()) < hour_ms

    async def test_several_entries_are_appended_in_order(self) -> None:
        async with self.fresh() as log:
            acks = await log.append(0, numbered(100))
            offsets = [ack.offset for ack in acks if ack.offset >= 0]
            assert len(acks) == 100 and offsets == sorted(set(offsets))
            await log.append(0, [entry("run", n=100)])
            assert entries_of(await self.contents(log)) == numbered(101)

    async def test_appending_nothing_appends_nothing(self) -> None:
        async with self.fresh() as log:
            assert list(await log.append(0, [])) == []
            assert await self.contents(log) == []

    async def test_concurrent_appends_keep_their_order_of_call(self) -> None:
        async with self.fresh() as log:
            await self.within(asyncio.gather(*(log.append(0, [one]) for one in numbered(100))))
            assert entries_of(await self.contents(log)) == numbered(100)

    async def test_an_acknowledged_record_is_seen_by_everyone_at_once(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            for number in range(5):
                await log.append(0, [entry("run", n=number)])
                _, end = await other.bounds(0)
                found = await other.find(0, ["run"])
                assert entries_of(found) == numbered(number + 1)
                assert found[-1].offset < end

    async def test_acknowledged_records_outlive_the_instance(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(10))
            async with self.second(log) as other:
                await log.close()
                assert entries_of(await self.contents(other)) == numbered(10)
                await other.append(0, [entry("run", n=10)])
            await log.open()
            assert entries_of(await self.contents(log)) == numbered(11)

    async def test_records_come_back_byte_for_byte(self) -> None:
        keys = [
            "a",
            "x" * 500,
            "ключ",
            "\U0001f701",
            "\u00e9",
            "e\u0301",
            "new\nline",
            "\"'\\%_",
            "nul\x00inside",
            " ",
            CLAIM_KEY,
        ]
        values = [
            b"{}",
            b'{"a" : 1.0,  "b":"\\u00e9"}',
            '{"a":"\u00e9\U0001f701"}'.encode(),
            b'{"big":"' + b"x" * 100_000 + b'"}',
        ]
        sent = [Entry(key, value) for key in keys for value in values]
        async with self.fresh() as log:
            await log.append(0, sent)
            assert entries_of(await self.contents(log)) == sent
            assert entries_of(await log.find(0, ["e\u0301"])) == [one for one in sent if one.key == "e\u0301"]

    async def test_a_payload_above_the_limit_appends_nothing(self) -> None:
        async with self.fresh() as log:
            largest = Entry("run", b"x" * log.max_value_bytes)
            too_large = Entry("run", b"x" * (log.max_value_bytes + 1))
            try:
                await log.append(0, [entry("run"), too_large, entry("run")])
            except PayloadTooLarge:
                pass
            else:
                raise AssertionError("a value above max_value_bytes was appended")
            assert await self.contents(log) == []
            await log.append(0, [largest])
            assert entries_of(await self.contents(log)) == [largest]

    async def test_partitions_are_separate(self) -> None:
        async with self.fresh() as log:
            for partition in range(log.partitions):
                await log.append(partition, [entry("run", partition=partition)])
            for partition in range(log.partitions):
                assert entries_of(await self.contents(log, partition)) == [entry("run", partition=partition)]
                assert entries_of(await log.find(partition, ["run"])) == [entry("run", partition=partition)]

    async def test_two_writers_both_succeed_and_order_decides(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            [claim] = await log.append(0, [entry(CLAIM_KEY, prev=None, owner="a")])
            mine = entry(CLAIM_KEY, prev=claim.offset, owner="a")
            theirs = entry(CLAIM_KEY, prev=claim.offset, owner="b")
            await self.within(asyncio.gather(log.append(0, [mine]), other.append(0, [theirs])))
            await other.append(0, [entry("run", claim="b")])
            await log.append(0, [entry("run", claim="a")])
            seen = await self.contents(log)
            assert seen == await self.contents(other), "every reader sees the same order"
            written = entries_of(seen)
            assert written[0] == entry(CLAIM_KEY, prev=None, owner="a")
            assert sorted(written[1:3]) == sorted([mine, theirs]), "an append is never refused for another's sake"
            assert written[3:] == [entry("run", claim="b"), entry("run", claim="a")]

    async def test_many_writers_of_two_instances_make_one_order(self) -> None:
        writers, appends = 8, 50

        async def write(log: Log, writer: int) -> None:
            for number in range(appends):
                await log.append(0, [entry(f"w{writer}", n=number)])

        async with self.fresh() as log, self.second(log) as other:
            readers = [log.reader(0, 0), other.reader(0, 0), other.reader(0, 0)]
            reading = [asyncio.create_task(self.take(reader, writers * appends)) for reader in readers]
            await self.within(asyncio.gather(*(write((log, other)[writer % 2], writer) for writer in range(writers))))
            mine, *others = await self.within(asyncio.gather(*reading))
            for reader in readers:
                await reader.close()
            assert all(seen == mine for seen in others), "every reader sees the same order"
            for writer in range(writers):
                key = f"w{writer}"
                assert entries_of(record for record in mine if record.key == key) == numbered(appends, key)
