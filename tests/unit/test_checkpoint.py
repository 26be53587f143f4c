"""Checkpoints: what is read back is what was folded, or nothing is; damage and zombies cost time, never truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import orjson
import pytest
from histories import RUN, Keeper, Ledger, facts, reloaded, stored

from stepfold.drivers import MemoryDriver
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.fold import FORGET_MS, Ended, PartitionState
from stepfold.log import Entry
from stepfold.testing.suite import checkpoints_of

LINES = "stepfold.worker"


class Failing(MemoryDriver):
    """A log whose checkpoint store fails, or stands still, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1_000
        self.gate = asyncio.Event()
        self.gate.set()
        self.written: list[str] = []

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        await self.gate.wait()
        self.left -= 1
        if self.left < 0:
            raise LogUnavailable("the checkpoint store is away")
        self.written += [key for key, value in items.items() if value is not None]
        await super().checkpoint_put(partition, items)


def ledger_of(*run_ids: str) -> Ledger:
    ledger = Ledger(stride=1)
    ledger.claim()
    for run_id in run_ids:
        ledger.start(run_id)
        ledger.accepts("sleep-scheduled", run_id, step_id="nap", wake_at=ledger.now_ms)
    return ledger


async def kept(ledger: Ledger, log: MemoryDriver | None = None) -> Keeper:
    """A keeper that has folded the ledger and saved."""
    keeper = Keeper(await stored(ledger, log or MemoryDriver(clock=lambda: ledger.now_ms)))
    await keeper.load()
    keeper.fold(ledger.records)
    await keeper.save()
    return keeper


async def test_without_checkpoints_one_starts_from_the_beginning() -> None:
    log = await stored(ledger_of("a"), MemoryDriver())
    assert (await Keeper(log).load()).pack() == PartitionState().pack()


async def test_what_was_saved_is_loaded() -> None:
    ledger = ledger_of("a", "b", "c")
    ledger.accepts("completed", "b", result=1)
    keeper = await kept(ledger)
    state = await Keeper(keeper.log).load()
    assert state.pack() == ledger.state.pack()
    assert facts(state) == facts(ledger.state)
    assert state.ended.remembers("b", ledger.now_ms)


async def test_the_tail_is_folded_over_what_was_loaded() -> None:
    ledger = ledger_of("a", "b")
    keeper = await kept(ledger)
    ledger.accepts("signal-received", "a", signal="go", data=1)
    ledger.accepts("completed", "b", result=1)
    ledger.start("c")
    assert (await reloaded(ledger, keeper.log)).pack() == ledger.state.pack()


async def test_a_checkpoint_writes_what_has_changed() -> None:
    ledger = ledger_of(*(f"run-{number}" for number in range(50)))
    log = Failing()
    keeper = await kept(ledger, log)
    assert len(log.written) == 51, "each run, and the marker"
    log.written.clear()
    ledger.accepts("signal-received", "run-7", signal="go", data=1)
    keeper.fold(ledger.records)
    await keeper.save()
    assert log.written == ["0/r/run-7", "0/m"]


async def test_nothing_is_left_of_runs_that_have_ended() -> None:
    ledger = ledger_of("a", "b")
    keeper = await kept(ledger)
    ledger.accepts("completed", "a", result=1)
    keeper.fold(ledger.records)
    await keeper.save()
    assert sorted(await checkpoints_of(keeper.log, 0)) == ["0/e/0", "0/m", "0/r/b"]


async def test_a_new_owner_replaces_what_the_old_one_wrote() -> None:
    ledger = ledger_of("a", "b")
    log = (await kept(ledger)).log
    ledger.accepts("completed", "a", result=1)
    ledger.claim("worker-b")
    second = Keeper(await stored(ledger, log))
    await second.load()
    second.fold(ledger.records)
    await second.save()
    claim = ledger.state.claim
    assert sorted(await checkpoints_of(log, 0)) == ["0/r/b", f"{claim}/e/0", f"{claim}/m"]
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


