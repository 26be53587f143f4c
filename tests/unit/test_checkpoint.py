"""Checkpoints: what is read back is what was folded, or nothing is; damage and zombies cost time, never truth."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping

import orjson
import pytest
from histories import RUN, Keeper, Ledger, facts, reloaded, stored

from stepfold.client.requests import started
from stepfold.core.ended import MARGIN_MS, REMEMBER_MS, Ended
from stepfold.core.fold import PartitionState, fold
from stepfold.drivers import MemoryDriver
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import CLAIM_KEY, Entry
from stepfold.testing.suite import checkpoints_of
from stepfold.worker.checkpoint import VERSION

LINES = "stepfold.worker"
FORGET_MS = REMEMBER_MS + MARGIN_MS


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
    assert loaded.offset == ledger.state.offset and loaded.runs.ids() == ["c"] and len(loaded.ended) == 1


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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
async def test_a_checkpoint_of_another_format_is_not_read(version: int) -> None:
    ledger = ledger_of("a")
    keeper = await kept(ledger)
    marker = orjson.loads((await checkpoints_of(keeper.log, 0))["0/m"])
    await keeper.log.checkpoint_put(0, {"0/m": orjson.dumps(marker | {"version": version})})
    assert (await Keeper(keeper.log).load()).offset == 0


# A log that is not the one that was read.


class Restored(MemoryDriver):
    """A copy of another log up to an offset, with the checkpoints of all of it; the copy may be without its beginning."""

    def __init__(self, of: MemoryDriver, end: int, start: int = 0) -> None:
        super().__init__(log_id=of.id, clock=of.now)
        self._of, self._end, self._start = of, end, start

    async def open(self) -> None:
        await super().open()
        for record in await self._of.reader(0, 0).read(self._end):
            await self.append(0, [Entry(record.key, record.value)])
        await self.checkpoint_put(0, await checkpoints_of(self._of, 0))

    async def bounds(self, partition: int) -> tuple[int, int]:
        return self._start, (await super().bounds(partition))[1]


ANOTHER = ["ends before", "goes on otherwise", "has another id"]


async def another_log(keeper: Keeper, how: str, start: int = 0) -> Restored:
    end = keeper.state.offset
    log = Restored(keeper.log, 2 if how != "has another id" else end, start)
    if how == "has another id":
        log._store.id = "another"  # pyright: ignore[reportPrivateUsage] # as a topic that was made again
    await log.open()
    if how == "goes on otherwise":  # by requests alone: nobody has claimed it since
        for number in range(end):
            await log.append(0, [started(f"later-{number}", "w", None, b"null", request=f"r{number}", at=0)])
    return log


@pytest.mark.parametrize("how", ANOTHER)
async def test_a_checkpoint_of_another_log_is_not_used(how: str, caplog: pytest.LogCaptureFixture) -> None:
    log = await another_log(await kept(ledger_of("a", "ghost")), how)
    keeper = Keeper(log)
    assert (await keeper.load()).offset == 0
    assert "its checkpoint is of another log" in caplog.text and "folding them from the start" in caplog.text
    keeper.fold(await log.reader(0, 0).read())
    await keeper.save()
    assert (await Keeper(log).load()).pack() == keeper.state.pack(), "a checkpoint of the log as it is now took its place"
    assert "another log" not in caplog.text[caplog.text.index("from the start") :]


async def test_a_snapshot_of_a_log_that_went_further_is_not_taken_for_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner dies when its first marker is written, before it removes anything."""
    ledger = ledger_of("a", "b")
    ledger.accepts("sleep-completed", "a", step_id="nap", at=ledger.now_ms)
    log = Restored((await kept(ledger)).log, 2)
    await log.open()
    await log.append(
        0, [Entry(CLAIM_KEY, orjson.dumps({"type": "claim", "v": 2, "at": 1, "prev": 0, "owner": "w2", "nonce": "n"}))]
    )
    keeper = Keeper(log)
    await keeper.load()
    keeper.fold(await log.reader(0, 0).read())
    put = log.checkpoint_put

    async def dies_at_the_marker(partition: int, items: Mapping[str, bytes | None]) -> None:
        await put(partition, items)
        if "2/m" in items:
            raise LogUnavailable("the end")

    monkeypatch.setattr(log, "checkpoint_put", dies_at_the_marker)
    with pytest.raises(LogUnavailable):
        await keeper.save()
    assert (await Keeper(log).load()).pack() == keeper.state.pack()


