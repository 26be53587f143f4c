"""A worker that is cut off from Kafka for longer than its session, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, until
from machine import network, require_root
from rawlog import Audit, KafkaHistory

from stepfold.drivers.broker import LocalBroker
from stepfold.drivers.kafka import KafkaDriver


@pytest.mark.root
@pytest.mark.kafka
async def test_a_worker_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    require_root()
    audit = Audit()
    with network() as network_, LocalBroker(host=network_.host) as broker:
        url = f"kafka://{broker.bootstrap}/network"
        await KafkaDriver.from_url(url).create_topics(4, 1)
        async with KafkaHistory(url) as history:
            with Fleet(f"{url}?session_timeout_s=2", tmp_path, seed=0) as fleet:
                one, other = fleet.worker(within=network_.within), fleet.worker()
                client = fleet.client(rate=15)
                await until(lambda: audit.owners() == {one.pid, other.pid}, history, audit)
                await until(lambda: audit.counts.ends.total() > 10, history, audit)
                network_.cut()
                await until(lambda: audit.owners() == {other.pid}, history, audit)
                ended = audit.counts.ends.total()
                await until(lambda: audit.counts.ends.total() > ended + 10, history, audit)
                network_.mend()
                await until(lambda: audit.owners() == {one.pid, other.pid}, history, audit)
                print(await fleet.finish(client, history, audit))
