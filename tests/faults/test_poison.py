"""A step that kills its process: its run is put aside, the others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, SQLiteHistory

from stepfold import Client

LOSSES = 5
"""Documented: so many losses in a row put a run aside."""


@pytest.mark.parametrize(("poison", "attempts"), [("at once", [1, 2, 3, 4, 5]), ("when tried again", [1, 2, 3, 4, 5, 6])])
async def test_a_poisonous_run_is_put_aside_alone(tmp_path: Path, poison: str, attempts: list[int]) -> None:
    """Its neighbours in the same partition die with it each time, and are not put aside with it."""
    url, history, audit = f"sqlite:///{tmp_path}/log.db?partitions=2", SQLiteHistory(tmp_path / "log.db"), Audit()
    async with Client(url) as client:
        healthy = [(await client.start_workflow("journey", {})).id for _ in range(20)]
        poisonous = (await client.start_workflow("journey", {"poison": poison})).id
        healthy += [(await client.start_workflow("journey", {})).id for _ in range(20)]

        with Fleet(url, tmp_path, seed=0) as fleet:
            workers = [fleet.worker()]

            def is_put_aside() -> bool:
                if workers[-1].poll() is not None:
                    workers.append(fleet.worker())
                return audit.runs[poisonous].quarantined is not None and not audit.unfinished(healthy)

            await until(is_put_aside, history, audit)
            later = await client.start_workflow("journey", {})
            await asyncio.wait_for(later.result(), 60)
            assert workers[-1].poll() is None
            reason = audit.runs[poisonous].quarantined
            assert reason is not None and "poison" in reason["message"]
            await client.run(poisonous).cancel()
            await until(lambda: not audit.unfinished([poisonous]), history, audit)

    assert len(workers) == LOSSES + 1
    assert [one.attempt for one in fleet.executions() if one.step_id == "poison"] == attempts
    assert audit.counts.ends == {"completed": len(healthy) + 1, "cancelled": 1}
    audit.check_returned()
    audit.check_executions(fleet.executions())
    audit.conclude()
