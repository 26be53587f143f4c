"""The pages of the dashboard, as a server sends them."""

from __future__ import annotations

from html import escape
from pathlib import Path

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.events import SignalReceived, Started
from stepfold.http.guard import Caller
from stepfold.http.pages.render import run_path, with_query
from stepfold.http.routing import Role

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
IDS = ("order/7", "a b?c#d&e=f%2F", "..", ".", HOSTILE, "\N{RIGHT-TO-LEFT OVERRIDE}abc", "日本")


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        seen = await step.run("look", lambda: f"seen {ctx.input.data}")
        answer = await step.wait_for_signal("answer", signal="answer")
        return f"{seen} {answer}"

    @client.workflow(id="fail")
    async def fail(ctx: Context[str], step: Step) -> str:
        raise ValueError(ctx.input.data)

    return client


async def listing(browser: httpx.AsyncClient, path: str, words: str) -> str:
    """The page at `path` once it says `words`: the tables follow the log."""

    async def look() -> str:
        page = await browser.get(path)
        assert page.status_code == 200, page.text
        return page.text if words in page.text else ""

    return await eventually(look)


async def test_a_log_without_runs_shows_how_to_start_one(tmp_path: Path) -> None:
    async with served(client_of(tmp_path)) as browser:
        page = await browser.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "stepfold run start WORKFLOW" in page.text


