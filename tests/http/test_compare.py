"""A run at two points: the operations that have changed, and the events between."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http.guard import Caller
from stepfold.http.routing import Role


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        seen = await step.run("look", lambda: f"seen {ctx.input.data}")
        await step.wait_for_signal("answer", signal="answer")
        return await step.run("say", lambda: seen)

    return client


async def finished(client: Client, browser: httpx.AsyncClient) -> list[str]:
    """The offsets of the events of a run that has ended."""
    run = await client.start_workflow("greet", "canary", run_id="one")
    await eventually(lambda: _waits(browser))
    await run.signal("answer", "yes")
    await run.result()
    return [str(event.offset) for event in await run.history()]


async def _waits(browser: httpx.AsyncClient) -> bool:
    return "signal &#39;answer&#39;" in (await browser.get("/runs/one")).text


async def test_two_points_of_a_run(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser, client.worker():
        offsets = await finished(client, browser)
        page = (await browser.get(f"/runs/one?at={offsets[1]}&with={offsets[-1]}")).text
        assert f"After event 2 of {len(offsets)}" in page
        assert f"After event {len(offsets)} of {len(offsets)}" in page
        assert re.findall(r'<td class="mono name">(\w+)', page) == ["answer", "say"]
        assert "not begun" in page
        assert re.findall(r'<tr id="e(\d+)"', page) == offsets[2:]
        assert f'href="/runs/one?at={offsets[2]}&amp;with={offsets[-1]}"' in page
        swapped = (await browser.get(f"/runs/one?at={offsets[-1]}&with={offsets[1]}")).text
        assert swapped.partition("<main")[2].partition("</main")[0] == page.partition("<main")[2].partition("</main")[0]
        same = (await browser.get(f"/runs/one?at={offsets[1]}&with={offsets[1]}")).text
        assert "None has changed" in same
        past = (await browser.get(f"/runs/one?at={offsets[1]}")).text
        assert f'href="/runs/one?at={offsets[1]}&amp;with={offsets[-1]}">compare with now' in past
        assert (await browser.get("/runs/one?at=0&with=x")).status_code == 422
        assert (await browser.get("/runs/none?at=0&with=1")).status_code == 404


async def test_without_the_right_two_points_show_no_payload(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    callers = {"v": Caller("vera", frozenset({Role.VIEW})), "p": Caller("paul", frozenset({Role.PAYLOAD}))}
    async with served(client, authenticate=callers.get) as browser, client.worker():
        browser.headers["Authorization"] = "Bearer p"
        offsets = await finished(client, browser)
        path = f"/runs/one?at={offsets[0]}&with={offsets[-1]}"
        assert "canary" in (await browser.get(path)).text
        browser.headers["Authorization"] = "Bearer v"
        assert "canary" not in (await browser.get(path)).text
