"""The faulty log: without faults it is a log like any other; with them it does what it says, the same for the same seed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any
from unittest import SkipTest

import pytest

from stepfold.errors import LogUnavailable
from stepfold.log import Entry, InboxMembership, Log
from stepfold.testing import LogSuite
from stepfold.testing.faulty import Character, FaultyDriver, FaultyLog, Transaction
from stepfold.testing.processes import Process, ProcessLoop

TESTS = [name for name, _ in inspect.getmembers(LogSuite, inspect.isfunction) if name.startswith("test_")]
CHARACTERS: tuple[Character, ...] = ("kafka", "sqlite")


class Suite(LogSuite):
    """The suite of all drivers, on one loop of virtual time."""

    deadline_s = 600

    def __init__(self, loop: ProcessLoop, character: Character) -> None:
        self.loop = loop
        self.character: Character = character
        self.random = Random("suite")
        self.processes = 0

    def process(self) -> Process:
        self.processes += 1
        return Process(self.loop, f"process {self.processes}")

    async def open_log(self) -> Log:
        driver = FaultyLog(self.loop, self.random, character=self.character).driver(self.process())
        await driver.open()
        return driver

    async def reopen(self, log: Log) -> Log | None:
        assert isinstance(log, FaultyDriver)
        driver = log.log.driver(self.process())
        await driver.open()
        return driver


def simulated(main: Callable[[ProcessLoop], Coroutine[Any, Any, None]]) -> None:
    loop = ProcessLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


@pytest.mark.parametrize("character", CHARACTERS)
@pytest.mark.parametrize(
    "name", [name for name, _ in inspect.getmembers(LogSuite, inspect.isfunction) if name.startswith("test_")]
)
def test_suite(name: str, character: Character) -> None:
    try:
        simulated(lambda loop: getattr(Suite(loop, character), name)())
    except SkipTest as skipped:
        pytest.skip(str(skipped))


async def append_until_it_fails(log: FaultyLog) -> int:
    """How many appends succeeded before one raised."""
    driver = log.driver(Process(log.loop, "writer"))
    await driver.open()
    for number in range(1000):
        try:
            await driver.append(0, [Entry("run", b'{"n":%d}' % number)])
        except LogUnavailable:
            return number
    raise AssertionError("no append failed")


def test_an_acknowledgement_may_be_lost_and_the_record_is_there() -> None:
    async def main(loop: ProcessLoop) -> None:
        log = FaultyLog(loop, Random(1), rates={"ack-lost": 0.1})
        acknowledged = await append_until_it_fails(log)
        assert len(log.partitions[0].records) == acknowledged + 1
        assert log.counts["ack-lost"] == 1

    simulated(main)


def test_what_was_given_up_may_land_late() -> None:
    async def main(loop: ProcessLoop) -> None:
        log = FaultyLog(loop, Random(2), rates={"late": 0.1})
        acknowledged = await append_until_it_fails(log)
        assert len(log.partitions[0].records) == acknowledged
        await asyncio.sleep(300)
        assert len(log.partitions[0].records) == acknowledged + 1

    simulated(main)


def test_a_file_has_neither_gaps_nor_late_writes() -> None:
    async def main(loop: ProcessLoop) -> None:
        rates = {"late": 1.0, "gap": 1.0, "torn": 1.0, "unknown-offset": 1.0}
        log = FaultyLog(loop, Random(3), character="sqlite", rates=rates)
        driver = log.driver(Process(loop, "writer"))
        await driver.open()
        acks = [await driver.append(0, [Entry("run", b"{}")] * 3) for _ in range(10)]
        assert [ack.offset for batch in acks for ack in batch] == list(range(30))

    simulated(main)


def test_a_log_that_is_put_back_tells_whoever_had_read_further() -> None:
    async def main(loop: ProcessLoop) -> None:
        log = FaultyLog(loop, Random(5))
        driver = log.driver(Process(loop, "reader"))
        await driver.open()
        await driver.append(0, [Entry("run", b"1")] * 3)
        further, behind = driver.reader(0, 0), driver.reader(0, 0)
        assert len(await further.read()) == 3
        assert len(await behind.read(1)) == 1
        waiting = asyncio.create_task(further.read(wait=None))
        under_way = asyncio.create_task(driver.append(0, [Entry("run", b"2")]))
        await asyncio.sleep(0)
        log.put_back([1, 0])
        with pytest.raises(LogUnavailable):
            await under_way
        with pytest.raises(LogUnavailable, match="restored from an older copy"):
            await waiting
        assert await driver.bounds(0) == (0, 1)
        [ack] = await driver.append(0, [Entry("run", b"3")])
        assert ack.offset == 1
        assert [record.value for record in await behind.read()] == [b"3"]
        assert [record.value for record in await driver.find(0, ["run"])] == [b"1", b"3"]

    simulated(main)


def test_what_a_transaction_has_given_up_is_not_received() -> None:
    async def main(loop: ProcessLoop) -> None:
        log = FaultyLog(loop, Random(6), partitions=1)
        driver = log.driver(Process(loop, "worker"))
        await driver.open()
        member = await driver.join("worker")
        assert isinstance(member, InboxMembership)
        inbox = member.inbox()
        aborted, committed = Transaction(log), Transaction(log)
        aborted.put(0, None, b"aborted")
        committed.put(0, None, b"committed")
        log.put_inbox(0, None, b"behind")
        receiving = asyncio.create_task(inbox.receive())
        await asyncio.sleep(5)
        assert not receiving.done()
        aborted.end(commit=False)
        await asyncio.sleep(5)
        assert not receiving.done(), "the other one is open"
        committed.end(commit=True)
        received = await receiving
        assert [record.value for record in received] == [b"committed", b"behind"]
        await inbox.done(received)
        assert log.partitions[0].routed == 3

    simulated(main)


def test_a_silent_member_loses_its_partitions_and_gets_some_when_it_goes_on() -> None:
    async def main(loop: ProcessLoop) -> None:
        log = FaultyLog(loop, Random(4), partitions=2)
        drivers = [log.driver(Process(loop, name)) for name in "ab"]
        members = [await driver.join("member") for driver in drivers if await driver.open() is None]
        await asyncio.sleep(1)
        assert [len(member.assignment or ()) for member in members] == [1, 1]
        drivers[0].process.pause()
        await asyncio.sleep(30)
        assert members[1].assignment == {0, 1}
        drivers[0].process.resume()
        await asyncio.sleep(30)
        assert [len(member.assignment or ()) for member in members] == [1, 1]
        for member in members:
            await member.leave()

    simulated(main)
