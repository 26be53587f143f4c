"""Settings and saved views of one browser: cookies that the server reads."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client


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
