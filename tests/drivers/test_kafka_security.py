"""Kafka behind TLS and passwords: everything works as without, and who may not come in is told so."""

from __future__ import annotations

import gc
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from kafka_suite import started

from stepfold import Client, Context, Step
from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver, KafkaSecurity
from stepfold.errors import LogUnavailable

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    # aiokafka forgets to close a connection that breaks while it is being set up
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

USER, PASSWORD = "app", "correct horse"
_LOGIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required username="{USER}" password="{PASSWORD}"'


class Secured(LocalBroker):
    """Its one listener speaks TLS and asks for a password; so do its own connections to itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        authority = trustme.CA()
        self.certificate = folder / "broker.pem"
        self.trusted = folder / "authority.pem"
        issued = authority.issue_cert("127.0.0.1")
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(  # the only form in which Kafka reads it
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.certificate.write_bytes(pkcs8 + b"".join(one.bytes() for one in issued.cert_chain_pems))
        authority.cert_pem.write_to_path(self.trusted)

    def _settings(self, home: Path) -> str:
        settings = {
            "listener.security.protocol.map": "PLAINTEXT:SASL_SSL,CONTROLLER:PLAINTEXT",  # the listener's name is no protocol
            "inter.broker.listener.name": "PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificate),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.trusted),
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": f'{_LOGIN} user_{USER}="{PASSWORD}";',
        }
        changed = [line for line in super()._settings(home).splitlines() if line.partition("=")[0] not in settings]
        return "\n".join([*changed, *(f"{name}={value}" for name, value in settings.items()), ""])

    def security(self, password: str = PASSWORD) -> KafkaSecurity:
        context = ssl.create_default_context()
        context.load_verify_locations(self.trusted)
        return {
            "security_protocol": "SASL_SSL",
            "ssl_context": context,
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": USER,
            "sasl_plain_password": password,
        }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    broker = started(lambda: Secured(tmp_path_factory.mktemp("secured")))
    assert isinstance(broker, Secured)
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def _left_behind() -> Iterator[None]:
    """What was forgotten is collected here, and not in the middle of some other test."""
    yield
    gc.collect()


async def test_a_run_behind_tls_and_a_password(secured: Secured) -> None:
    driver = KafkaDriver(secured.bootstrap, "shop", **secured.security())
    await driver.create_topics(2, 1)
    client = Client(driver=driver)

    @client.workflow(id="w")
    async def w(ctx: Context[str], step: Step) -> str:
        return await step.run("greet", lambda: f"hello {ctx.input.data}")

    async with client.worker():
        run = await client.start_workflow(w, "ada", run_id="r")
        assert await run.result("60s") == "hello ada"
        assert [event.type for event in await client.run("r").history()] == ["started", "step-completed", "completed"]


def wrong_password(secured: Secured) -> KafkaSecurity:
    return secured.security("wrong")


def wrong_mechanism(secured: Secured) -> KafkaSecurity:
    return {**secured.security(), "sasl_mechanism": "SCRAM-SHA-512"}


def unknown_authority(secured: Secured) -> KafkaSecurity:
    return {**secured.security(), "ssl_context": ssl.create_default_context()}


def plain_text(secured: Secured) -> KafkaSecurity:
    return {}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (wrong_password, "Invalid username or password. Check sasl_mechanism, user and password"),
        (wrong_mechanism, "Check sasl_mechanism, user and password"),
        (unknown_authority, "certificate verify failed.* The ssl_context has to know the authority"),
        (plain_text, "does not answer to PLAINTEXT. Is it Kafka, and is that its security_protocol"),
    ],
)
async def test_who_may_not_come_in_is_told_why(secured: Secured, mistake: Callable[[Secured], KafkaSecurity], told: str) -> None:
    driver = KafkaDriver(secured.bootstrap, "shop", patience_s=2, **mistake(secured))
    with pytest.raises(LogUnavailable, match=told):
        await driver.open()
