"""Server times of the dashboard: `.venv/bin/python tests/bench/pages.py [RUNS] [STEPS]`. Median and 95th percentile, in ms.

Pages are asked in this process, without sockets. The last row is the time from a start to the stream's fragment that shows it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from stepfold import Client, Context, Step
from stepfold.cli.web import address, bound, serve_http
from stepfold.http import app
from stepfold.projections import texts
from stepfold.projections.runs import runs

ASKS = 20
CHUNK = 20_000


def client_of(folder: str) -> Client:
    client = Client(f"sqlite:///{folder}/log.db?durability=normal")

    @client.workflow(id="long")
    async def long(ctx: Context[int], step: Step) -> int:
        for number in range(ctx.input.data):
            await step.run(f"step-{number}", lambda: "done")
        return 1

    return client


def fill(engine: sa.Engine, count: int) -> None:
    """Rows of runs that never were."""
    for begin in range(0, count, CHUNK):
        rows = [row(number) for number in range(begin, min(begin + CHUNK, count))]
        with engine.begin() as connection:
            connection.execute(sa.insert(runs), rows)
            found: dict[int, list[str]] = {}
            for one in rows:
                head = texts.head(one["run_id"], one["workflow"])
                found.setdefault(one["started_at"], []).append(f"{head}\n{one['input']}\n{one['last_error'] or ''}")
            texts.add(connection, found)


def row(number: int) -> dict[str, Any]:
    state = ("completed", "completed", "completed", "failed", "waiting")[number % 5]
    known: dict[str, Any] = {
        "run_id": f"order-{number:09}",
        "workflow": ("process-order", "refund", "ship")[number % 3],
        "version": "1",
        "state": state,
        "partition": number % 4,
        "started_at": 1_700_000_000_000 + number,
        "updated_at": 1_700_000_000_000 + number,
        "ended_at": None if state == "waiting" else 1_700_000_000_500 + number,
        "steps_completed": 3,
        "attempts_failed": 0,
        "waiting_on": "[]",
        "last_error": "ConnectionError: the bank hung up" if state == "failed" else None,
        "input": f'{{"order":{number},"customer":"customer-{number % 997}","note":"some words of a customer"}}',
    }
    return {column.name: known.get(column.name) for column in runs.c}


async def times(ask: Callable[[], Awaitable[httpx.Response]], asks: int = ASKS) -> str:
    took: list[float] = []
    for _ in range(asks):
        began = time.perf_counter()
        answer = await ask()
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, answer.text[:300]
    took.sort()
    return f"{statistics.median(took):8.1f} {took[int(len(took) * 0.95)]:8.1f}"


async def shown_after(client: Client, url: str) -> str:
    """From a start to the fragment that shows it, 1 s apart."""
    took: list[float] = []
    began: dict[str, float] = {}
    async with (
        httpx.AsyncClient(timeout=60) as browser,
        browser.stream("GET", url, headers={"Accept": "text/event-stream"}) as answer,
        asyncio.TaskGroup() as tasks,
    ):

        async def starts() -> None:
            for number in range(ASKS):
                await asyncio.sleep(1)
                began[f"fresh-{number}"] = time.perf_counter()
                await client.start_workflow("unknown", number, run_id=f"fresh-{number}")

        tasks.create_task(starts())
        async for line in answer.aiter_lines():
            now = time.perf_counter()
            took += [(now - began.pop(one)) * 1000 for one in list(began) if f'/runs/{one}"' in line]
            if len(took) == ASKS:
                break
    took.sort()
    return f"{statistics.median(took):8.1f} {took[int(len(took) * 0.95)]:8.1f}"


async def main(count: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        client = client_of(folder)
        made = app(client)
        async with client, client.worker():
            for length in (steps, 1000):
                run = await client.start_workflow("long", length, run_id=f"long-{length}")
                await run.result()
        transport = httpx.ASGITransport(made)
        async with made.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as browser:
            await asyncio.sleep(2)
            engine = sa.create_engine(f"sqlite:///{Path(folder)}/log.projections.db")
            await asyncio.to_thread(fill, engine, count)
            for title, path in {
                f"list of {count:,} runs": "/",
                "list of failed runs": "/?state=failed&workflow=refund",
                "list of waiting runs": "/?waiting=sleep&state=waiting",
                "list by a text that many have": "/?q=some%20words",
                "list by a text that many have, failed ones": "/?q=customer-1&state=failed",
                "list by two letters": "/?q=or",
                "list by a text of one run": f"/?q=order-{count // 2:09}",
                "list by a text of none": "/?q=no%20such%20text",
                f"run of {steps:,} steps": f"/runs/long-{steps}",
                f"run of {steps:,} steps, in its middle": f"/runs/long-{steps}?nth={steps // 2}",
                "run of 1,000 steps, in its middle": "/runs/long-1000?nth=500",
                f"state of a run of {steps:,} steps": f"/v1/runs/long-{steps}",
            }.items():

                async def ask(path: str = path) -> httpx.Response:
                    return await browser.get(path, follow_redirects=True)

                print(f"{title:45} {await times(ask)}", flush=True)
        async with client:
            with bound("127.0.0.1", 0) as listens:
                serving = asyncio.create_task(serve_http(app(client), listens))
                print(f"{'a start, until it is in an open list':45} {await shown_after(client, address(listens))}")
                serving.cancel()
                await asyncio.wait([serving])


if __name__ == "__main__":
    asyncio.run(main(*map(int, (sys.argv[1:] + ["1000000", "10000"][len(sys.argv) - 1 :]))))
