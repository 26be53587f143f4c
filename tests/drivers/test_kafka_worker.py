# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The foreign producers are aiokafka's, which ships no types.
"""Workers on a real broker, and what others or the broker do to them: transactions, strange bytes, lost positions, no broker."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from eventually import eventually
from kafka_batches import batch, record
from kafka_suite import connections_may_leak, delete_group, produce
from pydantic import BaseModel, field_validator

from stepfold import Client, Context, Step
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver
from stepfold.drivers.kafka import driver as kafka_driver
from stepfold.drivers.kafka import inbox as kafka_inbox
from stepfold.drivers.kafka.cluster import Cluster
from stepfold.drivers.kafka.fetcher import KafkaTail
from stepfold.drivers.kafka.group import GroupMember
from stepfold.errors import ConfigError, LogUnavailable, RunNotFound, WorkflowFailed
from stepfold.log import CLAIM_KEY, Entry

pytestmark = pytest.mark.kafka


class Shop:
    """A client with one workflow, which counts how often its step ran for each order."""

    def __init__(self, url: str) -> None:
        self.driver = KafkaDriver.from_url(url, session_timeout_s=6)
        self.client = Client(driver=self.driver)
        self.charged: list[str] = []

        async def charge(order: str) -> str:
            self.charged.append(order)
            return order

        @self.client.workflow("order")
        async def order(ctx: Context[str], step: Step) -> str:
            return await step.run("charge", charge, ctx.input.data)

        self.order = order

    async def ended(self, *runs: str) -> None:
        async with asyncio.timeout(90):
            for run_id in runs:
                while True:
                    try:
                        await self.client.run(run_id).result()
                        break
                    except RunNotFound:
                        await asyncio.sleep(0.05)


@pytest.fixture
async def shop(kafka_namespace: str) -> AsyncIterator[Shop]:
    shop = Shop(kafka_namespace)
    async with shop.client:
        yield shop


def start(run_id: str) -> bytes:
    return json.dumps({"type": "start", "workflow": "order", "run_id": run_id, "data": run_id}).encode()


async def put(driver: KafkaDriver, data: bytes) -> None:
    """Bytes into partition 0 of the inbox, as they are."""
    cluster = Cluster(driver.bootstrap, {})
    await cluster.start([driver.namespace.inbox])
    assert await produce(cluster, driver.namespace.inbox, data) == 0
    await cluster.close()


async def test_a_start_in_a_transaction_runs_when_it_is_committed_and_only_then(shop: Shop) -> None:
    inbox = shop.driver.namespace.inbox
    writer = AIOKafkaProducer(bootstrap_servers=shop.driver.bootstrap, transactional_id=f"{shop.driver.namespace.name}-writer")
    await writer.start()
    async with shop.client.worker():
        await writer.begin_transaction()
        await writer.send_and_wait(inbox, start("aborted"), partition=0)
        await writer.abort_transaction()
        await writer.begin_transaction()
        await writer.send_and_wait(inbox, start("committed"), partition=0)
        await writer.commit_transaction()
        await writer.begin_transaction()
        await writer.send_and_wait(inbox, start("open"), partition=0)
        await put(shop.driver, batch([record(value=start("behind it"))]))
        await shop.ended("committed")
        handle = await shop.client.start_workflow(shop.order, "direct", run_id="direct")
        assert await handle.result() == "direct", "what comes another way does not wait"
        assert sorted(shop.charged) == ["committed", "direct"]
        await writer.abort_transaction()
        await shop.ended("behind it")
    await writer.stop()
    assert sorted(shop.charged) == ["behind it", "committed", "direct"]
    for run_id in ("aborted", "open"):
        with pytest.raises(RunNotFound):
            await shop.client.run(run_id).status()


async def test_a_start_written_into_the_history_in_a_transaction_never_runs(shop: Shop) -> None:
    writer = AIOKafkaProducer(bootstrap_servers=shop.driver.bootstrap, transactional_id=f"{shop.driver.namespace.name}-writer")
    await writer.start()
    started = {"type": "started", "v": 1, "at": 1, "run_id": "foreign", "request": "r", "workflow": "order", "input": "x"}
    async with shop.client.worker():
        for partition in range(4):
            async with writer.transaction():
                await writer.send_and_wait(
                    shop.driver.namespace.history, json.dumps(started).encode(), b"foreign", partition=partition
                )
        for number in range(8):
            await (await shop.client.start_workflow(shop.order, "direct", run_id=f"direct-{number}")).result()
    await writer.stop()
    assert shop.charged == ["direct"] * 8
    with pytest.raises(RunNotFound):
        await shop.client.run("foreign").status()


async def test_a_record_that_is_too_large_fails_its_run_alone(kafka_namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_driver, "MAX_VALUE_BYTES", 20_000)  # no value comes near the limit unless it is lower
    shop = Shop(kafka_namespace)

    @shop.client.workflow("large")
    async def large(ctx: Context, step: Step) -> str:
        return await step.run("s", lambda: "x" * 20_000)

    async with shop.client.worker():
        run = await shop.client.start_workflow(large)
        orders = [await shop.client.start_workflow(shop.order, "beside", run_id=f"beside-{number}") for number in range(8)]
        with pytest.raises(WorkflowFailed, match="takes 20,000"):
            await run.result()
        assert [await order.result() for order in orders] == ["beside"] * 8


async def test_strange_bytes_are_served_or_refused_and_the_next_start_runs(shop: Shop) -> None:
    async with shop.client.worker():
        await put(shop.driver, batch([record(value=start("strange header"), headers=[(b"\xff\xfe", b"\xff"), (b"a", None)])]))
        await put(shop.driver, batch([record(value=b"\xff", key=b"\xff", headers=[(b"\xff", None)])]))
        await put(shop.driver, batch([record(0, value=None), record(1, attributes=0xFF, value=start("strange attributes"))]))
        await put(shop.driver, batch([record(value=start("next"))]))
        await shop.ended("strange header", "strange attributes", "next")
        async with asyncio.timeout(60):
            while len(letters := await shop.driver.dead_letters()) < 2:
                await asyncio.sleep(0.05)
    assert sorted(shop.charged) == ["next", "strange attributes", "strange header"]
    assert [(letter.key, letter.value, letter.headers) for letter in letters] == [
        (b"\xff", b"\xff", (("\udcff", None),)),
        (b"key", None, ()),
    ]


class Picky(BaseModel):
    order: str

    @field_validator("order")
    @classmethod
    def check(cls, order: str) -> str:
        errors = {"exits": SystemExit("no"), "interrupts": KeyboardInterrupt("no"), "cancels": asyncio.CancelledError("no")}
        if order in errors:
            raise errors[order]
        if order == "hides":
            raise Hidden
        return order


class Hidden(ValueError):
    def __repr__(self) -> str:
        raise self

    __str__ = __repr__


async def test_whatever_the_check_of_a_start_raises_that_start_is_refused(shop: Shop) -> None:
    @shop.client.workflow("picky")
    async def picky(ctx: Context[Picky], step: Step) -> str:
        return ctx.input.data.order

    wrong = ["exits", "interrupts", "cancels", "hides"]
    async with shop.client.worker():
        for order in [*wrong, "fits"]:
            data = {"type": "start", "workflow": "picky", "run_id": order, "data": {"order": order}}
            await put(shop.driver, batch([record(value=json.dumps(data).encode())]))
        await shop.ended("fits")
        async with asyncio.timeout(60):
            while len(letters := await shop.driver.dead_letters()) < len(wrong):
                await asyncio.sleep(0.05)
    assert [json.loads(letter.value or b"")["run_id"] for letter in letters] == wrong
    assert all(letter.reason for letter in letters)


async def test_when_the_group_is_deleted_nothing_runs_twice(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """However long ago it was: here what has ended is forgotten at once, so that only their places tell what was served."""
    for partition in range(4):
        claim = {"type": "claim", "v": 2, "at": 1, "prev": -1, "owner": None, "nonce": "first", "memory_ms": 0}
        await shop.driver.append(partition, [Entry(CLAIM_KEY, json.dumps(claim).encode())])
    names = [f"order-{number}" for number in range(10)]
    for name in names:
        await put(shop.driver, batch([record(value=start(name))]))
    async with shop.client.worker():
        await shop.ended(*names)
    await delete_group(shop.driver)
    await put(shop.driver, batch([record(value=start("new"))]))
    async with shop.client.worker():
        await shop.ended("new")
    assert sorted(shop.charged) == sorted([*names, "new"])
    assert any("has no position there" in one.getMessage() for one in caplog.records)


@pytest.fixture
def admin(admin: AIOKafkaAdminClient, monkeypatch: pytest.MonkeyPatch) -> AIOKafkaAdminClient:
    """Who does things to topics in use; workers look at them more often than they do otherwise."""
    monkeypatch.setattr(kafka_inbox, "_LOOK_S", 0.05)
    return admin


async def test_partitions_that_the_inbox_is_given_while_workers_run_are_read(
    shop: Shop, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    names = shop.driver.namespace
    async with shop.client.worker():
        await admin.create_partitions({names.inbox: NewPartitions(6), names.history: NewPartitions(8)})
        writer = AIOKafkaProducer(bootstrap_servers=shop.driver.bootstrap)
        await writer.start()
        try:
            async with asyncio.timeout(60):
                while len(await writer.partitions_for(names.inbox)) < 6:  # what a producer knows is of some moment before
                    await writer.client.force_metadata_update()
            for partition in range(6):
                await writer.send_and_wait(names.inbox, start(f"in {partition}"), partition=partition)
        finally:
            await writer.stop()
        await shop.ended(*(f"in {partition}" for partition in range(6)))
        assert sorted(shop.charged) == [f"in {partition}" for partition in range(6)]
        async with asyncio.timeout(60):
            while f"{names.history}: was given 8 partitions, and 4 are in use. The partitions of a history" not in caplog.text:
                await asyncio.sleep(0.05)


async def test_an_inbox_that_is_deleted_under_a_worker_is_said_and_read_when_it_is_there_again(
    shop: Shop, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    names = shop.driver.namespace
    async with shop.client.worker():
        await admin.delete_topics([names.inbox, names.dead_letters])
        async with asyncio.timeout(60):
            while f"{names.inbox}: does not exist. Run: stepfold topics create" not in caplog.text:
                await asyncio.sleep(0.05)
        for call in (shop.driver.dead_letters, shop.driver.redrive):
            with pytest.raises(ConfigError, match=r"does not exist\. Run: stepfold topics create"):
                await call()
        await shop.driver.create_topics(4, 1)
        await put(shop.driver, batch([record(value=start("again"))]))
        await shop.ended("again")


async def test_settings_that_may_lose_records_are_said_while_workers_run(
    shop: Shop, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kafka_inbox, "_SAY_AGAIN_S", 1.0)
    history, checkpoints = shop.driver.namespace.history, shop.driver.namespace.checkpoints
    wrong = {
        history: {"cleanup.policy": "compact", "retention.ms": "1000", "message.timestamp.type": "CreateTime"},
        checkpoints: {"cleanup.policy": "delete"},
    }
    before = await shop.driver.describe()

    def errors() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]

    async def are_said() -> bool:
        return len(set(errors())) == 4 and len(errors()) > 4  # again after a while, too

    async def is_well() -> bool:
        return caplog.text.count("this problem is fixed") >= 4

    async with shop.client.worker():
        for topic, settings in wrong.items():
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, settings)])
        await eventually(are_said)
        for topic, settings in wrong.items():
            for key, value in settings.items():
                [said] = [one for one in set(errors()) if one.startswith(f"{topic}: {key} is {value}, not ")]
                assert f"--alter --entity-type topics --entity-name {topic} --add-config {key}=" in said
        handle = await shop.client.start_workflow(shop.order, "goes on", run_id="goes on")
        assert await handle.result() == "goes on"
        for topic in before:
            if topic.name in wrong:
                own = {key: topic.settings[key] for key in ("cleanup.policy", "retention.ms", "message.timestamp.type")}
                await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, own)])
        await eventually(is_well)


@pytest.mark.parametrize("pause_s", [0.0, 2.0])
async def test_an_inbox_that_is_made_again_under_a_worker_is_read_from_its_beginning(
    shop: Shop, kafka_bootstrap: str, pause_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its offsets are others: new requests stand where the old ones were read. No look at the topics is due."""
    names = shop.driver.namespace
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    old, new = [f"old {number}" for number in range(5)], [f"new {number}" for number in range(10)]
    async with shop.client.worker():
        await put(shop.driver, batch([record(number, value=start(name)) for number, name in enumerate(old)]))
        await shop.ended(*old)
        old_id = await inbox_id(shop.driver)
        await admin.delete_topics([names.inbox])
        await admin.close()
        await asyncio.sleep(pause_s)
        await made_again(shop.driver, old_id)
        await put(shop.driver, batch([record(number, value=start(name)) for number, name in enumerate(new)]))
        await shop.ended(*new)
        assert sorted(shop.charged) == sorted([*old, *new])
        assert f"{names.inbox} was deleted and made again" in caplog.text
        await eventually(lambda: nothing_waits(shop.driver))
    position = (await shop.driver.inbox_positions())[0]
    assert (position.position, position.end) == (10, 10)


