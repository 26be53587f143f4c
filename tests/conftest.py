"""What all tests share: the strictness of CI, and a real Kafka.

    STEPFOLD_TEST_KAFKA=host:port[,host:port]   use these brokers
    --broker docker                             start apache/kafka in a container
    --broker local                              start one out of PyPI packages (the default)
    --loop uvloop                               the tests' event loops are uvloop's

A namespace is fresh for each test that asks for one. A broker that a test may kill is that test's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kafka_suite import Broker, started
from xdist.scheduler import LoadFileScheduling

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver

pytest_plugins = ["ci_policy", "stepfold.testing.pytest_plugin"]

PARTITIONS = 4


class ByFile(LoadFileScheduling):
    """One process takes a whole file, for its fixtures; a planted bug, which shares none, goes to any process that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "::test_a_planted_bug_is_found[" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in its background so, and whatever the tests start would ignore Ctrl-C, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("loop") == "asyncio":  # nor do workers of the tests find uvloop, in processes of their own either
        hidden = str(Path(__file__).parent / "hidden")
        sys.path.insert(0, hidden)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [hidden, os.environ.get("PYTHONPATH")]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker", choices=["local", "docker"], default="local", help="which Kafka to start for the tests")
    parser.addoption("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="whose event loops the tests run on")


def pytest_asyncio_loop_factories(config: pytest.Config) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if config.getoption("loop") == "asyncio":
        return {"asyncio": asyncio.new_event_loop}
    import uvloop

    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"kafka_bootstrap", "kafka_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


@pytest.fixture(scope="session")
def new_broker(pytestconfig: pytest.Config) -> Callable[[], Broker]:
    if pytestconfig.getoption("broker") == "docker":
        from kafka_container import KafkaContainer  # only now: Docker's client takes a while to import

        return KafkaContainer
    return LocalBroker


@pytest.fixture(scope="session")
def kafka_bootstrap(new_broker: Callable[[], Broker]) -> Iterator[str]:
    """The `host:port` of a Kafka that the whole session shares."""
    given = os.environ.get("STEPFOLD_TEST_KAFKA")
    if given:
        yield given
        return
    broker = started(new_broker)
    yield broker.bootstrap
    broker.stop()


@pytest.fixture
def kafka_broker(new_broker: Callable[[], Broker]) -> Iterator[Broker]:
    """A broker of the test's own, to kill."""
    broker = started(new_broker)
    yield broker
    broker.stop()


@pytest.fixture
async def kafka_namespace(kafka_bootstrap: str) -> str:
    """The URL of a fresh namespace with its topics."""
    url = f"kafka://{kafka_bootstrap}/test-{uuid4().hex[:12]}"
    await KafkaDriver.from_url(url).create_topics(PARTITIONS, 1)
    return url