@pytest.mark.parametrize("run_id", ["order/m", "0/m", "a/e/0", "a/r/b", "/", "e/0", "ключ/m"])
async def test_run_ids_may_look_like_keys(run_id: str) -> None:
    ledger = ledger_of(run_id, "other")
    keeper = await kept(ledger)
    for number in range(3):
        ledger.accepts("signal-received", run_id, signal="go", data=number)
        await stored(ledger, keeper.log)
        keeper.fold(ledger.records)
        await keeper.save()
        assert (await Keeper(keeper.log).load()).pack() == ledger.state.pack()
    ledger.accepts("completed", run_id, result=1)
    await stored(ledger, keeper.log)
    keeper.fold(ledger.records)
    await keeper.save()
    assert (await Keeper(keeper.log).load()).pack() == ledger.state.pack()


async def test_ended_ids_grow_over_many_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 3)
    ledger = ledger_of("stays")
    keeper = await kept(ledger)
    for number in range(8):
        ledger.start(f"run-{number}")
        ledger.accepts("completed", f"run-{number}", result=1)
        await stored(ledger, keeper.log)
        keeper.fold(ledger.records)
        await keeper.save()
        loaded = await Keeper(keeper.log).load()
        assert loaded.offset == ledger.state.offset
        assert loaded.pack() == ledger.state.pack()


async def test_chunks_past_remembering_leave_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ledger = ledger_of("a", "b")
    for run_id in ("a", "b"):
        ledger.accepts("completed", run_id, result=1)
    keeper = await kept(ledger)
    assert {"0/e/0", "0/e/1"} <= set(await checkpoints_of(keeper.log, 0))
    ledger.now_ms += FORGET_MS
    ledger.start("c")
    keeper.fold(ledger.records)
    await stored(ledger, keeper.log)
    await keeper.save()
    assert sorted(await checkpoints_of(keeper.log, 0)) == ["0/e/1", "0/m", "0/r/c"]
    loaded = await Keeper(keeper.log).load()
    assert loaded.offset == ledger.state.offset and list(loaded.runs) == ["c"] and len(loaded.ended) == 1


async def test_a_large_run_is_stored_in_pieces() -> None:
    ledger = ledger_of(RUN)
    for number in range(4):
        ledger.accepts("step-completed", step_id=f"step-{number}", attempt=1, result="x" * 400_000)
    keeper = await kept(ledger)
    sizes = [len(value) for key, value in (await checkpoints_of(keeper.log, 0)).items() if "/r/" in key]
    assert len(sizes) == 4 and max(sizes) < 600_000
    assert (await Keeper(keeper.log).load()).pack() == ledger.state.pack()


async def test_a_snapshot_without_its_marker_is_no_marker() -> None:
    """A new owner may die between the two."""
    ledger = ledger_of("order/m")
    log = Failing()
    await kept(ledger, log)
    ledger.accepts("signal-received", "order/m", signal="go", data=1)
    ledger.claim("worker-b")
    second = Keeper(await stored(ledger, log))
    await second.load()
    second.fold(ledger.records)
    log.left = 1
    with pytest.raises(LogUnavailable):
        await second.save()
    loaded = await Keeper(log).load()
    assert loaded.offset > 0
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


@pytest.mark.parametrize("spoilt", ["0/m", "0/r/a", "0/e/0"])
@pytest.mark.parametrize("how", ["cut", "garbage", "empty", "missing", "json"])
async def test_damage_costs_a_fold_from_the_beginning(spoilt: str, how: str) -> None:
    ledger = ledger_of("a", "b")
    ledger.accepts("completed", "b", result=1)
    keeper = await kept(ledger)
    whole = (await checkpoints_of(keeper.log, 0))[spoilt]
    values = {"cut": whole[:-3], "garbage": b"\xff\x00" * 40, "empty": b"", "missing": None, "json": b'[{"a":1}]'}
    await keeper.log.checkpoint_put(0, {spoilt: values[how]})
    assert (await reloaded(ledger, keeper.log)).pack() == ledger.state.pack()


