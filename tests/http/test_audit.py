"""Who asked for what, and why: by the API and on the page."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http.guard import Caller
from stepfold.http.pages import audit
from stepfold.http.routing import Role


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> object:
        await step.wait_for_signal("answer", signal="answer")
        return await (await step.callback("partner", timeout="1h"))

    return client


async def act(client: Client) -> None:
    """Requests of several people about several runs; those of programs have no row."""
    one = await client.start_workflow("greet", "canary", run_id="one", by="ada", why="to <b>see</b>")
    two = await client.start_workflow("greet", "x", run_id="a/b", by="grace")
    await client.start_workflow("greet", "x", run_id="nobody")
    await one.signal("answer", "canary", by="grace", why="it is right")
    await one.signal("answer", "x")
    await two.cancel("ordered twice", by="ada")
    await eventually(lambda: waits_for_partner(client))
    callback = next(wait for wait in (await one.status()).waits if wait.kind == "callback")
    assert callback.command is not None
    found = re.search(r"complete (\S+)", callback.command)
    assert found is not None
    assert await client.complete_callback(found[1].strip("'"), "canary", by="olga", why="by phone")


async def waits_for_partner(client: Client) -> bool:
    return any(wait.kind == "callback" for wait in (await client.run("one").status()).waits)


async def listed(browser: httpx.AsyncClient, count: int, **query: str) -> list[dict[str, str]]:
    async def look() -> list[dict[str, str]]:
        answer = await browser.get("/v1/actions", params=query)
        assert answer.status_code == 200, answer.text
        actions = answer.json()["actions"]
        return actions if len(actions) == count else []

    return await eventually(look)


async def test_requests_that_name_who_or_why_are_listed(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser, client.worker():
        await act(client)
        actions = await listed(browser, 5)
        told = {(one["type"], one["run_id"], one["subject"], one["by"], one["why"]) for one in actions}
        assert told == {
            ("started", "one", None, "ada", "to <b>see</b>"),
            ("started", "a/b", None, "grace", None),
            ("signal-received", "one", "answer", "grace", "it is right"),
            ("cancel-requested", "a/b", None, "ada", "ordered twice"),
            ("callback-completed", "one", "partner", "olga", "by phone"),
        }
        assert [one["at"] for one in actions] == sorted((one["at"] for one in actions), reverse=True)
        assert {one["workflow"] for one in actions} == {"greet"}
        assert len(await listed(browser, 2, by="ada")) == 2
        assert len(await listed(browser, 1, by="ada", type="started")) == 1
        assert len(await listed(browser, 2, run_id="a/b")) == 2
        seen: list[str] = []
        answer = await browser.get("/v1/actions?limit=2")
        while True:
            seen += [f"{one['partition']}:{one['offset']}" for one in answer.json()["actions"]]
            if answer.json()["next"] is None:
                break
            answer = await browser.get(answer.headers["link"].partition(">")[0].removeprefix("<"))
        assert seen == [f"{one['partition']}:{one['offset']}" for one in actions]
        for odd in ("x", "1-2", "-1-2-3", "1-2-x"):
            assert (await browser.get(f"/v1/actions?cursor={odd}")).status_code == 422


async def test_the_page_of_the_audit(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    callers = {"v": Caller("vera", frozenset({Role.VIEW}))}
    async with served(client, authenticate=callers.get) as browser, client.worker():
        browser.headers["Authorization"] = "Bearer v"
        assert "This page lists requests" in (await browser.get("/audit")).text
        await act(client)
        await listed(browser, 5)
        page = (await browser.get("/audit")).text
        assert "to &lt;b&gt;see&lt;/b&gt;" in page
        assert 'href="/audit?by=ada"' in page
        assert re.search(r'href="/runs/a%2Fb\?at=\d+"', page)
        assert "canary" not in page
        assert (await browser.get("/audit?by=ada&type=started")).text.count("<tr data-key") == 1
        assert "No request fits" in (await browser.get("/audit?by=nobody")).text
        assert set(audit.TYPES) > {"started", "signal-received", "cancel-requested", "callback-completed", "callback-failed"}


async def test_a_page_leads_to_the_next(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        await asyncio.gather(*(client.start_workflow("greet", "x", run_id=f"run-{n}", by="ada") for n in range(60)))
        await listed(browser, 60, limit="100")
        page = (await browser.get("/audit?by=ada")).text
        path = page.partition('" rel="next"')[0].rpartition('href="')[2].replace("&amp;", "&")
        assert (page.count("<tr data-key"), (await browser.get(path)).text.count("<tr data-key")) == (50, 10)
