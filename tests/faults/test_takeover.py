"""One of two workers is killed; the other has its runs and finishes everything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, History, KafkaHistory, SQLiteHistory, pid_of


async def the_other_goes_on(fleet: Fleet, history: History) -> list[float]:
    """Returns, for each partition of the killed worker, after how many seconds the other owned it."""
    audit = Audit()
    workers = [fleet.worker(), fleet.worker()]
    client = fleet.client(rate=20)

    def both_work() -> bool:
        return {worker.pid for worker in workers} <= {one.pid for one in fleet.executions()[-50:]}

    await until(lambda: both_work() and audit.counts.ends.total() > 20, history, audit)
    killed_at = time.time() * 1000
    fleet.kill(workers[0])
    audit.follow(await history.news(), history.partitions)
    orphans = [
        partition
        for partition in audit.partitions.values()
        if (owner := partition.claims[-1].owner) is not None and pid_of(owner) == workers[0].pid
    ]
    assert orphans, "both had a share"
    print(await fleet.finish(client, history, audit))
    taken = [next(claim for claim in partition.claims if claim.timestamp >= killed_at) for partition in orphans]
    assert {pid_of(claim.owner or "") for claim in taken} == {workers[1].pid}
    return [(claim.timestamp - killed_at) / 1000 for claim in taken]


async def test_sqlite(tmp_path: Path) -> None:
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, seed=0) as fleet:
        print("taken over after", await the_other_goes_on(fleet, SQLiteHistory(tmp_path / "log.db")), "s")


@pytest.mark.kafka
async def test_kafka(tmp_path: Path, kafka_namespace: str) -> None:
    with Fleet(f"{kafka_namespace}?session_timeout_s=1", tmp_path, seed=0) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            print("taken over after", await the_other_goes_on(fleet, history), "s")
