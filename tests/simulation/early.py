"""Signals of other producers, through other partitions of the inbox: they may overtake the start of their run, and come twice."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import programs
from orjson import dumps

if TYPE_CHECKING:
    from world import Planned, World


def plan(world: World, run: Planned, at_s: float) -> None:
    """For a run that is started through the inbox at `at_s`."""
    random = Random(f"{world.plan.seed}/early/{run.number}")
    for index, name in enumerate(programs.waits(run.program)):
        if name != "release" and random.random() < 0.5:
            when = max(0.0, at_s + random.uniform(-6, 2))
            world.after(when, _signal, world, run, name, f"early {index}", random.choice((1, 1, 2, 3)))


def _signal(world: World, run: Planned, name: str, data: str, times: int) -> None:
    """As a CloudEvent: by its id it is known that it came before."""
    run.signals.add((name, data))
    to_run = {"run_id": run.id, "signal": name, "data": data}
    event = {"specversion": "1.0", "type": "stepfold.signal", "source": run.id, "id": data, "data": to_run}
    for number in range(times):
        world.log.put_inbox((run.number + number) % world.partitions, None, dumps(event))
    world.happened("foreign", f"signal {name} of {run.id}")
