"""The memory driver: the suite, and what is its own."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import pkgutil
import uuid

import pytest

from stepfold.drivers import MemoryDriver
from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Entry, InboxMembership, Log
from stepfold.testing import LogSuite, suite
from stepfold.testing.suite.base import LogTests

names = (f"test-{number}" for number in itertools.count())


class TestSuite(LogSuite):
    async def open_log(self) -> Log:
        log = MemoryDriver(next(names))
        await log.open()
        return log

    async def reopen(self, log: Log) -> Log | None:
        other = MemoryDriver(log.name.removeprefix("memory://"))
        await other.open()
        return other


def test_the_suite_has_the_tests_of_each_of_its_modules() -> None:
    modules = [importlib.import_module(f"{suite.__name__}.{module.name}") for module in pkgutil.iter_modules(suite.__path__)]
    subjects = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    subjects = {each for each in subjects if issubclass(each, LogTests)}
    assert len(subjects) > 5 and subjects < set(LogSuite.__mro__)


async def test_without_a_name_every_driver_has_its_own_log() -> None:
    one, two = MemoryDriver(), MemoryDriver()
    await one.open()
    await two.open()
    await one.append(0, [Entry("run", b"{}")])
    assert one.id != two.id
    assert await two.bounds(0) == (0, 0)
    await one.close()
    await two.close()


async def test_a_named_log_outlives_its_drivers() -> None:
    name = next(names)
    one = MemoryDriver(name)
    await one.open()
    await one.append(0, [Entry("run", b"{}")])
    await one.close()
    two = MemoryDriver(name)
    await two.open()
    assert [record.key for record in await two.find(0, ["run"])] == ["run"]
    await two.close()


async def test_the_second_member_waits_for_the_first_to_leave() -> None:
    name = next(names)
    one, two = MemoryDriver(name), MemoryDriver(name)
    await one.open()
    await two.open()
    first, second = await one.join("a"), await two.join("b")
    assert await first.assigned() == {0}
    assert await second.assigned() == frozenset()
    waiting = asyncio.create_task(second.assigned())
    await asyncio.sleep(0)
    assert not waiting.done()
    await one.close()
    assert await waiting == {0}
    with pytest.raises(LogUnavailable, match="'a' has left"):
        await first.assigned()
    await two.close()


async def test_the_clock_is_a_parameter_and_timestamps_never_go_back() -> None:
    times = iter([1_000, 900, 1_100])
    log = MemoryDriver(clock=lambda: next(times))
    await log.open()
    stamps = [(await log.append(0, [Entry("run", b"{}")]))[0].timestamp for _ in range(3)]
    assert stamps == [1_000, 1_000, 1_100]
    await log.close()


async def test_a_seek_past_the_end_keeps_a_waiting_reader_asleep() -> None:
    log = MemoryDriver()
    await log.open()
    reader = log.reader(0, 0)
    reading = asyncio.create_task(reader.read(wait=None))
    await asyncio.sleep(0)
    [ack] = await log.append(0, [Entry("mine", b"{}")])
    reader.seek(ack.offset + 1)
    await asyncio.sleep(0.01)
    assert not reading.done()
    await log.append(0, [Entry("theirs", b"{}")])
    assert [record.key for record in await reading] == ["theirs"]
    await log.close()


async def test_a_loop_of_appends_lets_others_run() -> None:
    log = MemoryDriver()
    await log.open()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(1_000):
        await log.append(0, [Entry("run", b"{}")])
    assert turns > 5
    task.cancel()
    await log.close()


async def test_a_partition_that_is_not_there_is_named() -> None:
    log = MemoryDriver()
    await log.open()
    with pytest.raises(ConfigError, match="no partition 3"):
        await log.append(3, [Entry("run", b"{}")])
    await log.close()


def test_a_named_log_belongs_to_one_event_loop() -> None:
    name = next(names)

    async def outer() -> None:
        log = MemoryDriver(name)
        await log.open()

        async def inner() -> None:
            await MemoryDriver(name).open()

        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, inner())
        await log.close()

    asyncio.run(outer())


def test_a_named_log_outlives_an_event_loop_that_ended_without_closing_it() -> None:
    name = next(names)
    left = MemoryDriver(name)

    async def leaves() -> None:
        await left.open()
        assert await (await left.join("left")).assigned() == {0}
        await left.append(0, [Entry("run", b"{}")])

    async def goes_on() -> None:
        for log in MemoryDriver(name), left:
            await log.open()
            assert await log.bounds(0) == (0, 1)
            member = await log.join("next")
            assert await member.assigned() == {0} and not await member.is_live("left")
            await log.close()

    asyncio.run(leaves())
    asyncio.run(goes_on())
    asyncio.run(left.close())


def test_its_id_may_be_given() -> None:
    assert MemoryDriver(log_id="mine").id == "mine"
    assert MemoryDriver().id != MemoryDriver().id
    name = uuid.uuid4().hex
    assert MemoryDriver(name, log_id="first").id == MemoryDriver(name, log_id="second").id == "first"


async def test_it_adds_nothing_to_ext() -> None:
    log = MemoryDriver()
    await log.open()
    member = await log.join("a")
    assert not isinstance(member, InboxMembership)
    await member.leave()
    await log.close()
    with pytest.raises(ConfigError, match=r"memory:// adds nothing to step\.ext"):
        log.step_ext(None).publish  # noqa: B018 - the access is the test
    with pytest.raises(ConfigError, match=r"memory:// adds nothing to ctx\.ext"):
        log.ctx_ext("run").publish  # noqa: B018 - the access is the test
