"""One workflow, one run: what most tests of the engine need."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from virtually import virtually

from stepfold import Client, Context, Step
from stepfold.values.duration import Duration

LIMIT_S = 30
"""Only a failing test waits this long."""

Body = Callable[[Context[Any], Step], Coroutine[Any, Any, Any]]


async def outcome(client: Client, body: Body, limit: Duration = LIMIT_S) -> Any:
    """What a workflow with this body gives; its run is `r`."""
    workflow = client.workflow(id="w")(body)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        return await run.result(limit)


def virtual_outcome(body: Body, random: Random | None = None) -> Any:
    """The same in virtual time."""
    return virtually(lambda client: outcome(client, body, "365d"), random=random)


async def history(client: Client) -> list[Any]:
    async with client:
        return await client.run("r").history()
