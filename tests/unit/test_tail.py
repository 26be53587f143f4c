"""Who follows a partition from outside a worker: what is judged when the tail lags behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest
from histories import START_MS, Ledger, stored

from stepfold.client.tail import RunViews, Tail, read_run
from stepfold.core.snapshot import pack
from stepfold.drivers import MemoryDriver
from stepfold.drivers._local import LocalReader
from stepfold.log import Record


class Lagging(MemoryDriver):
    """Its readers give nothing."""

    def reader(self, partition: int, offset: int) -> LocalReader:
        reader = super().reader(partition, offset)

        async def read(limit: int = 1000, wait: float | None = 0) -> Sequence[Record]:
            return await asyncio.get_running_loop().create_future()

        reader.read = read
        return reader


async def test_a_run_that_began_under_a_claim_which_the_tail_has_not_seen() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    ledger.start("earlier")
    log = await stored(ledger, Lagging())
    tail = Tail(log, 0)
    assert not (await tail.watch("earlier")).ended.done()

    ledger.claim("worker-b")
    ledger.start("r")
    start = ledger.records[-1].offset
    ledger.accepts("completed", "r", result=1)
    await stored(ledger, log)
    watch = await tail.watch("r", start)
    assert watch.ended.done() and watch.ended.result().result == 1
    await tail.close()


async def test_the_version_of_a_run_may_be_decided_by_a_record_that_cannot_end_it() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    ledger.start("r", version=None)
    log = await stored(ledger, MemoryDriver())
    tail = Tail(log, 0)
    watch = await tail.watch("r")
    expected = tail.expect("s")
    assert expected is not None
    for run_id in ("r", "s"):
        if run_id == "s":
            ledger.start("s", version=None)
        ledger.accepts("sleep-scheduled", run_id, step_id="nap", wake_at=0, version="1")
        ledger.accepts("sleep-completed", run_id, step_id="nap")
        ledger.accepts("completed", run_id, result=1)
    await stored(ledger, log)
    for each in (watch, expected):
        assert (await each.ended).version == "1"
    await tail.close()


async def test_records_that_cannot_end_a_run_are_passed_over_once_its_version_is_known() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    ledger.start("r")
    log = await stored(ledger, MemoryDriver())
    tail = Tail(log, 0)
    watch = await tail.watch("r")
    ledger.accepts("step-completed", "r", step_id="s", attempt=1, result=1)
    ledger.accepts("completed", "r", result=1)
    await stored(ledger, log)
    assert not (await watch.ended).journal
    await tail.close()


# What is known of a run.


class Switched(MemoryDriver):
    """A log behind whose name there may be another one."""

    def become(self, other: MemoryDriver) -> None:
        assert other._tail is not None
        self._store, self._tail = other._store, other._tail


async def _agree(views: RunViews, log: MemoryDriver, run_id: str = "r") -> None:
    """What is known is what a reading from the start gives."""
    known, read = await views.read(run_id), await read_run(log, run_id)
    assert known.owner == read.owner
    assert (known.run and pack(known.run)) == (read.run and pack(read.run))


async def test_what_is_known_of_a_run_grows_with_its_records() -> None:
    ledger = Ledger(stride=1)
    log = await stored(ledger, MemoryDriver())
    views = RunViews(log)
    await _agree(views, log)
    ledger.claim("worker-a")
    await stored(ledger, log)
    await _agree(views, log)
    ledger.start("r", version=None)
    ledger.accepts("signal-received", "r", signal="x", data=1)
    await stored(ledger, log)
    await _agree(views, log)
    ledger.claim(None)
    await stored(ledger, log)
    await _agree(views, log)
    ledger.claim("worker-b")
    ledger.accepts("completed", "r", result=1, version="1")
    await stored(ledger, log)
    await _agree(views, log)
    ledger.now_ms += 2 * 24 * 3600 * 1000
    ledger.start("r", input={"n": 2})
    await stored(ledger, log)
    await _agree(views, log)


async def test_of_a_log_that_was_cut_off_or_restored_or_made_again_nothing_is_believed() -> None:
    def ledger(signals: int) -> Ledger:
        made = Ledger(stride=1)
        made.claim("worker-a")
        made.start("r")
        for number in range(signals):
            made.accepts("signal-received", "r", signal="x", data=number)
        return made

    other = ledger(2)
    other.accepts("cancel-requested", "r")
    other.accepts("signal-received", "r", signal="x", data="another")
    log = Switched()
    views = RunViews(log)
    # The records of these logs differ in their offsets and data alone, as those of copies of one log do: one time for all.
    for histories in (ledger(5), ledger(2), other, ledger(9), Ledger(stride=1), ledger(3)):
        log.become(await stored(histories, MemoryDriver(clock=lambda: START_MS)))
        await _agree(views, log)


async def test_readings_at_the_same_time_agree() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    ledger.start("r")
    log = await stored(ledger, MemoryDriver())
    views = RunViews(log)
    for number in range(3):
        ledger.accepts("signal-received", "r", signal="x", data=number)
        await stored(ledger, log)
        found = await asyncio.gather(*(views.read("r") for _ in range(3)))
        read = await read_run(log, "r")
        assert read.run is not None and len(read.run.requests) == number + 1
        assert {one.run and pack(one.run) for one in found} == {pack(read.run)}


class Counting(MemoryDriver):
    """From where it was read."""

    starts: list[int]

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        self.starts.append(start)
        return await super().find(partition, keys, start)


async def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of runs, and by their bytes; those that were asked for last are kept, one at least."""
    monkeypatch.setattr("stepfold.client.tail.KNOWN_RUNS", 3)
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    for number in range(5):
        ledger.start(f"r{number}")
        ledger.accepts("signal-received", f"r{number}", signal="x", data="x" * 1000)
    log = Counting()
    log.starts = []
    await stored(ledger, log)
    views = RunViews(log)

    async def known(*numbers: int) -> list[bool]:
        log.starts.clear()
        for number in numbers:
            await views.read(f"r{number}")
        return [start > 0 for start in log.starts]

    assert await known(0, 1, 2, 3, 4) == [False] * 5
    assert await known(2, 3, 4) == [True] * 3
    assert await known(0) == [False]
    assert await known(3, 4, 0) == [True] * 3
    monkeypatch.setattr("stepfold.client.tail.KNOWN_BYTES", 1)
    assert await known(0, 0, 3, 0) == [True, True, False, False]
    views.clear()
    assert await known(0, 0) == [False, True]