@pytest.mark.parametrize("spoilt", ["snapshot of a run that has ended", "snapshot of a run that never was", "snapshot is gone"])
async def test_other_runs_than_the_marker_counts_cost_a_fold_from_the_beginning(spoilt: str) -> None:
    ledger = ledger_of("a", "b")
    keeper = await kept(ledger)
    before = await checkpoints_of(keeper.log, 0)
    ledger.accepts("completed", "a", result=1)
    keeper.fold(ledger.records)
    await stored(ledger, keeper.log)
    await keeper.save()
    if "ended" in spoilt:
        await keeper.log.checkpoint_put(0, {"0/r/a": before["0/r/a"]})
    elif "never" in spoilt:
        other = await kept(ledger_of("c"))
        await keeper.log.checkpoint_put(0, {"0/r/c": (await checkpoints_of(other.log, 0))["0/r/c"]})
    else:
        await keeper.log.checkpoint_put(0, {"0/r/b": None})
    assert (await reloaded(ledger, keeper.log)).pack() == ledger.state.pack()


async def test_a_checkpoint_of_another_format_is_not_read() -> None:
    ledger = ledger_of("a")
    keeper = await kept(ledger)
    marker = orjson.loads((await checkpoints_of(keeper.log, 0))["0/m"])
    await keeper.log.checkpoint_put(0, {"0/m": orjson.dumps(marker | {"version": 99})})
    assert (await Keeper(keeper.log).load()).offset == 0


async def test_a_log_that_lost_what_a_checkpoint_covers_is_refused() -> None:
    ledger = ledger_of("a")
    keeper = await kept(ledger)
    marker = orjson.loads((await checkpoints_of(keeper.log, 0))["0/m"])
    await keeper.log.checkpoint_put(0, {"0/m": orjson.dumps(marker | {"offset": ledger.state.offset + 1})})
    with pytest.raises(ConfigError, match="records were lost"):
        await Keeper(keeper.log).load()


async def test_a_checkpoint_that_is_saved_while_another_owner_loads_is_not_ahead_of_the_log() -> None:
    class Busy(MemoryDriver):
        async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
            ledger.start("b")
            await stored(ledger, self)
            before.fold(ledger.records)
            await before.save()
            async for portion in super().checkpoint_load(partition):
                yield portion

    ledger = ledger_of("a")
    before = Keeper(await stored(ledger, Busy()))
    assert (await Keeper(before.log).load()).pack() == ledger.state.pack()


async def test_a_log_without_its_beginning_needs_a_checkpoint() -> None:
    class Trimmed(MemoryDriver):
        async def bounds(self, partition: int) -> tuple[int, int]:
            return 2, (await super().bounds(partition))[1]

    ledger = ledger_of("a")
    log = await stored(ledger, Trimmed())
    with pytest.raises(ConfigError, match="no checkpoint covers them"):
        await Keeper(log).load()
    keeper = Keeper(log)
    keeper.fold(ledger.records)
    await keeper.save()
    assert (await Keeper(log).load()).pack() == ledger.state.pack()


# What did not become durable is written again.


@pytest.mark.parametrize("puts", [0, 1])
async def test_what_a_failed_checkpoint_held_is_in_the_next_one(puts: int) -> None:
    """Otherwise the next marker would vouch for a snapshot that was never written."""
    ledger = ledger_of("a", "b")
    log = Failing()
    keeper = await kept(ledger, log)
    ledger.accepts("signal-received", "a", signal="go", data=1)
    ledger.accepts("completed", "b", result=1)
    keeper.fold(ledger.records)
    log.left = puts
    with pytest.raises(LogUnavailable):
        await keeper.save()
    log.left = 1_000
    ledger.start("c")
    keeper.fold(ledger.records)
    await stored(ledger, log)
    await keeper.save()
    loaded = await Keeper(log).load()
    assert loaded.offset == ledger.state.offset
    assert loaded.pack() == ledger.state.pack()