async def test_a_look_at_the_topics_notices_an_inbox_that_was_made_again(
    shop: Shop, admin: AIOKafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if no fetch has failed meanwhile. A start without a run id is another run in the new one."""
    nameless = record(0, value=b'{"type": "start", "workflow": "order", "data": "nameless"}')
    monkeypatch.setattr(KafkaTail, "was_cut_off", property(lambda tail: False, lambda tail, value: None), raising=False)
    async with shop.client.worker():
        await put(shop.driver, batch([nameless, *(record(number, value=start(f"old {number}")) for number in range(1, 5))]))
        await shop.ended(*(f"old {number}" for number in range(1, 5)))
        old_id = await inbox_id(shop.driver)
        await admin.delete_topics([shop.driver.namespace.inbox])
        await made_again(shop.driver, old_id)
        await put(shop.driver, batch([nameless, *(record(number, value=start(f"new {number}")) for number in range(1, 10))]))
        await shop.ended(*(f"new {number}" for number in range(1, 10)))
        await eventually(lambda: asyncio.sleep(0, len(shop.charged) == 15))
    assert shop.charged.count("nameless") == 2


async def test_a_position_in_an_inbox_that_was_made_again_counts_for_nothing(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"order {number}" for number in range(5)]
    member = await shop.driver.join("before")
    assert isinstance(member, GroupMember)
    await member.assigned()
    await member.commit(shop.driver.namespace.inbox, "another topic", {0: 3})
    await member.leave()
    await put(shop.driver, batch([record(number, value=start(name)) for number, name in enumerate(names)]))
    first = (await shop.driver.inbox_positions())[0]
    assert (first.position, first.waiting) == (None, 5)
    async with shop.client.worker():
        await shop.ended(*names)
    assert "/0 was made again after it was read up to 3: it is read from its beginning" in caplog.text


async def inbox_id(driver: KafkaDriver) -> str | None:
    return {topic.name: topic.id for topic in await driver.describe()}.get(driver.namespace.inbox)


async def made_again(driver: KafkaDriver, old_id: str | None) -> None:
    """Make the inbox, which was deleted, again. Ends when the broker appends to the new one: until then it may still take a
    record for the old one, which goes with it.
    """

    async def is_made() -> bool:
        try:
            await driver.create_topics(4, 1)  # until the old one is gone the name is taken
            return await inbox_id(driver) != old_id and all(one.end == 0 for one in await driver.inbox_positions())
        except (ConfigError, LogUnavailable):  # it cannot be described
            return False

    await eventually(is_made)


async def nothing_waits(driver: KafkaDriver) -> bool:
    return all(one.waiting == 0 for one in await driver.inbox_positions())


def is_frozen(pid: int) -> bool:
    """Whether all threads of a process are stopped."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


@connections_may_leak
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_stops_within_seconds_when_its_broker_does_not_answer(
    caplog: pytest.LogCaptureFixture, how: signal.Signals
) -> None:
    """Dead, and connections are refused; or frozen, and they are not."""
    broker = LocalBroker()
    await asyncio.to_thread(broker.start)
    pid = broker.pid
    assert pid is not None
    try:
        url = f"kafka://{broker.bootstrap}/stopping"
        await KafkaDriver.from_url(url).create_topics(2, 1)
        shop = Shop(url)
        async with asyncio.timeout(90) as limit:
            async with shop.client, shop.client.worker():
                assert await (await shop.client.start_workflow(shop.order, "one", run_id="one")).result() == "one"
                os.kill(pid, how)
                while how == signal.SIGSTOP and not is_frozen(pid):  # until then a thread of it may still answer
                    await asyncio.sleep(0.001)
                appending = asyncio.create_task(shop.driver.append(0, [Entry("run", b"")]))
                await asyncio.sleep(0)
                limit.reschedule(asyncio.get_running_loop().time() + 20)  # it took 32 s
        with pytest.raises(LogUnavailable):
            await appending
    finally:
        os.kill(pid, signal.SIGCONT)
        await asyncio.to_thread(broker.stop)
    lines = [one for one in caplog.records if one.name.startswith("aiokafka") and one.levelno >= logging.WARNING]
    assert lines == []
