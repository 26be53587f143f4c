"""The conformance suite of the port in `stepfold.log`: a driver is complete when it passes.

    class TestMine(LogSuite):                       # any runner that awaits `async def test_...` methods, such as pytest-asyncio
        async def open_log(self) -> Log: ...        # a fresh log
        async def reopen(self, log: Log) -> Log | None: ...   # the same one, as another process sees it

The suite uses only the port and the standard library, and knows no driver and no test runner. It does not depend on the
speed of a driver: an expected event may come until `deadline_s`. Only to see that nothing comes, it waits a fixed time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar
from unittest import SkipTest

from ..errors import PayloadTooLarge, StepfoldError
from ..log import CLAIM_KEY, Ack, Entry, Log, Membership, Reader, Record

__all__ = ["LogSuite"]

T = TypeVar("T")

SILENCE_S = 0.05
"""How long the suite waits to see that nothing comes."""


def entry(key: str, **fields: object) -> Entry:
    return Entry(key, json.dumps(fields).encode())


def numbered(count: int, key: str = "run") -> list[Entry]:
    return [entry(key, n=number) for number in range(count)]


def entries_of(records: Iterable[Record]) -> list[Entry]:
    return [Entry(record.key, record.value) for record in records]


async def checkpoints_of(log: Log, partition: int) -> dict[str, bytes]:
    """All items that are stored beside a partition."""
    found: dict[str, bytes | None] = {}
    async for portion in log.checkpoint_load(partition):
        found.update(portion)
    return {key: value for key, value in found.items() if value is not None}


class Assignment:
    """Follows the assignment of one membership; `latest` is None until the first answer."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.latest: frozenset[int] | None = None
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            self.latest = await self.membership.assigned()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, StepfoldError):
            await self._task

    async def leave(self) -> None:
        await self.stop()
        await self.membership.leave()


