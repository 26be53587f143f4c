"""A backlog of starts in the inbox is worked off, each once; `make torture` has one of 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest
from backlog import drain
from fleet import Fleet
from rawlog import KafkaHistory

STARTS = 2000


@pytest.mark.kafka
async def test_a_backlog_is_worked_off(tmp_path: Path, kafka_namespace: str) -> None:
    with Fleet(f"{kafka_namespace}?session_timeout_s=5", tmp_path, seed=0) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            drained = await drain(fleet, history, STARTS)
    print(f"{STARTS / drained.in_s:.0f} runs/s, at most {drained.peak_bytes / 1e6:.0f} MB; {drained.counts}")
