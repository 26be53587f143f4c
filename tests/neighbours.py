"""Runs that hold their worker up, those beside them, and how to see what became of them."""

from __future__ import annotations

import contextlib
from typing import Any

from stepfold import Client, Context, Run, Step, Workflow
from stepfold.client.status import RunStatus


async def swallows_all(ctx: Context[Any], step: Step) -> None:
    while True:
        try:
            while True:
                with contextlib.suppress(BaseException):
                    len("")
        except BaseException:  # noqa: BLE001  # that is what is tried
            pass


def neighbour_of(client: Client) -> Workflow[int, int]:
    """A workflow with one step, which adds 1: its runs end soon, whatever others do."""

    @client.workflow(id="neighbour")
    async def neighbour(ctx: Context[int], step: Step) -> int:
        return await step.run("s", lambda: ctx.input.data + 1)

    return neighbour


async def quarantined(run: Run[Any]) -> RunStatus | None:
    status = await run.status()
    return status if status.state == "quarantined" else None
