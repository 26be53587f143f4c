"""Workers killed by SIGKILL at random moments under load, on SQLite and on Kafka; an independent reader of the log judges.

STEPFOLD_KILLS=200 STEPFOLD_SEED=7 pytest tests/faults/test_kills.py     has more kills, and the seed of a failure
make torture MINUTES=30                                                  goes on for longer
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ci_policy import STRICT
from fleet import Fleet
from rawlog import Counts, History, KafkaHistory, SQLiteHistory
from storm import KILLS_TO_OWNER, ON_KAFKA, ON_SQLITE, Weather, storm

KILLS = int(os.environ.get("STEPFOLD_KILLS", "50" if STRICT else "10"))
SEED = int(os.environ.get("STEPFOLD_SEED", random.randrange(1_000_000)))

pytestmark = pytest.mark.timeout(600 + 6 * KILLS)


async def survives(fleet: Fleet, history: History, weather: Weather) -> Counts:
    counts = await storm(fleet, history, weather, lambda: fleet.kills >= KILLS)
    print(f"seed {SEED}, {fleet.kills} kills, {fleet.pauses} pauses: {counts}")
    assert counts.ends.keys() == {"completed"}
    assert counts.takeovers >= KILLS // KILLS_TO_OWNER  # on a busy machine, many of the others die before they own anything
    assert counts.lost > 0 and counts.signals > 0 and counts.failures > 0
    return counts


async def test_sqlite(tmp_path: Path) -> None:
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, SEED) as fleet:
        await survives(fleet, SQLiteHistory(tmp_path / "log.db"), ON_SQLITE)


@pytest.mark.kafka
async def test_kafka(tmp_path: Path, kafka_namespace: str) -> None:
    with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, SEED) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            await survives(fleet, history, ON_KAFKA)
