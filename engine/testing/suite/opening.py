"""Opening: a log says what it is, and opens and closes."""

from __future__ import annotations

import asyncio
import contextlib

from ...errors import StepfoldError
from .base import SILENCE_S, LogTests, checkpoints_of, entries_of, entry, numbered


class OpeningTests(LogTests):
    """Identity, opening and closing."""

    async def test_says_what_it_is(self) -> None:
        async with self.fresh() as log:
            assert log.name, "a log has a name that a person recognises"
            assert "://" in log.url, "a log has a URL"
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
