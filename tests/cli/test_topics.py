"""`stepfold topics …` and `stepfold inbox …` on a real Kafka."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from shell import Shell, until

from stepfold.cli import demo_producer

pytestmark = pytest.mark.kafka


@pytest.fixture
def url(kafka_bootstrap: str) -> str:
    """The URL of a namespace without topics."""
    return f"kafka://{kafka_bootstrap}/cli-{uuid4().hex[:12]}"


def publish(url: str, *values: str) -> None:
    """Put records into the inbox, with a producer that knows nothing of stepfold."""
    bootstrap, _, namespace = url.removeprefix("kafka://").partition("/")

    async def go() -> None:
        for value in values:
            await demo_producer.publish(bootstrap, f"{namespace}.inbox", value)

    asyncio.run(go())


async def take_nothing_above(size: int, url: str) -> None:
    bootstrap, _, namespace = url.removeprefix("kafka://").partition("/")
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{namespace}.inbox", {"max.message.bytes": str(size)})])
    await admin.close()


def test_topics_are_created_checked_and_described(shell: Shell, url: str) -> None:
    namespace = url.rpartition("/")[2]
    names = [f"{namespace}.{name}" for name in ("history", "inbox", "dead-letters", "checkpoints")]
    create = f"stepfold topics create --url {url} --partitions"
    assert create in shell("run", "list", "--url", url, code=4).stderr
    assert create in shell("worker", "shop:client", "--url", url, code=4).stderr
    missing = shell("topics", "check", "--url", url, code=1)
    assert missing.stdout.count("does not exist") == 4 and create in missing.stdout
    assert "4 of the findings must be fixed" in missing.stderr
    assert shell.json("topics", "describe", "--url", url) == []

    options = ("--partitions", "3", "--replication", "1", "--url", url)
    assert shell("topics", "create", *options).stdout.splitlines() == [f"{name} created" for name in names]
    assert shell("topics", "create", *options).stdout.splitlines() == [f"{name} exists" for name in names]
    other = shell("topics", "create", "-p", "5", "-r", "1", "--url", url, code=4)
    assert "has 3 partitions, not 5" in other.stderr
    assert [finding for finding in shell.json("topics", "check", "--url", url) if finding["fatal"]] == []

    described = {topic["name"]: topic for topic in shell.json("topics", "describe", "--url", url)}
    assert list(described) == names
    assert described[names[0]]["partitions"] == 3 and described[names[0]]["settings"]["retention.ms"] == "-1"
    rows = [line.split() for line in shell("topics", "describe", "--url", url).stdout.splitlines()[1:]]
    assert [row[:3] for row in rows] == [[name, str(described[name]["partitions"]), "1"] for name in names]


def test_refused_requests_are_shown_with_the_reason_and_sent_again(shell: Shell, url: str) -> None:
    shell("topics", "create", "--partitions", "2", "--replication", "1", "--url", url)
    assert shell.json("inbox", "dead-letters", "--url", url) == []
    assert {
        (row["position"], row["end"], row["waiting"], row["held"]) for row in shell.json("inbox", "status", "--url", url)
    } == {(None, 0, 0, "")}
    assert "nowhere yet" in shell("inbox", "status", "--url", url).stdout
    assert "has no dead letters" in shell("inbox", "dead-letters", "--url", url).stderr
    worker = shell.start("worker", "shop:client", "--url", url)
    good = {"type": "start", "workflow": "order", "run_id": "good", "data": {"order_id": "1"}}
    bad = orjson.dumps({**good, "run_id": "bad", "data": {}}).decode()
    odd = "\x1b[2J\x1b]0;owned\x07\u202e\n✔ forged"
    publish(url, "no JSON at all", bad, odd, orjson.dumps(good).decode())
    until(lambda: len(shell.json("inbox", "dead-letters", "--url", url)) == 3)
    letters = {letter["value"]: letter for letter in shell.json("inbox", "dead-letters", "--url", url)}
    assert "is not JSON" in letters["no JSON at all"]["reason"]
    assert "order_id: Field required" in letters[bad]["reason"]
    assert letters[bad]["origin"].startswith(url.rpartition("/")[2] + ".inbox/")
    table = shell("inbox", "dead-letters", "--url", url).stdout
    assert r"\x1b[2J\x1b]0;owned\x07\u202e\n✔ forged" in table and odd in letters
    printed = table + shell("inbox", "dead-letters", "--url", url, "-o", "jsonl").stdout
    assert not set(printed) & set("\x1b\x07\u202e") and not any(line.startswith("✔") for line in printed.splitlines())
    assert "no JSON at all" in table and "order_id: Field required" in table
    assert len(shell.json("inbox", "dead-letters", "--limit", "1", "--url", url)) == 1
    assert shell("run", "watch", "good", "--url", url).stdout.splitlines()[-1].endswith('"paid 1"')

    # The workflow is mended: it takes orders without an id now.
    worker.terminate()
    worker.wait()
    source = shell.folder / "shop.py"
    source.write_text(source.read_text().replace("order_id: str", "order_id: str = 'unknown'"))
    shell.start("worker", "shop:client", "--url", url)
    assert shell("inbox", "redrive", letters[bad]["place"], "--url", url).stdout == "1\n"
    until(lambda: "bad" in shell("run", "list", "--url", url).stdout)
    assert shell("run", "watch", "bad", "--url", url).stdout.splitlines()[-1].endswith('"paid unknown"')
    after = {letter["value"]: letter["redriven"] for letter in shell.json("inbox", "dead-letters", "--url", url)}
    assert after[bad] and not after["no JSON at all"]
    assert shell("inbox", "redrive", "--url", url).stdout == "2\n"  # those that were not sent again yet
    assert "cannot be sent again" in shell("inbox", "redrive", "nowhere/0/0", "--url", url, code=3).stderr
    assert "cannot be dropped" in shell("inbox", "drop", "nowhere/0/0", "--url", url, code=3).stderr
    shell("inbox", "drop", letters["no JSON at all"]["place"], "--by", "ada", "--why", "a test", "--url", url)
    assert "dropped by ada: a test" in " ".join(shell("inbox", "dead-letters", "--url", url).stdout.split())
    assert shell("inbox", "redrive", "--value", "[]", "--url", url, code=2).stderr

    asyncio.run(take_nothing_above(20, url))
    place = letters[bad]["place"]

    def is_refused() -> str:
        try:
            done = shell("inbox", "redrive", place, "--url", url, code=4)
        except AssertionError:  # a setting takes effect a little later
            return ""
        assert done.stdout == "0\n"
        return done.stderr

    said = until(is_refused)
    assert f"{place} was not sent: Kafka refused to append to" in said
    assert said.endswith("stepfold: 1 of the requests were not sent; see `stepfold topics check`\n")
