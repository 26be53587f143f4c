"""The pages of one action on many runs, as a server sends them."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import httpx
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> None:
        await step.wait_for_signal("go", signal="go")

    return client


async def begin(client: Client, browser: httpx.AsyncClient, count: int) -> list[str]:
    ids = [f"run-{number}" for number in range(count)]
    for run_id in ids:
        await client.start_workflow("waits", "", run_id=run_id)

    async def listed() -> bool:
        return (await browser.get("/v1/runs/count")).json()["count"] == count

    await eventually(listed)
    return ids


def fields_of(page: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)}


async def asked_to_end(client: Client, run_id: str) -> list[tuple[str | None, str | None]]:
    return [(event.by, event.reason) for event in await client.run(run_id).history() if event.type == "cancel-requested"]


async def test_from_the_list_by_a_preview_to_a_job(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        ids = await begin(client, browser, 3)
        assert "/bulk/new" not in (await browser.get("/")).text, "without a filter nothing is offered"
        listed = (await browser.get("/?workflow=waits&since=24h")).text
        link = re.search(r'href="(/bulk/new[^"]*)"', listed)
        assert link
        preview = await browser.get(unescape(link[1]))
        assert "Cancel 3 runs?" in preview.text
        assert all(run_id in preview.text for run_id in ids)
        sent = fields_of(preview.text) | {"why": "spring <b>cleaning"}
        first, again = [await browser.post("/bulk", data=sent) for _ in range(2)]
        assert (first.status_code, first.headers["location"]) == (303, again.headers["location"]), "a double click is one job"
        page = await browser.get(first.headers["location"])
        assert "0 of 3" in page.text
        assert "Must act" in page.text, "no worker is there"
        assert "spring &lt;b&gt;cleaning" in page.text
        async with client.worker():

            async def over() -> str:
                text = (await browser.get(first.headers["location"])).text
                return text if text.count("cancelled</span>") == 4 and "3 of 3: 3 asked" in text else ""

            done = await eventually(over)
        assert "Abort the job" not in done
        assert await asked_to_end(client, ids[0]) == [("dashboard", "spring <b>cleaning")]
        jobs = (await browser.get("/bulk")).text
        assert (jobs.count("<tr data-key"), "3 of 3" in jobs) == (1, True)


async def test_a_job_is_aborted_by_its_page(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        [run_id] = await begin(client, browser, 1)
        preview = await browser.get("/bulk/new?workflow=waits")
        where = (await browser.post("/bulk", data=fields_of(preview.text))).headers["location"]
        aborted = await browser.post(where, data={"why": "a mistake"})
        assert (aborted.status_code, aborted.headers["location"]) == (303, where)
        async with client.worker():

            async def over() -> str:
                text = (await browser.get(where)).text
                return text if "never asked" in text else ""

            assert "a mistake" in await eventually(over)
        assert await asked_to_end(client, run_id) == []


async def test_pages_that_are_refused(tmp_path: Path) -> None:
    callers = {"look": Caller("eve", frozenset({Role.VIEW})), "act": Caller("ada", frozenset({Role.OPERATE}))}
    async with served(client_of(tmp_path), authenticate=callers.get) as browser:
        look, act = ({"Authorization": f"Bearer {name}"} for name in callers)
        assert (await browser.get("/bulk/new?workflow=waits", headers=look)).status_code == 403
        assert (await browser.get("/bulk/new?q=canary", headers=act)).status_code == 403
        assert (await browser.get("/bulk/new", headers=act)).status_code == 422
        assert "No run matches" in (await browser.get("/bulk/new?workflow=waits", headers=act)).text
        assert (await browser.post("/bulk", data={"workflow": "waits"}, headers=look)).status_code == 403
        assert (await browser.post("/bulk", data={"workflow": "waits"}, headers=act)).status_code == 409
        assert (await browser.get("/bulk/nobody", headers=look)).status_code == 404
        assert "No job yet" in (await browser.get("/bulk", headers=look)).text
