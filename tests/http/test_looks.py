"""Settings and saved views of one browser: cookies that the server reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from eventually import eventually
from http_served import served
from jinja2 import Environment

from stepfold import Client, Context, Step
from stepfold.http.pages.look import Look
from stepfold.http.pages.times import remarked, timed


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(f"sqlite:///{tmp_path}/log.db")


async def test_times_are_in_the_chosen_zone_and_the_theme_is_set(client: Client) -> None:
    async with served(client) as browser:
        await client.start_workflow("w", "x", run_id="one")
        assert " UTC</time>" in (await browser.get("/runs/one")).text
        set_ = await browser.post("/settings", data={"theme": "dark", "zone": "Asia/Tokyo"})
        assert (set_.status_code, set_.headers["location"]) == (303, "/settings?saved=1")
        assert "samesite=lax" in set_.headers["set-cookie"].lower()
        page = (await browser.get("/runs/one")).text
        assert " JST</time>" in page
        assert 'data-theme="dark" data-zone="Asia/Tokyo"' in page
        assert "<option selected>Asia/Tokyo</option>" in (await browser.get("/settings")).text
        wrong = await browser.post("/settings", data={"zone": "../../etc/passwd"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (422, False)
        assert (await browser.post("/settings", data={"theme": "loud"})).status_code == 422


async def test_times_in_sentences_are_in_the_chosen_zone(client: Client) -> None:
    @client.workflow(id="naps")
    async def naps(ctx: Context[str], step: Step) -> None:
        await step.sleep("nap", "7d")

    async with served(client) as browser, client.worker():
        await client.start_workflow("naps", "", run_id="one")
        await eventually(lambda: lists(browser, "/?state=waiting"))
        browser.headers["cookie"] = "stepfold-look=theme=dark&zone=Asia%2FTokyo"
        [until] = [wait.until for wait in (await client.run("one").status()).waits]
        assert until is not None
        there = until.astimezone(ZoneInfo("Asia/Tokyo")).strftime("%Y-%m-%d %H:%M:%S JST")
        element = re.compile(rf'<time datetime="{until:%Y-%m-%dT%H:%M:%S}\.\d{{3}}Z" title="[^"]*Z" data-clock>{there}</time>')
        offset = (await client.run("one").history())[0].offset
        found = {path: (await browser.get(path)).text for path in ("/", "/runs/one", "/history", f"/runs/one?at={offset}&with=9")}
        counts = {path: len(element.findall(text)) for path, text in found.items()}
        assert counts == {"/": 1, "/runs/one": 3, "/history": 1, f"/runs/one?at={offset}&with=9": 1}, "waits, notes, details"
        for path, text in found.items():
            assert " UTC" not in text, path
        listed = (await browser.get("/bulk/new?workflow=naps&since=24h")).text
        assert re.search(r"<dt>started after</dt><dd><time [^>]*>[^<]* JST</time>", listed)


@pytest.mark.parametrize("text", ["a\u20601\u2060", "2026-13-45 99:00:00 UTC", "<b>\u2060-9999999999999999\u2060", "\u20601"])
def test_texts_that_look_like_times_harm_nothing(text: str) -> None:
    environment = Environment(autoescape=True)
    filters: dict[str, Any] = {"remarked": remarked, "timed": timed}
    environment.filters.update(filters)
    made = environment.from_string("{{ text | remarked | timed(20) }}").render(text=text, look=Look("light", "UTC"))
    assert "<b>" not in made
    assert "\u2060" not in made


@pytest.mark.parametrize("cookie", ["", "zone=Mars%2FBase", "theme=x&zone=", "%FF", "a" * 5000, "zone=..%2F..%2Fetc"])
async def test_an_odd_cookie_is_as_none(client: Client, cookie: str) -> None:
    async with served(client) as browser:
        browser.headers["cookie"] = f"stepfold-look={cookie}; stepfold-views={cookie}"
        page = await browser.get("/")
        assert (page.status_code, 'data-theme="system" data-zone="local"' in page.text) == (200, True)


async def test_a_view_is_saved_shown_first_and_dropped(client: Client) -> None:
    async with served(client) as browser:
        await client.start_workflow("w", "x", run_id="one")
        await eventually(lambda: lists(browser, "/?state="))
        assert "Save this view" in (await browser.get("/?state=pending")).text
        saved = await change(browser, do="save", name="<b>", query="state=pending&after=1~x", default="true")
        assert saved == "/?state=pending"
        assert (await browser.get("/")).headers["location"] == "/?state=pending"
        page = (await browser.get("/?state=pending")).text
        assert "&lt;b&gt;</a>" in page
        assert "Save this view" not in page
        assert '<a href="/?state=">Clear</a>' in page
        assert await lists(browser, "/?state=")
        assert await change(browser, do="save", name="other", query="workflow=w", default="true") == "/?workflow=w"
        assert (await browser.get("/")).headers["location"] == "/?workflow=w"
        assert await change(browser, do="plain", name="other") == "/?workflow=w"
        assert await lists(browser, "/")
        assert await change(browser, do="drop", name="other") == "/?state="
        page = (await browser.get("/")).text
        assert "&lt;b&gt;</a>" in page
        assert ">other<" not in page
        forms = [{"do": "save", "name": f"{number}", "query": f"q={'x' * 300}"} for number in range(30)]
        answers = [await browser.post("/views", data=form) for form in forms]
        assert (answers[0].status_code, answers[-1].status_code) == (303, 422)
        assert "drop one first" in answers[-1].text


async def lists(browser: httpx.AsyncClient, path: str) -> bool:
    page = await browser.get(path)
    return page.status_code == 200 and 'data-key="one"' in page.text


async def change(browser: httpx.AsyncClient, **form: str) -> str:
    answer = await browser.post("/views", data=form)
    assert answer.status_code == 303
    return answer.headers["location"]
