"""An import that tells how far it is, and a reader that follows it and goes on where it was.

    python examples/progress.py            imports 12 rows in batches of 4, and shows each change
    python examples/progress.py crash      the same, but the process dies in the second batch; then run it again

The log is imports.db in the current folder.
"""

import asyncio
import os
import sys
from pathlib import Path

from stepfold import Client, Context, Published, StateChanged, Step

client = Client("sqlite:///imports.db")
POSITION = Path("position.txt")


async def load(first: int, last: int) -> int:
    if "crash" in sys.argv and first == 4:
        os._exit(1)
    return last - first  # a real one writes these rows to a database


@client.workflow(id="import-rows")
async def import_rows(ctx: Context[int], step: Step) -> int:
    rows, done = ctx.input.data, 0
    batches: list[int] = []
    ctx.state.batches = batches  # for queries
    for first in range(0, rows, 4):
        done += await step.run("load", load, first, min(first + 4, rows))
        batches.append(first)
        await step.publish("progress", {"done": done, "of": rows})
    return done


@import_rows.query
async def loaded(ctx: Context[int]) -> list[int]:
    """The first rows of the batches that are done: nobody publishes them, a replay of the code tells."""
    return ctx.state.batches


def seen() -> int:
    """How far the reader has read: a real one keeps that in its database."""
    return int(POSITION.read_text()) if POSITION.exists() else 0


def keep(position: int) -> None:
    POSITION.write_text(f"{position}")


def shown(change: Published | StateChanged) -> str:
    return f"{change.value['done']} of {change.value['of']}" if isinstance(change, Published) else change.state


async def main() -> None:
    async with client.worker():
        run = await client.start_workflow(import_rows, 12, run_id="import-1")
        async for change in run.watch(after=seen()):
            print(shown(change), flush=True)
            keep(change.position)
        print("last:", await run.published("progress"))
        print("batches:", await client.inspect(run.id).query(loaded))


asyncio.run(main())
