"""A backlog in the inbox: starts that nobody has taken up, then workers, one of which is killed on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from fleet import Fleet, until
from rawlog import Audit, Counts, History

from stepfold.drivers.kafka import KafkaDriver

TWICE = 100
"""One in so many starts is sent again."""


class Drained(NamedTuple):
    """`in_s`: from the start of the workers to the end of the last run; `peak_bytes`: the most memory any of them had."""

    in_s: float
    peak_bytes: int
    counts: Counts


async def publish(url: str, starts: int) -> list[str]:
    """Puts them into the inbox; gives the run ids."""
    driver = KafkaDriver.from_url(url)
    run_ids = [f"errand-{number}" for number in range(starts)]
    producer: Any = AIOKafkaProducer(bootstrap_servers=driver.bootstrap, linger_ms=5)
    await producer.start()
    try:
        for run_id in [*run_ids, *run_ids[::TWICE]]:
            start = {"type": "start", "workflow": "errand", "run_id": run_id}
            await producer.send(driver.namespace.inbox, json.dumps(start).encode(), key=run_id.encode())
        await producer.flush()
    finally:
        await producer.stop()
    return run_ids


async def drain(fleet: Fleet, history: History, starts: int) -> Drained:
    """Raises AssertionError with what was broken."""
    audit = Audit()
    run_ids = await publish(fleet.url, starts)
    began = time.monotonic()
    workers = [fleet.worker(), fleet.worker()]
    await until(lambda: audit.counts.ends.total() > starts // 3, history, audit)
    fleet.kill(workers[0])
    workers[0] = fleet.worker()
    peaks: list[int] = []

    def is_drained() -> bool:
        peaks.extend(_peak_bytes(worker.pid) for worker in workers)
        return audit.counts.ends.total() >= starts

    await until(is_drained, history, audit, patience_s=120 + starts / 100)
    in_s = time.monotonic() - began
    audit.check_runs(run_ids, {})
    audit.check_returned()
    audit.check_executions(fleet.executions())
    counts = audit.conclude()
    assert counts.runs == starts and counts.ends == {"completed": starts}
    return Drained(in_s, max(peaks), counts)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
