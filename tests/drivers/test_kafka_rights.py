"""The table of rights in docs/guides/kafka.md: each role does its work with them, on a broker that refuses everything else."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.protocol.admin import CreateAclsRequest
from eventually import eventually
from kafka_suite import started
from repository import ROOT

from stepfold import Client, Context, LogUnavailable, RunNotFound, Step
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver, KafkaSecurity
from stepfold.drivers.kafka.cluster import Cluster

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    # aiokafka forgets to close a connection that breaks while it is being set up
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

ROLES = ("worker", "client in Python", "producer in any language", "projection, audit", "deployment of topics")
USERS = {"admin": "admin", **{role: f"user{number}" for number, role in enumerate(ROLES)}}
TOPICS = ("history", "inbox", "dead-letters", "checkpoints")
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
TOPIC, GROUP, LITERAL, ALLOW = 2, 3, 3, 3


class Guarded(LocalBroker):
    """Its users have the rights that they were given, and no others."""

    def _settings(self, home: Path) -> str:
        users = " ".join(f'user_{user}="{user}"' for user in USERS.values())
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        settings = {
            "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",  # the first is only a name
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": f'{login} username="admin" password="admin" {users};',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin;User:ANONYMOUS",  # the latter: its own connections as a controller
        }
        changed = [line for line in super()._settings(home).splitlines() if line.partition("=")[0] not in settings]
        return "\n".join([*changed, *(f"{name}={value}" for name, value in settings.items()), ""])


def security(role: str) -> KafkaSecurity:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": USERS[role],
        "sasl_plain_password": USERS[role],
    }


def rights() -> Iterator[tuple[str, int, str, int]]:
    """User, kind of resource, resource and operation: the table of the guide."""
    text = (ROOT / "docs/guides/kafka.md").read_text()
    for role in ROLES:
        [row] = re.findall(rf"^\| {role} \| (.*) \|$", text, re.MULTILINE)
        *topics, group = (cell.replace("-", "").strip() for cell in row.split(" | "))
        resources = [(TOPIC, f"shop.{topic}", cell) for topic, cell in zip(TOPICS, topics, strict=True)]
        for kind, resource, cell in [*resources, (GROUP, "shop.workers", group)]:
            yield from ((USERS[role], kind, resource, OPERATIONS[name]) for name in filter(None, cell.split(", ")))


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalBroker]:
    broker = started(Guarded)
    assert isinstance(broker, LocalBroker)
    yield broker
    broker.stop()


@pytest.fixture
async def bootstrap(guarded: LocalBroker) -> str:
    cluster = Cluster(guarded.bootstrap, dict(security("admin")))
    await cluster.start()
    for user, kind, resource, operation in rights():
        request = CreateAclsRequest(kind, resource, LITERAL, f"User:{user}", "*", operation, ALLOW)
        answer: Any = await cluster.ask(cluster.controller, request)
        assert [code for code, _ in answer.creation_responses] == [0], answer
    await cluster.close()
    return guarded.bootstrap


async def greet(ctx: Context[str], step: Step) -> str:
    return await step.run("greet", lambda: f"hello {ctx.input.data}")


@asynccontextmanager
async def client_of(role: str, bootstrap: str) -> AsyncGenerator[Client]:
    client = Client(driver=KafkaDriver(bootstrap, "shop", patience_s=5, **security(role)))
    client.workflow(id="greet")(greet)
    async with client:
        yield client


async def test_each_role_does_its_work_with_the_rights_of_the_guide(bootstrap: str) -> None:
    deployment = KafkaDriver(bootstrap, "shop", **security("deployment of topics"))
    await deployment.create_topics(2, 1)
    assert [finding for finding in await deployment.check_topics() if finding.fatal] == []

    async with client_of("worker", bootstrap) as works, works.worker(), client_of("client in Python", bootstrap) as asks:
        run = await asks.start_workflow("greet", "ada", run_id="r1")
        assert await run.result("60s") == "hello ada"
        assert (await run.status()).state == "completed"

        producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, **security("producer in any language"))
        await producer.start()
        await producer.send_and_wait("shop.inbox", b'{"type": "start", "workflow": "greet", "run_id": "r2", "data": "bob"}')
        await producer.send_and_wait("shop.inbox", b"what is this")
        await producer.stop()
        await eventually(lambda: has_ended(asks, "r2"))
        admin = KafkaDriver(bootstrap, "shop", **security("admin"))
        await eventually(lambda: has_dead_letters(admin))

        async with client_of("projection, audit", bootstrap) as reads:
            assert [event.type for event in await reads.run("r2").history()] == ["started", "step-completed", "completed"]
            with pytest.raises(LogUnavailable, match="this user may write to no topic"):
                await reads.start_workflow("greet", "eve", run_id="r3")


async def has_ended(client: Client, run_id: str) -> bool:
    try:
        return (await client.run(run_id).status()).state == "completed"
    except RunNotFound:
        return False


async def has_dead_letters(driver: KafkaDriver) -> bool:
    return len(await driver.dead_letters()) == 1