@pytest.mark.parametrize("grown", [0, 1, 3])
async def test_snapshots_of_a_checkpoint_that_was_never_ended_are_held_against_the_log(
    grown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marker fits the restored log; the snapshot that lies beside it is of what the log has lost, and has had other
    records for since."""
    ledger = ledger_of("a")
    keeper = await kept(ledger)
    ledger.accepts("sleep-completed", "a", step_id="nap", at=ledger.now_ms)
    await stored(ledger, keeper.log)
    keeper.fold(ledger.records)
    put = keeper.log.checkpoint_put

    async def dies_before_the_marker(partition: int, items: Mapping[str, bytes | None]) -> None:
        if any(key.endswith("/m") for key in items):
            raise LogUnavailable("the end")
        await put(partition, items)

    monkeypatch.setattr(keeper.log, "checkpoint_put", dies_before_the_marker)
    with pytest.raises(LogUnavailable):
        await keeper.save()
    assert (await Keeper(keeper.log).load()).runs.peek("a").open == {}, "in this log it is a later state"

    log = Restored(keeper.log, 3)
    await log.open()
    request = {"type": "cancel-requested", "v": 1, "run_id": "a", "at": 1, "reason": None}
    for number in range(grown):
        await log.append(0, [Entry("a", orjson.dumps({**request, "request": f"r{number}"}))])
    found = Keeper(log)
    await found.load()
    found.fold(await log.reader(0, 0).read(10))
    alone = PartitionState()
    for record in await log.reader(0, 0).read(10):
        fold(alone, record)
    assert found.state.pack() == alone.pack()


@pytest.mark.parametrize("how", ANOTHER)
async def test_a_log_without_its_beginning_and_with_checkpoints_of_another_is_refused(how: str) -> None:
    log = await another_log(await kept(ledger_of("a", "ghost")), how, 1)
    with pytest.raises(ConfigError, match="are gone and its checkpoint is of another log") as refusal:
        await Keeper(log).load()
    assert "Replace it with a copy that has its beginning" in str(refusal.value)
    assert "from a backup" not in str(refusal.value)


@pytest.mark.parametrize("how", [None, "ends before", "goes on otherwise"])
async def test_what_was_folded_is_held_against_the_log(how: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """An owner keeps what it has folded while another worker has the partition."""
    keeper = await kept(ledger_of("a", "ghost"))
    log = keeper.log if how is None else await another_log(keeper, how)
    keeper.checkpoint._log = log  # pyright: ignore[reportPrivateUsage] # the log under it is another one from now on
    assert await keeper.checkpoint.fits(keeper.state) is (how is None)
    assert ("the folded state is of another log" in caplog.text) is (how is not None)


async def test_a_log_that_lost_what_follows_on_a_checkpoint_is_refused() -> None:
    keeper = await kept(ledger_of("a"))
    end = keeper.state.offset
    log = Restored(keeper.log, end, end + 1)
    await log.open()
    keeper.checkpoint._log = log  # pyright: ignore[reportPrivateUsage] # the log under it is another one
    assert not await keeper.checkpoint.fits(keeper.state)
    with pytest.raises(ConfigError, match="records were lost"):
        await Keeper(log).load()


@pytest.mark.parametrize("marks", [7, [7], [[1]], [["1", "a"]], [[1, 2]]])
async def test_marks_that_cannot_be_read_cost_a_fold_from_the_beginning(marks: object) -> None:
    keeper = await kept(ledger_of("a"))
    marker = orjson.loads((await checkpoints_of(keeper.log, 0))["0/m"])
    assert [offset for offset, _ in marker["stood"]] == [0, keeper.state.offset - 1], "the claim, and the last record"
    del marker["sum"]
    marker |= {"stood": marks}
    await keeper.log.checkpoint_put(0, {"0/m": orjson.dumps(marker | {"sum": zlib.crc32(orjson.dumps(marker))})})
    assert (await Keeper(keeper.log).load()).offset == 0


@pytest.mark.parametrize("changed", [{"claim": 1}, {"owner": None}, {"deaths": [7, 0]}, {"sum": 0}, {"offset": 2}])
async def test_a_marker_that_was_changed_costs_a_fold_from_the_beginning(changed: dict[str, object]) -> None:
    keeper = await kept(ledger_of("a"))
    marker = orjson.loads((await checkpoints_of(keeper.log, 0))["0/m"])
    await keeper.log.checkpoint_put(0, {"0/m": orjson.dumps(marker | changed)})
    assert (await Keeper(keeper.log).load()).offset == 0


STRANGE_KEYS = ["", "/", "x/m", "7", "-1/m", "9" * 30 + "/m", "0/e/x", "0/r/", "0/x/y", "١/m", "0/e/" + "1" * 30, "\ud800/m"]


@pytest.mark.parametrize("key", STRANGE_KEYS)
async def test_what_others_put_among_checkpoints_is_passed_over(key: str) -> None:
    ledger = ledger_of("a", "b")
    log = (await kept(ledger)).log
    await log.checkpoint_put(0, {key: b"[]"})
    keeper = Keeper(log)
    assert (await keeper.load()).pack() == ledger.state.pack()
    await keeper.look_again()
    await keeper.save()
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


async def test_a_run_of_more_pieces_than_there_are_costs_a_fold_from_the_beginning() -> None:
    """Not a search for so many of them."""
    keeper = await kept(ledger_of("a"))
    head, _, packed = (await checkpoints_of(keeper.log, 0))["0/r/a"].partition(b"\n")
    fields = orjson.loads(head)
    await keeper.log.checkpoint_put(0, {"0/r/a": orjson.dumps([*fields[:3], 10**15, *fields[4:]]) + b"\n" + packed})
    assert (await Keeper(keeper.log).load()).offset == 0


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
    keeper.state.runs.note_idle(keeper.run("a").id, True)
    await keeper.save()
    loaded = await Keeper(keeper.log).load()
    assert loaded.runs.is_idle("a") and not loaded.runs.is_idle("b")


async def test_entries_of_other_keys_are_no_runs() -> None:
    log = MemoryDriver()
    ledger = ledger_of("a")
    ledger.write(b"nonsense", key="no run")
    keeper = await kept(ledger, log)
    await log.append(0, [Entry("no run", b"more")])
    assert (await Keeper(keeper.log).load()).runs.ids() == ["a"]


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