@pytest.mark.parametrize("moment", ["packing", "writing"])
async def test_what_an_abandoned_checkpoint_held_is_in_the_next_one(moment: str) -> None:
    ledger = ledger_of("a")
    log = Failing()
    keeper = await kept(ledger, log)
    ledger.accepts("signal-received", "a", signal="go", data=1)
    keeper.fold(ledger.records)
    if moment == "packing":
        keeper.checkpoint.begin(keeper.state, keeper.state.claim)
    else:
        log.gate.clear()
        saving = asyncio.create_task(keeper.save())
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        log.gate.set()
    ledger.start("b")
    keeper.fold(ledger.records)
    await stored(ledger, log)
    await keeper.save()
    assert (await Keeper(log).load()).pack() == ledger.state.pack()


async def test_a_run_that_changes_while_a_checkpoint_is_packed_is_stored_as_it_was() -> None:
    ledger = ledger_of("a", "b")
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    keeper.fold(ledger.records)
    expected = ledger.state.pack()
    keeper.checkpoint.begin(keeper.state, keeper.state.claim)
    ledger.accepts("signal-received", "a", signal="go", data=1)
    keeper.fold(ledger.records)
    await stored(ledger, keeper.log)
    while keeper.checkpoint.pack_some(keeper.state):
        pass
    await keeper.checkpoint.commit()
    loaded = await Keeper(keeper.log).load()
    assert loaded.pack() == expected
    assert (await reloaded(ledger, keeper.log)).pack() == ledger.state.pack()


async def test_whether_a_run_is_idle_is_stored_with_it() -> None:
    ledger = ledger_of("a", "b")
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    keeper.fold(ledger.records)
    keeper.state.runs["a"].idle = True
    await keeper.save()
    loaded = await Keeper(keeper.log).load()
    assert loaded.runs["a"].idle and not loaded.runs["b"].idle


async def test_entries_of_other_keys_are_no_runs() -> None:
    log = MemoryDriver()
    ledger = ledger_of("a")
    ledger.write(b"nonsense", key="no run")
    keeper = await kept(ledger, log)
    await log.append(0, [Entry("no run", b"more")])
    assert list((await Keeper(keeper.log).load()).runs) == ["a"]


# Owners come and go, and come back with the state they had.


@pytest.mark.parametrize("ends", [False, True])
async def test_nothing_stays_of_an_owner_in_between(ends: bool) -> None:
    """One that comes back with the state it kept has not seen what was stored meanwhile."""
    ledger = ledger_of("a", "b")
    first = await kept(ledger)
    ledger.claim("worker-b")
    ledger.accepts("signal-received", "a", signal="go", data="x" * 600_000)
    between = Keeper(await stored(ledger, first.log))
    await between.load()
    between.fold(ledger.records)
    await between.save()
    ledger.claim("worker-a")
    claim = ledger.state.claim
    if ends:
        ledger.accepts("completed", "a", result=1)
    await stored(ledger, first.log)
    first.fold(ledger.records)
    await first.look_again()
    await first.save()
    runs = ["0/r/b"] if ends else ["0/r/b", f"{claim}/r/a", f"{claim}/r/a\n1"]
    ended = [f"{claim}/e/0"] if ends else []
    assert sorted(await checkpoints_of(first.log, 0)) == sorted([*runs, *ended, f"{claim}/m"])
    assert (await Keeper(first.log).load()).pack() == ledger.state.pack()


async def test_nothing_stays_of_what_the_owner_before_stored_while_the_next_one_waited() -> None:
    ledger = ledger_of("a")
    first = await kept(ledger)
    second = Keeper(first.log)
    await second.load()
    ledger.start("b")
    first.fold(ledger.records)
    await first.save()
    ledger.claim("worker-b")
    claim = ledger.state.claim
    ledger.accepts("completed", "b", result=1)
    await stored(ledger, first.log)
    second.fold(ledger.records)
    await second.look_again()
    await second.save()
    assert sorted(await checkpoints_of(first.log, 0)) == sorted(["0/r/a", f"{claim}/e/0", f"{claim}/m"])


