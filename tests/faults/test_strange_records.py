"""Others write into the topics: garbage, records of 2 MB, formats of the future. Runs do not notice; who must stop says why."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from eventually import eventually
from fleet import Fleet, until
from rawlog import Audit, KafkaHistory

from stepfold.drivers.kafka import DeadLetter, KafkaDriver
from stepfold.events import FORMAT
from stepfold.log import partition_of

pytestmark = pytest.mark.kafka

PARTITIONS = 4
LARGE = "x" * 2_000_000


class Strange(NamedTuple):
    """A record for the partition of a run, and why the rule rejects it."""

    key: bytes
    value: bytes | None
    void: str


def strange(run_id: str) -> list[Strange]:
    key = run_id.encode()

    def event(kind: str, **more: Any) -> bytes:
        return json.dumps({"type": kind, "v": FORMAT, "run_id": run_id, "at": 0, **more}).encode()

    return [
        Strange(b"", None, "no event"),
        Strange(key, b"", "no event"),
        Strange(key, b"\xff\xfe\x00 not even text", "no event"),
        Strange(b"\xff", b"[" * 100_000, "no event"),
        Strange(key, LARGE.encode(), "no event"),
        Strange(b"@claim", LARGE.encode(), "no event"),
        Strange(key, event("of-the-future"), "no event"),
        Strange(key, event("started", v=FORMAT + 1, request="r", workflow="journey", input={}), "newer format"),
        Strange(key, event("signal-received", v=FORMAT + 1, request="r", signal="go", data=LARGE), "newer format"),
        Strange(key, event("cancel-requested", v=99, request="r"), "newer format"),
        Strange(key, event("step-completed", claim=-2, step_id="first", attempt=1, result=LARGE), "stale claim"),
        Strange(b"another", event("cancel-requested", request="r"), "another run's key"),
    ]


@asynccontextmanager
async def publishing(url: str, **options: Any) -> AsyncGenerator[Any]:
    bootstrap = KafkaDriver.from_url(url).bootstrap
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=4_000_000, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def topics_for_large_records(bootstrap: str) -> str:
    """The URL of a namespace whose owner allows more than is needed."""
    url = f"kafka://{bootstrap}/strange-{uuid4().hex[:12]}"
    driver = KafkaDriver.from_url(url)
    large = {"max.message.bytes": "4000000", "cleanup.policy": "delete"}
    history = {**large, "retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "LogAppendTime"}
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics(
        [
            NewTopic(driver.namespace.history, PARTITIONS, 1, topic_configs=history),
            NewTopic(driver.namespace.inbox, PARTITIONS, 1, topic_configs=large),
        ]
    )
    await admin.close()
    await driver.create_topics(PARTITIONS, 1)
    return url


async def test_what_is_no_event_of_ours_changes_nothing(tmp_path: Path, kafka_bootstrap: str) -> None:
    url = await topics_for_large_records(kafka_bootstrap)
    names = KafkaDriver.from_url(url).namespace
    audit = Audit()
    written: list[Strange] = []
    async with (
        KafkaHistory(url) as history,
        publishing(url) as plain,
        publishing(url, compression_type="gzip") as compressing,
    ):
        with Fleet(f"{url}?session_timeout_s=1", tmp_path, seed=0) as fleet:
            for _ in range(2):
                fleet.worker()
            client = fleet.client(rate=10)
            for publish in plain, compressing:
                results = audit.counts.results
                await until(lambda results=results: audit.counts.results > results + 20, history, audit)
                run_id = fleet.acknowledged()[-1]
                for record in strange(run_id):
                    written.append(record)
                    partition = partition_of(run_id, PARTITIONS)
                    await publish.send_and_wait(names.history, record.value, key=record.key, partition=partition)
                start = {"type": "start", "workflow": "journey", "data": {"text": LARGE}}
                await publish.send_and_wait(names.inbox, json.dumps(start).encode())
                fleet.kill()
                fleet.worker()
            counts = await fleet.finish(client, history, audit)

            letters: list[DeadLetter] = []

            async def both_refused() -> bool:
                """Each at least once: a worker that is killed before it commits leaves its refusal to be told again."""
                letters[:] = await KafkaDriver.from_url(url).dead_letters()
                return len({letter.origin for letter in letters}) >= 2

            await eventually(both_refused)
    assert all("limit" in letter.reason and letter.omitted for letter in letters)
    for reason in {record.void for record in written}:
        assert counts.void[reason] >= sum(record.void == reason for record in written)


async def test_a_claim_of_a_newer_format_ends_an_old_worker(tmp_path: Path, kafka_namespace: str) -> None:
    history_topic = KafkaDriver.from_url(kafka_namespace).namespace.history
    audit = Audit()
    async with KafkaHistory(kafka_namespace) as history, publishing(kafka_namespace) as producer:
        with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
            worker = fleet.worker()
            await until(lambda: 0 in audit.partitions and audit.partitions[0].claim >= 0, history, audit)
            claim = {
                "type": "claim",
                "v": FORMAT + 1,
                "at": 0,
                "prev": audit.partitions[0].claim,
                "owner": "newer-1-a",
                "nonce": "n",
            }
            await producer.send_and_wait(history_topic, json.dumps(claim).encode(), key=b"@claim", partition=0)
            await fleet.gives_up(worker)
            assert "Upgrade this worker" in fleet.said(worker)
            again = fleet.worker()
            await fleet.gives_up(again)
            assert "Upgrade this worker" in fleet.said(again)
        audit.follow(await history.news(), history.partitions)
        assert [claim.owner for claim in audit.partitions[0].claims[-1:]] == ["newer-1-a"]
