"""The main job, on a real Kafka: others publish starts, workers execute them through a SIGKILL, others read the history back.

Neither end shares code with stepfold: a plain producer of JSON and CloudEvents, and of garbage; a plain consumer that applies
the published rule.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from fleet import Fleet, until
from rawlog import Audit, KafkaHistory

pytestmark = pytest.mark.kafka

Headers = Sequence[tuple[str, bytes]]


class Message(NamedTuple):
    """What is published; `reason`: a part of why it is refused."""

    value: bytes | None
    headers: Headers = ()
    reason: str = ""

    def refused_for(self, reason: str) -> Message:
        return self._replace(reason=reason)


def start(run_id: str | None = None, data: Any = None, **more: Any) -> Message:
    fields: dict[str, Any] = {"type": "start", "workflow": "journey", "data": data or {}, **more}
    return Message(json.dumps(fields if run_id is None else fields | {"run_id": run_id}).encode())


def structured(event_id: str, data: Any, kind: str = "stepfold.start") -> Message:
    event = {"specversion": "1.0", "type": kind, "source": "/shop", "id": event_id, "data": data}
    return Message(json.dumps(event).encode(), [("content-type", b"application/cloudevents+json; charset=utf-8")])


def binary(event_id: str, data: Any) -> Message:
    attributes = {"ce_specversion": "1.0", "ce_type": "stepfold.start", "ce_source": "/shop", "ce_id": event_id}
    headers = [(name, value.encode()) for name, value in attributes.items()]
    return Message(json.dumps(data).encode(), [*headers, ("content-type", b"application/json")])


JOURNEY: dict[str, Any] = {"workflow": "journey", "data": {}}
GARBAGE = [
    Message(b"\xff\xfe\x00 not even text", reason="not JSON"),
    Message(b'{"type": "start", "workflow": "journey"', [("trace", b"\x00\x01")], reason="not JSON"),
    Message(b"", reason="not JSON"),
    Message(None, reason="no value"),
    Message(b'["start"]', reason="JSON object"),
    Message(b"[" * 100_000, reason="not JSON"),
    Message(b'{"type": "begin", "workflow": "journey"}', reason="`type` must be one of start, signal, event, cancel"),
    Message(b'{"type": "start"}', reason="`workflow`"),
    start("@claim").refused_for("`run_id`"),
    start(data={"signals": "many"}).refused_for("signals"),
    start(data={"signals": -2}).refused_for("KeyError"),
    start(data={"text": "x" * 950_000}).refused_for("limit"),
    Message(b'{"type": "signal", "signal": "go"}', reason="run_id"),
    structured("bad", "no object").refused_for("JSON object"),
    binary("bad", 1).refused_for("JSON object"),
    Message(b"{}", [("ce_type", b"stepfold.start")], reason="specversion"),
]


class Published(NamedTuple):
    place: str
    message: Message


@asynccontextmanager
async def publisher(url: str) -> AsyncGenerator[Callable[[Message], Any]]:
    """Publishes to the inbox; gives where it was put."""
    bootstrap, _, namespace = url.removeprefix("kafka://").partition("/")
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()

    async def publish(message: Message) -> Published:
        sent = await producer.send_and_wait(f"{namespace}.inbox", message.value, key=b"any", headers=list(message.headers))
        return Published(f"{sent.topic}/{sent.partition}/{sent.offset}", message)

    try:
        yield publish
    finally:
        await producer.stop()


async def dead_letters(url: str) -> Sequence[Any]:
    bootstrap, _, namespace = url.removeprefix("kafka://").partition("/")
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(f"{namespace}.dead-letters", 0)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        found: list[Any] = []
        while await consumer.position(place) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()


async def test_starts_from_elsewhere(tmp_path: Path, kafka_namespace: str) -> None:
    audit = Audit()
    garbage: list[Published] = []
    async with publisher(kafka_namespace) as publish, KafkaHistory(kafka_namespace) as history:
        with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
            workers = [fleet.worker(), fleet.worker()]
            for number in range(len(GARBAGE)):
                garbage.append(await publish(GARBAGE[number]))
                await publish(start())
                await publish(start(f"order-{number}", {"signals": 1}))
                await publish(structured(f"event-{number}", JOURNEY))
                for _ in range(2):  # sent twice, as producers do that were not sure
                    await publish(binary(f"event-b-{number}", JOURNEY))
                if number == len(GARBAGE) // 2:
                    await until(lambda: audit.counts.results > 0, history, audit)
                    fleet.kill()
                    fleet.worker()
            await publish(start("unknown-workflow", workflow="nobody-knows-it"))
            for number in range(len(GARBAGE)):
                signal = {"type": "signal", "run_id": f"order-{number}", "signal": "go", "data": number}
                await publish(Message(json.dumps(signal).encode()))
            wanted = 4 * len(GARBAGE)
            await until(lambda: audit.counts.ends.total() == wanted and "unknown-workflow" in audit.runs, history, audit)
            assert any(worker.poll() is None for worker in workers)

        audit.follow(await history.news(), history.partitions)
    audit.check_returned()
    audit.check_executions(fleet.executions())
    counts = audit.conclude()
    print(counts)
    assert counts.ends == {"completed": wanted}
    assert counts.runs == wanted + 1
    assert {f"order-{number}" for number in range(len(GARBAGE))} < audit.runs.keys()
    assert audit.runs["unknown-workflow"].end is None and audit.runs["unknown-workflow"].unserved

    letters = await dead_letters(kafka_namespace)
    refused = {dict(letter.headers)["stepfold-origin"].decode(): letter for letter in letters}
    assert refused.keys() == {published.place for published in garbage}
    for place, message in garbage:
        letter = refused[place]
        assert letter.value == message.value
        assert letter.headers[:-2] == tuple(message.headers)
        assert message.reason in dict(letter.headers)["stepfold-reason"].decode()
