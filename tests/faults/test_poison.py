"""A step that kills its process: its run is put aside, the others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fleet import Fleet, until
from rawlog import Audit, SQLiteHistory

from stepfold import Client
from stepfold.worker.suspects import CAREFUL_AFTER, KILLS_LIMIT

LOSSES = 8
"""Documented: so many losses in a row put a run aside."""


@pytest.mark.parametrize(("poison", "attempts"), [("at once", [*range(1, 9)]), ("when tried again", [*range(1, 10)])])
async def test_a_poisonous_run_is_put_aside_alone(tmp_path: Path, poison: str, attempts: list[int]) -> None:
    """Its neighbours in the same partition die with it each time, and are not put aside with it."""
    deaths, reason, fleet = await put_aside(tmp_path, poison, 40)
    assert deaths == LOSSES and "poison" in reason
    assert [one.attempt for one in fleet.executions() if one.step_id == "poison"] == attempts


@pytest.mark.parametrize("poison", ["in the code", "after many values"])
async def test_a_run_whose_code_kills_its_worker_is_put_aside_alone(tmp_path: Path, poison: str) -> None:
    """Code leaves no trace of having run: it is announced after two deaths, at first beside others, then alone. Code that
    publishes many values pauses between them, and has not come back then.
    """
    deaths, reason, _ = await put_aside(tmp_path, poison, 20)
    assert CAREFUL_AFTER < deaths <= CAREFUL_AFTER + KILLS_LIMIT and f"{KILLS_LIMIT} times in a row" in reason


async def put_aside(folder: Path, poison: str, beside: int) -> tuple[int, str, Fleet]:
    """One poisonous run in the middle of others is put aside, these and one that comes later complete, and it can be cancelled.

    How many workers died of it, and why it was put aside.
    """
    url, history, audit = f"sqlite:///{folder}/log.db?partitions=2", SQLiteHistory(folder / "log.db"), Audit()
    async with Client(url) as client:
        healthy = [(await client.start_workflow("journey", {})).id for _ in range(beside // 2)]
        poisonous = (await client.start_workflow("journey", {"poison": poison})).id
        healthy += [(await client.start_workflow("journey", {})).id for _ in range(beside // 2)]

        with Fleet(url, folder, seed=0) as fleet:
            fleet.worker()

            def is_put_aside() -> bool:
                fleet.replace_the_dead()
                return audit.runs[poisonous].quarantined is not None and not audit.unfinished(healthy)

            await until(is_put_aside, history, audit)
            deaths, reason = fleet.suicides, audit.runs[poisonous].quarantined
            assert reason is not None
            later = await client.start_workflow("journey", {})
            await asyncio.wait_for(later.result(), 60)
            await client.run(poisonous).cancel()
            await until(lambda: not audit.unfinished([poisonous, later.id]), history, audit)
            fleet.replace_the_dead()
            assert fleet.suicides == deaths

    assert audit.counts.ends == {"completed": beside + 1, "cancelled": 1}
    audit.check_returned()
    audit.check_executions(fleet.executions())
    audit.conclude()
    return deaths, reason["message"], fleet
