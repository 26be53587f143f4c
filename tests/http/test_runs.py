"""Runs by HTTP."""

from __future__ import annotations

from pathlib import Path

from http_served import served

from stepfold import Client, Context, Step


async def test_a_run_is_shown_without_a_worker(tmp_path: Path) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        return f"hello {ctx.input}"

    async with served(client) as browser:
        await client.start_workflow(greet, "Ada", run_id="one")
        shown = await browser.get("/v1/runs/one")
        assert (shown.status_code, shown.json()["state"], shown.json()["input"]) == (200, "pending", "Ada")
        missing = await browser.get("/v1/runs/two")
        assert (missing.status_code, missing.json()["code"]) == (404, "run-not-found")
        assert missing.headers["content-type"] == "application/problem+json"
        foreign = await browser.get("/v1/runs/one", headers={"Host": "evil.example"})
        assert foreign.status_code == 421
