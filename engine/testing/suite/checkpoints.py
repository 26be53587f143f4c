"""Checkpoints: the items beside a partition."""

from __future__ import annotations

from .base import LogTests, checkpoints_of, entries_of, numbered


class CheckpointTests(LogTests):
    """Items by key, kept apart from records and from other partitions."""

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
