"""SIGTERM under load: what runs is finished or, after the grace period, left to others, which have the partitions at once:
those where nothing runs before the others.
"""

from __future__ import annotations

import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, History, KafkaHistory, SQLiteHistory, pid_of

from stepfold import Client
from stepfold.log import partition_of

PARTITIONS = 4

IN_TIME_S, TOO_LONG_S = 0.5, 6.0
"""How long steps take; the grace period of a worker of the fleet lies between."""


async def hands_over(fleet: Fleet, history: History) -> None:
    audit = Audit()

    def both_work() -> bool:
        return audit.owners() == {leaver.pid, stayer.pid}

    leaver, stayer = fleet.worker(), fleet.worker()
    await until(both_work, history, audit)
    runs: list[str] = []
    async with Client(fleet.url) as client:
        for partition in range(PARTITIONS):
            for slow_s in IN_TIME_S, TOO_LONG_S:
                run_id = next(name for n in count() if partition_of(name := f"{slow_s}-{n}", PARTITIONS) == partition)
                runs.append((await client.start_workflow("journey", {"slow_s": slow_s}, run_id=run_id)).id)

    def slow_steps() -> dict[int, set[str]]:
        """By process, the runs whose slow step it began."""
        begun: dict[int, set[str]] = {leaver.pid: set(), stayer.pid: set()}
        for execution in fleet.executions():
            if execution.step_id == "slow":
                begun[execution.pid].add(execution.run_id)
        return begun

    await until(lambda: sum(map(len, slow_steps().values())) == len(runs), history, audit)
    leaver.send_signal(signal.SIGTERM)
    began = slow_steps()[leaver.pid]
    await until(lambda: leaver.poll() is not None, history, audit)
    assert leaver.returncode == 0
    finished = {run_id for run_id in began if "slow" in audit.results(run_id)}
    assert finished and began - finished
    await until(lambda: not audit.unfinished(runs), history, audit)
    assert slow_steps()[stayer.pid] & began == began - finished, "what was abandoned ran again, and nothing else"

    handed_over_ms: list[int] = []
    for partition in audit.partitions.values():
        for before, nobody, after in zip(partition.claims, partition.claims[1:], partition.claims[2:], strict=False):
            if before.owner is not None and nobody.owner is None and pid_of(before.owner) == leaver.pid:
                assert after.owner is not None and pid_of(after.owner) == stayer.pid
                handed_over_ms.append(after.timestamp - nobody.timestamp)
    assert handed_over_ms
    audit.check_runs(runs, {}, {"flaky": 2})
    audit.check_returned()
    audit.check_executions(fleet.executions())
    counts = audit.conclude()
    print(f"handed over within {max(handed_over_ms)} ms; {counts}")
    assert counts.ends == {"completed": len(runs)}
    assert counts.lost == 0


async def serves_no_idle_partition_longer_than_it_must(fleet: Fleet, history: History) -> None:
    audit = Audit()

    def owner_pid(partition: int) -> int | None:
        claims = audit.partitions[partition].claims
        return pid_of(claims[-1].owner) if claims and claims[-1].owner is not None else None

    def owned_by(worker: subprocess.Popen[bytes]) -> list[int]:
        return [partition for partition in audit.partitions if owner_pid(partition) == worker.pid]

    leaver, stayer = fleet.worker(), fleet.worker()
    await until(lambda: len(owned_by(leaver)) == len(owned_by(stayer)) == PARTITIONS / 2, history, audit)
    busy, idle = owned_by(leaver)
    async with Client(fleet.url) as client:

        async def start(partition: int, **data: bool) -> str:
            run_id = next(name for n in count() if partition_of(name := f"run-{n}", PARTITIONS) == partition)
            return (await client.start_workflow("journey", data, run_id=run_id)).id

        slow = await start(busy, gated=True)
        await until(lambda: any(step.step_id == "gated" for step in fleet.executions()), history, audit)
        leaver.send_signal(signal.SIGTERM)
        quick = await start(idle)
        await until(lambda: not audit.unfinished([quick]), history, audit)
    assert "gated" not in audit.results(slow)
    assert leaver.poll() is None and owner_pid(busy) == leaver.pid and owner_pid(idle) == stayer.pid
    (fleet.folder / "gate").touch()
    await until(lambda: not audit.unfinished([slow]), history, audit)
    await until(lambda: leaver.poll() is not None, history, audit)
    assert leaver.returncode == 0
    assert [step.pid for step in fleet.executions() if step.step_id == "gated"] == [leaver.pid], "it ran once, to its end"
    assert owner_pid(busy) == stayer.pid
    audit.check_runs([slow, quick], {}, {"flaky": 2})
    audit.check_returned()
    audit.check_executions(fleet.executions())
    counts = audit.conclude()
    assert counts.ends == {"completed": 2}
    assert counts.lost == 0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in these tests waits for the end of a grace period."""
    monkeypatch.setenv("GRACE_S", "300")


@pytest.mark.usefixtures("patient")
async def test_idle_partitions_at_once_on_sqlite(tmp_path: Path) -> None:
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, seed=0) as fleet:
        await serves_no_idle_partition_longer_than_it_must(fleet, SQLiteHistory(tmp_path / "log.db"))


@pytest.mark.kafka
@pytest.mark.usefixtures("patient")
async def test_idle_partitions_at_once_on_kafka(tmp_path: Path, kafka_namespace: str) -> None:
    with Fleet(kafka_namespace, tmp_path, seed=0) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            await serves_no_idle_partition_longer_than_it_must(fleet, history)


async def test_sqlite(tmp_path: Path) -> None:
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, seed=0) as fleet:
        await hands_over(fleet, SQLiteHistory(tmp_path / "log.db"))


@pytest.mark.kafka
async def test_kafka(tmp_path: Path, kafka_namespace: str) -> None:
    """A session so long that nobody has waited for its end."""
    with Fleet(f"{kafka_namespace}?session_timeout_s=200", tmp_path, seed=0) as fleet:
        async with KafkaHistory(kafka_namespace) as history:
            await hands_over(fleet, history)