async def test_runs_of_every_id_are_listed_and_open(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        for run_id in IDS:
            await client.start_workflow("greet", HOSTILE, run_id=run_id)
            page = await browser.get(run_path(run_id))
            assert (page.status_code, "</h1>" in page.text) == (200, True), run_id
            assert "<img src=x" not in page.text
            assert "<script>alert" not in page.text
            jumped = await browser.get(with_query("/open", q=run_id))
            assert (jumped.status_code, jumped.headers["location"]) == (303, run_path(run_id))
        listed = await listing(browser, "/", f"{len(IDS)} of {len(IDS)}")
        assert all(f'href="{escape(run_path(run_id))}"' in listed for run_id in IDS)
        assert "<img src=x" not in listed
        nothing = await browser.get("/?state=failed&workflow=greet")
        assert "No run matches" in nothing.text
        assert '<a href="/?workflow=greet">' in nothing.text


async def test_pages_of_the_list_follow_each_other(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        for number in range(60):
            await client.start_workflow("greet", "x", run_id=f"run-{number}")
        first = await listing(browser, "/?workflow=greet", "50 of 60 that match")
        path = first.partition('" rel="next"')[0].rpartition('href="')[2].replace("&amp;", "&")
        second = (await browser.get(path)).text
        assert "10 of 60 that match" in second
        shown = [f'data-key="run-{number}"' for number in range(60)]
        assert all((key in first) != (key in second) for key in shown)


async def test_a_run_is_shown_as_it_was_after_an_event(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser, client.worker():
        run = await client.start_workflow("greet", "x", run_id="one")
        await eventually(lambda: waits(browser))
        await run.signal("answer", "yes")
        await run.result()
        now = (await browser.get("/runs/one")).text
        assert "state completed" in now
        offsets = [part.partition('"')[0] for part in now.split('<tr id="e')[1:]]
        began = (await browser.get(f"/runs/one?at={offsets[0]}")).text
        assert "After event 1 of" in began
        assert "state pending" in began or "state running" in began
        assert f'href="/runs/one?at={offsets[1]}"' in began
        moved = await browser.get("/runs/one?nth=2")
        assert moved.headers["location"] == f"/runs/one?at={offsets[1]}"
        only = (await browser.get("/runs/one?step=look")).text
        assert f"1 of {len(offsets)} events, 1 match" in only


async def waits(browser: httpx.AsyncClient) -> bool:
    return "signal &#39;answer&#39;" in (await browser.get("/runs/one")).text


@pytest.mark.parametrize(
    "path", ["/runs/none", "/?state=odd", "/?after=odd", "/static/..%2frun.py", "/runs/@x", "/runs/one?at=x"]
)
async def test_an_error_is_a_page(tmp_path: Path, path: str) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        await client.start_workflow("greet", "x", run_id="one")
        page = await browser.get(path)
        assert page.status_code in (400, 404, 422)
        if not path.startswith("/static"):
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert "All runs" in page.text


async def test_an_unknown_path_is_a_page_for_browsers_only(tmp_path: Path) -> None:
    callers = {"v": Caller("vera", frozenset({Role.VIEW}))}
    async with served(client_of(tmp_path), authenticate=callers.get) as browser:
        for path in ("/nowhere", "/v1/nowhere", "/runs/%FF"):
            page = await browser.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
            assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
            assert "All runs" in page.text
            other = await browser.get(path, headers={"Accept": "*/*"})
            assert (other.status_code, other.headers["content-type"]) == (404, "application/problem+json")


async def test_a_caller_without_the_right_sees_no_payload(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    callers = {"v": Caller("vera", frozenset({Role.VIEW})), "p": Caller("paul", frozenset({Role.PAYLOAD}))}
    async with served(client, authenticate=callers.get) as browser, client.worker():
        await client.start_workflow("greet", "canary", run_id="one")
        failed = await client.start_workflow("fail", "canary", run_id="two")
        with pytest.raises(Exception, match="canary"):
            await failed.result()
        browser.headers["Authorization"] = "Bearer p"
        assert "canary" in await listing(browser, "/?state=failed", "1 of 1")
        paths = ["/", "/runs/one", "/runs/two"]
        assert all(["canary" in (await browser.get(path)).text for path in paths])
        assert "canary" in (await browser.get("/payload/two?part=error")).text
        browser.headers["Authorization"] = "Bearer v"
        for path in paths:
            page = await browser.get(path)
            assert (page.status_code, "canary" in page.text) == (200, False)
        assert "match" in (await browser.get("/runs/one?text=canary")).text
        assert "0 match" in (await browser.get("/runs/one?text=canary")).text
        assert [(await browser.get(path)).status_code for path in ("/?q=canary", "/payload/two?part=error")] == [403, 403]
        del browser.headers["Authorization"]
        assert [(await browser.get(path)).status_code for path in ("/", "/runs/one", "/open?q=one")] == [401, 401, 401]


async def test_forms_act_on_runs_and_say_what_is_wrong(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    callers = {
        "v": Caller("vera", frozenset({Role.VIEW, Role.PAYLOAD})),
        "o": Caller("olga", frozenset({Role.OPERATE, Role.PAYLOAD})),
    }
    async with served(client, authenticate=callers.get) as browser, client.worker():
        browser.headers["Authorization"] = "Bearer v"
        form = {"workflow": "greet", "data": '"x"', "run_id": "a/b", "why": "to see"}
        assert (await browser.post("/start", data=form)).status_code == 403
        browser.headers["Authorization"] = "Bearer o"
        started = await browser.post("/start", data=form)
        assert (started.status_code, started.headers["location"]) == (303, "/runs/a%2Fb")
        wrong = await browser.post("/runs/a%2Fb", data={"do": "signal", "name": "answer", "data": "text"})
        assert (wrong.status_code, "A text needs its quotes" in wrong.text) == (422, True)
        assert (await browser.post("/runs/a%2Fb", data={"do": "signal", "name": "", "data": "1"})).status_code == 422
        assert (await browser.post("/runs/a%2Fb", data={"do": "complete", "step": "look"})).status_code == 409
        assert (await browser.post("/runs/a%2Fb", data={"do": "complete", "step": "look", "message": "no"})).status_code == 422
        for wrong_start in ({"workflow": ""}, {"workflow": "a\nb"}, {"workflow": "order", "run_id": "@"}):
            assert (await browser.post("/start", data=wrong_start)).status_code == 422
        assert (await browser.post("/runs/%40", data={"do": "cancel"})).status_code == 422
        assert (await browser.post("/runs/none", data={"do": "cancel"})).status_code == 404
        sent = await browser.post("/runs/a%2Fb", data={"do": "signal", "name": "answer", "data": "1.50", "why": "because"})
        assert sent.status_code == 303
        await client.run("a/b").result()
        events = await client.run("a/b").history()
        asked = [(event.by, event.why) for event in events if isinstance(event, Started | SignalReceived)]
        assert asked == [("olga", "to see"), ("olga", "because")]
        ended = await browser.post("/runs/a%2Fb", data={"do": "cancel"})
        assert (ended.status_code, "completed" in ended.text) == (409, True)


async def test_errors_are_grouped_and_partitions_have_owners(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        assert "No worker" in (await browser.get("/workers")).text
        async with client.worker():
            for number in range(3):
                run = await client.start_workflow("fail", f"order {number} of 9", run_id=f"run-{number}")
                with pytest.raises(Exception, match="order"):
                    await run.result()
            listed = await listing(browser, "/errors", ">3<span")
            assert "ValueError" in listed
            other = await client.start_workflow("fail", "another", run_id="other")
            with pytest.raises(Exception, match="another"):
                await other.result()
            await listing(browser, "/?state=failed", "4 of 4")
            alike = listed.partition('<td class="number" data-label="count"><a href="')[2].partition('"')[0]
            runs = (await browser.get(alike)).text
            assert "3 of 3 that match" in runs
            assert "Runs that have had the error <strong>ValueError</strong> of fail" in runs
            assert (await browser.get(f"/v1/runs/count?fingerprint={alike.rpartition('=')[2]}")).json() == {"count": 3}
            workers = (await browser.get("/workers")).text
            assert "No worker" not in workers
            assert "stepfold-runs" in workers


async def test_a_stream_sends_what_has_changed_and_ends_with_the_run(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser, client.worker():
        run = await client.start_workflow("greet", "x", run_id="one")
        await eventually(lambda: waits(browser))
        await run.signal("answer", "yes")
        await run.result()
        answer = await browser.get("/runs/one", headers={"Accept": "text/event-stream"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "state completed" in answer.text
        assert "event: over" in answer.text
        missing = await browser.get("/runs/none", headers={"Accept": "text/event-stream"})
        assert missing.status_code == 404