class LogSuite:
    """Subclass it, implement the two factories, and run it. The subclass keeps the state that they need."""

    deadline_s: float = 30.0
    """The time limit for everything that must happen, in seconds."""

    async def open_log(self) -> Log:
        """A fresh log, opened: empty, with an identity of its own, and with at least two partitions if the driver can."""
        raise NotImplementedError

    async def reopen(self, log: Log) -> Log | None:
        """A second, opened instance on the stored log of `log`, as another process would see it; None if that is impossible."""
        raise NotImplementedError

    # Helpers of the tests.

    @contextlib.asynccontextmanager
    async def fresh(self) -> AsyncGenerator[Log, None]:
        log = await self.open_log()
        try:
            yield log
        finally:
            await self.within(log.close())

    @contextlib.asynccontextmanager
    async def second(self, log: Log) -> AsyncGenerator[Log, None]:
        other = await self.reopen(log)
        if other is None:
            raise SkipTest(f"{log.name} cannot be opened twice")
        try:
            yield other
        finally:
            await self.within(other.close())

    async def within(self, awaitable: Awaitable[T]) -> T:
        timeout = asyncio.timeout(self.deadline_s)
        try:
            async with timeout:
                return await awaitable
        except TimeoutError:
            if not timeout.expired():
                raise
            raise AssertionError(f"nothing came within {self.deadline_s} s") from None

    async def eventually(self, what: str, holds: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.deadline_s
        while not holds():
            assert loop.time() < until, f"not within {self.deadline_s} s: {what}"
            await asyncio.sleep(0.01)

    async def take(self, reader: Reader, count: int, limit: int = 1000) -> list[Record]:
        """The next `count` records, read in portions of `limit`; fails if the reader returns more."""
        records: list[Record] = []

        async def collect() -> None:
            while len(records) < count:
                records.extend(await reader.read(limit, wait=1))

        await self.within(collect())
        assert len(records) == count, f"{len(records)} records where {count} were appended"
        return records

    async def contents(self, log: Log, partition: int = 0) -> list[Record]:
        """All records of the partition at the time of the call."""
        _, end = await log.bounds(partition)
        reader = log.reader(partition, 0)
        records: list[Record] = []

        async def collect() -> None:
            while reader.position < end:
                records.extend(await reader.read(wait=0.1))

        try:
            if end:
                await self.within(collect())
        finally:
            await reader.close()
        return [record for record in records if record.offset < end]

    async def refuses(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await self.within(call())
        except StepfoldError:
            return
        raise AssertionError(f"{what} succeeded where it should raise a StepfoldError")

    # The log itself.

    async def test_says_what_it_is(self) -> None:
        async with self.fresh() as log:
            assert log.name, "a log has a name that a person recognises"
            assert log.id, "an open log knows its identity"
            assert log.partitions >= 1
            assert log.max_value_bytes >= 900_000, "a payload of 900 kB must fit"

    async def test_two_logs_have_two_identities(self) -> None:
        async with self.fresh() as first, self.fresh() as second:
            assert first.id != second.id, "a log that was made again must not be taken for the old one"

    async def test_what_is_fixed_is_the_same_for_every_instance(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            assert (other.id, other.partitions) == (log.id, log.partitions)

    async def test_a_fresh_log_is_empty(self) -> None:
        async with self.fresh() as log:
            for partition in range(log.partitions):
                first, end = await log.bounds(partition)
                assert 0 <= first <= end
                reader = log.reader(partition, 0)
                assert list(await reader.read(wait=SILENCE_S)) == []
                await reader.close()

    async def test_open_and_close_may_be_repeated(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(3))
            await self.within(log.open())
            await self.within(log.close())
            await self.within(log.close())
            await self.within(log.open())
            await log.append(0, [entry("run", n=3)])
            assert entries_of(await self.contents(log)) == numbered(4)

    async def test_a_closed_log_refuses_everything(self) -> None:
        async with self.fresh() as log:
            reader = log.reader(0, 0)
            await log.close()
            await self.refuses("append", lambda: log.append(0, numbered(1)))
            await self.refuses("bounds", lambda: log.bounds(0))
            await self.refuses("find", lambda: log.find(0, ["run"]))
            await self.refuses("join", lambda: log.join("a"))
            await self.refuses("checkpoint_put", lambda: log.checkpoint_put(0, {"a": b"1"}))
            await self.refuses("checkpoint_load", lambda: checkpoints_of(log, 0))
            await self.refuses("read", lambda: reader.read(wait=None))
            await reader.close()

    async def test_close_finishes_what_is_under_way(self) -> None:
        async with self.fresh() as log:
            await log.append(0, [entry("first")])
            appends = [asyncio.create_task(log.append(0, [one])) for one in numbered(20)]
            await asyncio.sleep(0)
            await self.within(log.close())
            await self.within(asyncio.gather(*appends))
            await self.within(log.open())
            assert entries_of(await self.contents(log)) == [entry("first"), *numbered(20)]

    async def test_close_ends_a_waiting_read(self) -> None:
        async with self.fresh() as log:
            reader = log.reader(0, 0)
            reading = asyncio.create_task(reader.read(wait=None))
            await asyncio.sleep(SILENCE_S)
            await self.within(log.close())
            with contextlib.suppress(StepfoldError):
                assert not await self.within(reading)
            await reader.close()

    # Appending.

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

    # Reading.

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

    # Finding.

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

    # Membership.

    async def test_a_single_member_gets_everything(self) -> None:
        async with self.fresh() as log:
            member = Assignment(await self.within(log.join("a")))
            await self.owns_all(log, member)
            await member.leave()
            await member.membership.leave()

    async def owns_all(self, log: Log, *members: Assignment) -> None:
        """Wait until the members share all partitions, and each has one if there are enough."""

        def shared() -> bool:
            given = [partition for member in members for partition in member.latest or ()]
            fair = log.partitions < len(members) or all(member.latest for member in members)
            return fair and sorted(given) == list(range(log.partitions))

        await self.eventually(f"each partition has one of {len(members)} owners", shared)

    async def test_two_members_share_and_one_that_leaves_gives_back(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            await self.owns_all(log, first)
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await first.leave()
            await self.owns_all(log, second)
            third = Assignment(await self.within(log.join("c")))
            await self.owns_all(log, second, third)
            await second.leave()
            await third.leave()

    async def test_who_has_joined_is_live_until_it_leaves(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            mine, theirs = await log.join("mine"), await other.join("theirs")
            await self.within(mine.assigned())
            await self.within(theirs.assigned())
            for asks in (mine, theirs):
                for member, live in (("mine", True), ("theirs", True), ("nobody", False)):
                    assert await self.within(asks.is_live(member)) is live, member
            await self.within(theirs.leave())
            assert not await self.within(mine.is_live("theirs"))
            await self.within(mine.leave())

    async def test_who_retires_owns_nothing_and_is_live_until_it_leaves(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await self.within(first.membership.retire())
            await self.within(first.membership.retire())
            await self.eventually("a member that has retired owns no partition", lambda: first.latest == frozenset())
            await self.owns_all(log, second)
            third = Assignment(await self.within(log.join("c")))
            await self.owns_all(log, second, third)
            for asks in (first, second):
                assert await self.within(asks.membership.is_live("a"))
            await first.leave()
            await self.within(first.membership.retire())
            assert not await self.within(second.membership.is_live("a"))
            await self.owns_all(log, second, third)
            await second.leave()
            await third.leave()

    async def test_all_may_retire(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await self.within(second.membership.retire())
            await self.owns_all(log, first)
            await self.within(first.membership.retire())
            await self.eventually("no member owns a partition", lambda: not first.latest and not second.latest)
            third = Assignment(await self.within(other.join("c")))
            await self.owns_all(log, third)
            for member in (first, second, third):
                await member.leave()

    async def test_one_instance_may_have_several_members(self) -> None:
        async with self.fresh() as log:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(log.join("b")))
            await self.owns_all(log, first, second)
            await first.leave()
            await self.owns_all(log, second)
            await second.leave()

    async def test_closing_gives_everything_back(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await first.stop()
            await self.within(log.close())
            await self.owns_all(other, second)
            await second.leave()

    async def test_a_cancelled_wait_for_assignments_loses_no_change(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await second.stop()
            waiting = asyncio.create_task(second.membership.assigned())
            await asyncio.sleep(SILENCE_S)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                second.latest = await waiting
            await first.leave()
            while second.latest != frozenset(range(log.partitions)):
                second.latest = await self.within(second.membership.assigned())
            await second.leave()

    async def test_members_that_come_and_go_leave_nothing_without_an_owner(self) -> None:
        async with self.fresh() as log, self.second(log) as other:

            async def visit(number: int) -> None:
                member = Assignment(await self.within((log, other)[number % 2].join(f"visitor-{number}")))
                await asyncio.sleep(0.01 * number)
                await self.within(member.leave())

            stays = Assignment(await self.within(log.join("stays")))
            await self.within(asyncio.gather(*(visit(number) for number in range(4))))
            await self.owns_all(log, stays)
            await stays.leave()

    # Checkpoints.

    async def test_checkpoints_are_kept_by_key(self) -> None:
        async with self.fresh() as log:
            assert await checkpoints_of(log, 0) == {}
            await log.checkpoint_put(0, {"a": b"1", "b": b"2"})
            assert await checkpoints_of(log, 0) == {"a": b"1", "b": b"2"}
            await log.checkpoint_put(0, {"b": b"3", "c": b""})
            assert await checkpoints_of(log, 0) == {"a": b"1", "b": b"3", "c": b""}
            await log.checkpoint_put(0, {"a": None, "unknown": None, "d": bytes(range(256))})
            assert await checkpoints_of(log, 0) == {"b": b"3", "c": b"", "d": bytes(range(256))}
            await log.checkpoint_put(0, {})
            await log.checkpoint_put(0, {f"many/{n}": b"x" * 1000 for n in range(2500)})
            assert len(await checkpoints_of(log, 0)) == 2503

    async def test_checkpoints_have_any_keys(self) -> None:
        keys = ["a", "a%", "a_b", "aXb", "ab", "a/1", "a/2", "b/a/1", "ba", "ключ/1", "\U0010ffff", "\U0010ffff/1", "nul\x00/1"]
        items = {key: key.encode() for key in keys}
        async with self.fresh() as log:
            await log.checkpoint_put(0, items)
            assert await checkpoints_of(log, 0) == items

    async def test_checkpoints_of_partitions_are_separate(self) -> None:
        async with self.fresh() as log:
            for partition in range(log.partitions):
                await log.checkpoint_put(partition, {"a": b"%d" % partition})
            for partition in range(log.partitions):
                assert await checkpoints_of(log, partition) == {"a": b"%d" % partition}

    async def test_checkpoints_outlive_the_instance(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            await log.checkpoint_put(0, {"a": b"1", "b": b"2"})
            assert await checkpoints_of(other, 0) == {"a": b"1", "b": b"2"}
            await other.checkpoint_put(0, {"a": b"3", "b": None})
            await other.close()
            assert await checkpoints_of(log, 0) == {"a": b"3"}
            await log.close()
            await log.open()
            assert await checkpoints_of(log, 0) == {"a": b"3"}

    async def test_checkpoints_are_no_records(self) -> None:
        async with self.fresh() as log:
            await log.append(0, numbered(1))
            await log.checkpoint_put(0, {"run": b"1"})
            assert entries_of(await self.contents(log)) == numbered(1)
            assert entries_of(await log.find(0, ["run"])) == numbered(1)