async def test_a_snapshot_that_an_owner_in_between_replaced_is_stored_again() -> None:
    """It took over from an older marker, so it stored what the one that comes back knows to be stored, and removed that."""
    ledger = ledger_of("a")
    first = await kept(ledger)
    between = Keeper(first.log)
    await between.load()
    ledger.accepts("signal-received", "a", signal="go", data=1)
    first.fold(ledger.records)
    await first.save()
    ledger.claim("worker-b")
    await stored(ledger, first.log)
    between.fold(ledger.records)
    await between.save()
    assert "0/r/a" not in await checkpoints_of(first.log, 0)
    ledger.claim("worker-a")
    claim = ledger.state.claim
    await stored(ledger, first.log)
    first.fold(ledger.records)
    await first.look_again()
    await first.save()
    assert sorted(await checkpoints_of(first.log, 0)) == sorted([f"{claim}/m", f"{claim}/r/a"])
    assert (await Keeper(first.log).load()).pack() == ledger.state.pack()


async def test_what_a_later_owner_stores_is_left_alone() -> None:
    ledger = ledger_of("a", "b")
    zombie = await kept(ledger)
    ledger.claim("worker-b")
    claim = ledger.state.claim
    ledger.accepts("completed", "a", result=1)
    ledger.accepts("signal-received", "b", signal="go", data=1)
    later = Keeper(await stored(ledger, zombie.log))
    await later.load()
    later.fold(ledger.records)
    await later.save()
    await zombie.look_again()
    await zombie.save()
    assert {f"{claim}/m", f"{claim}/e/0", f"{claim}/r/b"} <= set(await checkpoints_of(zombie.log, 0))
    assert (await Keeper(zombie.log).load()).pack() == ledger.state.pack()


async def test_a_take_over_does_not_write_the_ended_ids_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ledger = ledger_of("a", "b", "c", "d")
    for run_id in ("a", "b"):
        ledger.accepts("completed", run_id, result=1)
    log = Failing()
    await kept(ledger, log)
    log.written.clear()
    ledger.claim("worker-b")
    claim = ledger.state.claim
    ledger.accepts("completed", "c", result=1)
    second = Keeper(await stored(ledger, log))
    await second.load()
    second.fold(ledger.records)
    await second.save()
    assert log.written == [f"{claim}/e/2", f"{claim}/m"]
    assert (await Keeper(log).load()).pack() == ledger.state.pack()


async def test_ended_ids_that_another_owner_forgot_are_stored_again() -> None:
    ledger = ledger_of("a", "b")
    ledger.accepts("completed", "a", result=1)
    first = await kept(ledger)
    await first.log.checkpoint_put(0, {"0/e/0": None})
    await first.look_again()
    await first.save()
    assert (await Keeper(first.log).load()).pack() == ledger.state.pack()


@pytest.mark.parametrize("reloads", [False, True])
async def test_chunks_past_remembering_leave_the_store_after_a_failure_too(
    monkeypatch: pytest.MonkeyPatch, reloads: bool
) -> None:
    monkeypatch.setattr(Ended, "CHUNK_ENTRIES", 1)
    ledger = ledger_of("a", "b")
    for run_id in ("a", "b"):
        ledger.accepts("completed", run_id, result=1)
    log = Failing()
    log.now = lambda: ledger.now_ms
    keeper = await kept(ledger, log)
    ledger.now_ms += FORGET_MS
    ledger.start("c")
    keeper.fold(ledger.records)
    await stored(ledger, log)
    log.left = 2
    with pytest.raises(LogUnavailable):
        await keeper.save()
    log.left = 1_000
    if reloads:
        await keeper.load()
    await keeper.save()
    assert sorted(await checkpoints_of(log, 0)) == ["0/e/1", "0/m", "0/r/c"]
