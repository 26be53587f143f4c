"""A worker that is stopped for longer than its session and goes on: what it writes late is void, and it takes part again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, KafkaHistory


@pytest.mark.kafka
async def test_late_writes_are_void(tmp_path: Path, kafka_namespace: str) -> None:
    audit = Audit()

    async with KafkaHistory(kafka_namespace) as history:
        with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
            one, other = fleet.worker(), fleet.worker()
            client = fleet.client(rate=15)
            pauses = 0
            while audit.counts.void["stale claim"] == 0:  # it may have been stopped with nothing under way
                await until(lambda: audit.owners() == {one.pid, other.pid}, history, audit)
                one.send_signal(signal.SIGSTOP)
                await until(lambda: audit.owners() == {other.pid}, history, audit)
                one.send_signal(signal.SIGCONT)
                pauses += 1
                await until(lambda: audit.owners() == {one.pid, other.pid}, history, audit)
            print(await fleet.finish(client, history, audit))
    print(f"stopped {pauses} times")
