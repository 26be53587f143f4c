"""URLs and the drivers they name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepfold.drivers import KafkaDriver, MemoryDriver, SQLiteDriver, open_driver
from stepfold.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("memory://", MemoryDriver, "memory://"),
        ("memory://orders", MemoryDriver, "memory://orders"),
        ("sqlite:///orders.db", SQLiteDriver, "sqlite:///orders.db"),
        ("sqlite:////var/lib/orders.db", SQLiteDriver, "sqlite:////var/lib/orders.db"),
        ("sqlite:///a%20b.db?durability=normal&partitions=8", SQLiteDriver, "sqlite:///a b.db"),
        ("kafka://localhost:9092/shop", KafkaDriver, "kafka://localhost:9092/shop"),
    ],
)
def test_a_url_names_a_driver(url: str, kind: type, name: str) -> None:
    driver = open_driver(url)
    assert isinstance(driver, kind)
    assert driver.name == name


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("orders.db", "expected memory://, memory://name, sqlite:///path"),
        ("postgres://localhost/x", "expected memory://"),
        ("", "names no log"),
        ("memory://a/b", "memory://name"),
        ("memory://a?x=1", "memory://name"),
        ("sqlite://orders.db", "three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "use memory://"),
        ("sqlite:///orders.db?durabilty=normal", "unknown option 'durabilty'"),
        ("sqlite:///orders.db?durability=off", "durability must be"),
        ("sqlite:///orders.db?partitions=many", "partitions must be a number"),
        ("sqlite:///orders.db?partitions=0", "from 1 to 256"),
        ("kafka://localhost:9092", "kafka://host:port"),
        ("kafka://localhost:9092/shop#1", "is not a Kafka URL"),
        ("kafka://a..b:9092/shop", "'a..b:9092' is not the address of a Kafka broker"),
        (f"kafka://ok:1,{'a' * 64}:9092/shop", "'a{64}:9092' is not the address of a Kafka broker"),
        ("kafka://localhost:port/shop", "'localhost:port' is not the address of a Kafka broker"),
    ],
)
def test_a_bad_url_says_what_is_expected(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        open_driver(url)
    assert url.partition("?")[0] in str(raised.value)


async def test_options_of_a_url_count(tmp_path: Path) -> None:
    log = open_driver(f"sqlite:///{tmp_path}/orders.db?partitions=7&durability=normal")
    await log.open()
    assert log.partitions == 7
    await log.close()


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
from stepfold import Client, ConfigError
Client("memory://")
Client("kafka://localhost:9092/shop")
try:
    Client("sqlite:///orders.db")
except ConfigError as error:
    print(error)
"""


def test_where_files_cannot_be_locked_it_is_said_what_to_do() -> None:
    """As on Windows, which has no such module."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_FCNTL], capture_output=True, text=True, check=False, timeout=60)
    assert "on Windows run it in WSL" in done.stdout and not done.stderr


@pytest.mark.parametrize("url", [5, Path("x.db"), b"memory://"])
def test_a_url_is_a_text(url: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(repr(url))} names no log; expected memory://"):
        open_driver(url)


# The URL of a log opens the same log elsewhere, with its options.


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "memory://shared",
        "sqlite:///orders.db",
        "sqlite:////var/lib/orders.db",
        "sqlite:///my%20orders%3F%23.db?durability=normal",
        "sqlite:///orders.db?durability=normal&partitions=8",
        "sqlite:///%FF.db",
        "kafka://one:9092,two:9092/shop",
        "kafka://one:9092/shop?session_timeout_s=6.5&patience_s=60.0",
    ],
)
def test_a_url_comes_back(url: str) -> None:
    assert open_driver(url).url == url


def test_a_log_that_was_made_without_a_url_has_one() -> None:
    assert SQLiteDriver("my orders.db", durability="normal", partitions=2).url == (
        "sqlite:///my%20orders.db?durability=normal&partitions=2"
    )
    assert KafkaDriver("one:9092", "shop", patience_s=5).url == "kafka://one:9092/shop?patience_s=5"


def test_a_name_has_no_options() -> None:
    assert open_driver("sqlite:///my%20orders.db?durability=normal").name == "sqlite:///my orders.db"
    assert open_driver("kafka://one:9092/shop?patience_s=60").name == "kafka://one:9092/shop"
