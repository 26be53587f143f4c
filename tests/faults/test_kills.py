"""Workers killed by SIGKILL at random moments under load, on SQLite and on Kafka; an independent reader of the log judges.

STEPFOLD_KILLS=1000 STEPFOLD_SEED=7 pytest tests/faults/test_kills.py     is longer, and has the seed of a failure
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, Counts, History, KafkaHistory, SQLiteHistory

KILLS = int(os.environ.get("STEPFOLD_KILLS", "50"))
SEED = int(os.environ.get("STEPFOLD_SEED", random.randrange(1_000_000)))
WORKERS = 3
MAX_FAILURES = {"flaky": 2}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240 + 4 * KILLS)]


async def storm(fleet: Fleet, history: History, *, rate: float, gaps_s: tuple[float, float], pauses_s: float) -> Counts:
    """Kill and replace a random worker `KILLS` times while runs are started; wait for all runs; judge what the log holds.

    Some of the workers are paused instead, for `pauses_s`: they come back as zombies where that is long enough.
    """
    audit = Audit()
    client = fleet.client(rate)
    for _ in range(WORKERS):
        fleet.worker()
    await until(lambda: len(audit.runs) > 0 and audit.counts.ends.total() > 0, history, audit)
    pausing = asyncio.create_task(asyncio.sleep(0))
    while fleet.kills < KILLS:
        await asyncio.sleep(fleet.random.uniform(*gaps_s))
        if fleet.kills % 10 == 5 and pausing.done():
            pausing = asyncio.create_task(fleet.pause(pauses_s))
        fleet.kill()
        fleet.worker()
    await pausing
    client.terminate()
    await until(lambda: not audit.unfinished(fleet.acknowledged()), history, audit)
    await until(lambda: client.poll() is not None, history, audit)
    assert client.returncode == 0
    audit.check_runs(fleet.acknowledged(), fleet.outcomes(), MAX_FAILURES)
    audit.check_returned()
    audit.check_executions(fleet.executions())
    print(f"seed {SEED}, {fleet.kills} kills, {fleet.pauses} pauses: {audit.counts}")
    return audit.conclude()


async def test_sqlite(tmp_path: Path) -> None:
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, SEED) as fleet:
        counts = await storm(fleet, SQLiteHistory(tmp_path / "log.db"), rate=12, gaps_s=(0.15, 0.8), pauses_s=1)
    assert counts.ends.keys() == {"completed"}
    assert counts.takeovers > KILLS / 2
    assert counts.lost > 0 and counts.signals > 0 and counts.failures > 0


@pytest.mark.kafka
async def test_kafka(tmp_path: Path, kafka_namespace: str) -> None:
    with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, SEED) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            counts = await storm(fleet, history, rate=6, gaps_s=(0.5, 2.5), pauses_s=3)
    assert counts.ends.keys() == {"completed"}
    assert counts.takeovers > KILLS / 2
    assert counts.lost > 0 and counts.signals > 0 and counts.failures > 0
