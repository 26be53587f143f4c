"""The workflows that the log has runs of, by HTTP and as a page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from http_served import served

from stepfold import Client, Context, NonRetryable, Step
from stepfold.http import workflows
from stepfold.http.pages.workflows import rate, sparkline

STRANGE = "<b>&\"'"


def shop(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    async def refuse() -> None:
        raise NonRetryable("not for sale")

    @client.workflow(id="order", version="2")
    async def order(ctx: Context[int], step: Step) -> None:
        await asyncio.gather(*(step.run(f"pay-{number}", asyncio.sleep, 0.02) for number in range(4)))

    @client.workflow(id=STRANGE)
    async def strange(ctx: Context[int], step: Step) -> None:
        await step.run("refuse", refuse)

    @client.workflow(id="waiter")
    async def waiter(ctx: Context[int], step: Step) -> None:
        await step.wait_for_signal("go", signal="go")

    return client


async def test_workflows_have_their_counts_rates_and_durations(tmp_path: Path) -> None:
    client = shop(tmp_path)
    async with served(client) as browser:
        async with client.worker(concurrency=1):
            runs = [await client.start_workflow(name, 1) for name in ("order", "order", STRANGE)]
            await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
            await client.start_workflow("waiter", 1)
        await client.start_workflow("unknown", 1)
        found: dict[str, Any] = {}
        while not {"order", "waiter", "unknown", STRANGE} <= found.keys() or found["order"]["completed"] < 2:
            answered = (await browser.get("/v1/workflows")).json()
            assert not answered["more"]
            found = {one["workflow"]: one for one in answered["workflows"]}
        order, strange = found["order"], found[STRANGE]
        page = (await browser.get("/workflows")).text
    assert (order["versions"], order["open"], order["started"], order["completed"], order["failed"]) == (["2"], 0, 2, 2, 0)
    assert (strange["failed"], found["waiter"]["open"], found["unknown"]["open"]) == (1, 1, 1)
    assert found["unknown"]["versions"] == [] and found["unknown"]["run_p50_ms"] is None
    assert sum(order["started_by_minute"]) == sum(order["ended_by_minute"]) == 2
    assert sum(strange["failed_by_minute"]) == 1 and len(order["started_by_minute"]) == 60
    assert order["run_p50_ms"] > 0
    assert order["queue_p95_ms"] >= 20, "one place for eight attempts of 20 ms"
    assert strange["queue_p50_ms"] is not None
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert 'href="/?workflow=order"' in page and "state=failed" in page
    assert page.count("<svg") - page.count('class="logo"') >= 4


async def test_there_are_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "MOST", 2)
    client = shop(tmp_path)
    async with served(client) as browser:
        for number in range(3):
            await client.start_workflow(f"made-up-{number}", 1)
        while not (answered := (await browser.get("/v1/workflows")).json())["more"]:
            pass
    assert len(answered["workflows"]) == 2


async def test_without_runs_the_page_says_how_to_start_one(tmp_path: Path) -> None:
    async with served(Client(f"sqlite:///{tmp_path}/log.db")) as browser:
        assert "No workflows" in (await browser.get("/workflows")).text


def test_sparklines_are_as_high_as_their_counts() -> None:
    assert sparkline([0, 5, 10], 10) == "0,19.0 1,10.0 2,1.0"
    assert sparkline([0, 0], 0) == "0,19.0 1,19.0"


@pytest.mark.parametrize(
    ("counts", "said"), [([0] * 60, "0"), ([1] + [0] * 59, "0.017"), ([3] * 60, "3"), ([1234] * 60, "1,234")]
)
def test_rates_are_short(counts: list[int], said: str) -> None:
    assert rate(counts) == said
