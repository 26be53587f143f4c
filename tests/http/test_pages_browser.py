"""The dashboard in Chromium: looks, barriers, script, keys, and hostile data."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import sqlalchemy as sa
from chromium import CHROMIUM, chromium, listening, watched
from eventually import eventually
from looks import LOOKS, look_at
from playwright.async_api import Page, expect

from stepfold import Client, Context, Retry, Step
from stepfold.client.bulk import Wanted, start_job
from stepfold.client.requests import Sender
from stepfold.events import RunEvent, Started
from stepfold.http import Caller, Role
from stepfold.http.pages.render import NAVIGATION
from stepfold.http.table import ROWS
from stepfold.projections import Chart, Number, Projection, RunSoFar, TableView

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium"),
]

HOSTILE = "\"'><img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}javascript:alert(3)\N{RIGHT-TO-LEFT OVERRIDE}"
begun = sa.Table("begun", sa.MetaData(), sa.Column("run_id", sa.String(200), primary_key=True), sa.Column("at", sa.Text))


class Begun(Projection):
    """A user's projection with a dashboard."""

    name = "begun"
    metadata = begun.metadata
    pages = (
        Number("Runs", sa.select(sa.func.count()).select_from(begun)),
        Chart("By beginning", sa.select(sa.func.substr(begun.c.run_id, 1, 5), sa.func.count()).group_by(sa.literal_column("1"))),
        TableView("Begun", sa.select(begun.c.run_id, begun.c.at)),
    )

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        if isinstance(event, Started):
            connection.execute(sa.insert(begun).values(run_id=run.id, at=run.started_at.isoformat()))


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")
    tries: list[str] = []

    async def flaky(order: str) -> str:
        tries.append(order)
        if tries.count(order) < 3:
            raise ConnectionError(f"the bank hung up on {order}")
        return f"paid {order}"

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> str:
        await step.run("reserve", lambda: HOSTILE)
        await step.run("charge", flaky, ctx.input.data, retry=Retry(5, backoff="10ms"))
        await step.publish("progress", {"done": 1, "of": 2})
        await step.publish(HOSTILE[:100], [HOSTILE] * 40)
        await step.sleep("cool-down", "20ms")
        answer = await step.wait_for_signal("approval", signal="approve", timeout="7d")
        await step.publish("progress", {"done": 2, "of": 2})
        return f"{answer}"

    @client.workflow(id="partner")
    async def partner(ctx: Context[str], step: Step) -> str:
        return str(await (await step.callback("answer", timeout="2h")))

    @client.workflow(id=HOSTILE)
    async def fail(ctx: Context[str], step: Step) -> str:
        async def no() -> None:
            raise ValueError(HOSTILE)

        await step.run(HOSTILE[:100], no)
        return ""

    return client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client with a worker, and runs in most states."""
    client = client_of(tmp_path)
    async with client, client.worker():
        for run_id in ("order/1", "order/2"):
            await client.start_workflow("order", run_id, run_id=run_id, by="ada", why="nightly")
        await client.start_workflow("partner", "x", run_id="partner-1")
        await client.start_workflow("nobody-knows-it", "x", run_id="lost")
        run = await client.start_workflow(HOSTILE, HOSTILE, run_id=HOSTILE, by=HOSTILE[:90], why=HOSTILE)
        with pytest.raises(Exception, match="img"):
            await run.result()
        cancelled = await client.start_workflow("partner", "x", run_id="partner-2")
        await cancelled.cancel(HOSTILE, by="grace")
        for run_id in ("order/1", "order/2"):
            await eventually(lambda run_id=run_id: stands(client, run_id, "wait"))
        await client.run("order/2").signal("approve", HOSTILE, by="grace", why=HOSTILE)
        await client.run("order/2").result()
        yield client


async def stands(client: Client, run_id: str, kind: str) -> bool:
    return any(wait.kind == kind for wait in (await client.run(run_id).status()).waits)


PAGES = {
    "runs_page": {"runs": "/", "none": "/?state=quarantined&workflow=order"},
    "run_page": {
        "waiting": "/runs/order%2F1",
        "completed": "/runs/order%2F2",
        "past": "/runs/order%2F2?nth=3",
        "compare": "/runs/order%2F2?at={first}&with={last}",
        "callback": "/runs/partner-1",
        "cancelled": "/runs/partner-2",
        "lost": "/runs/lost",
        "hostile": "{hostile}",
        "problem": "/runs/none",
    },
    "start_page": {"start": "/start", "form": "/start?workflow=order", "json": "/start?workflow=order&form=json"},
    "bulk_jobs_page": {"bulk-jobs": "/bulk"},
    "new_bulk_page": {"bulk-new": "/bulk/new?workflow=order"},
    "bulk_job_page": {"bulk-job": "/bulk/job"},
    "workflows_page": {"workflows": "/workflows"},
    "errors_page": {"errors": "/errors"},
    "dashboards_page": {"dashboards": "/dashboards"},
    "dashboard_page": {"board": "/dashboards/begun"},
    "workers_page": {"workers": "/workers"},
    "dead_letters_page": {"no-inbox": "/dead-letters"},
    "history_page": {"history": "/history", "history-filtered": "/history?type=signal-received"},
    "audit_page": {"audit": "/audit"},
    "settings_page": {"settings": "/settings"},
}
"""By the name of the row: pictures of the page, and their paths. Dead letters have theirs in test_letters, on Kafka."""
OTHERS = {"open_page": "leads on", "payload_page": "plain text", "static": "no page", "get_login": "a test of its own"}


def test_every_page_is_looked_at() -> None:
    assert {row.name for row in ROWS if row.page and row.method == "GET"} == PAGES.keys() | OTHERS.keys()


@pytest.mark.parametrize("look", LOOKS)
async def test_pages_have_no_barriers_and_run_no_data(client: Client, look: str) -> None:
    offsets = [event.offset for event in await client.run("order/2").history()]
    await start_job(
        client, "job", Wanted("cancel", {"ids": ["order/2", "nobody"]}, Sender("ada", HOSTILE)), ["order/2", "nobody"], []
    )
    async with (
        listening(client, projections=[Begun()]) as url,
        chromium() as browser,
        watched(browser, url, allowed="404", **LOOKS[look]) as page,
    ):
        await page.goto("/")
        hostile = await page.locator("#list a.id", has_text="img").get_attribute("href")
        places = {"first": offsets[0], "last": offsets[-1], "hostile": hostile}
        await page.goto("/bulk/job")
        await expect(page.locator("#job-head")).to_contain_text("2 of 2")
        for name, path in {name: path for shots in PAGES.values() for name, path in shots.items()}.items():
            answer = await page.goto(path.format(**places))
            assert answer is not None
            assert answer.status == (404 if name == "problem" else 200), name
            await look_at(page, name, look)


@pytest.mark.parametrize("look", LOOKS)
async def test_the_login_has_no_barriers(client: Client, look: str) -> None:
    callers = {"ada": Caller("ada", frozenset({Role.VIEW}))}
    async with (
        listening(client, authenticate=callers.get) as url,
        chromium() as browser,
        watched(browser, url, **LOOKS[look]) as page,
    ):
        await page.goto("/login")
        await look_at(page, "login", look)


async def test_pages_work_without_script(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url, java_script_enabled=False) as page:
        await page.goto("/start")
        await page.get_by_role("link", name="order version 1").click()
        await page.get_by_label("input", exact=True).fill("o3")
        await page.locator("main").get_by_label("Run id").fill("order/3")
        await page.get_by_label("Why").fill("by hand")
        await page.get_by_role("button", name="Start").click()
        await eventually(lambda: stands(client, "order/3", "wait"))
        await page.goto("/open?q=order%2F3")
        await page.locator("summary", has_text="Send a signal").click()
        await page.get_by_label("Data, as JSON").fill('"granted"')
        await page.locator(".acts details").get_by_label("Why").fill("it is right")
        async with page.expect_navigation():
            await page.get_by_role("button", name="Send").click()
        assert "granted" in await client.run("order/3").result()
        await page.reload()
        await expect(page.locator(".title .state")).to_contain_text("completed")
        await expect(page.locator("#run-history")).to_contain_text("by dashboard: it is right")
        await page.get_by_role("link", name="one event back").click()
        await expect(page.locator("#slider")).to_contain_text("After event")
        await page.get_by_label("Outcome").select_option("1")
        await page.locator("#history").get_by_role("button", name="Filter").click()
        await expect(page.locator("#history-count")).to_contain_text("2 match")


async def test_a_run_is_live_until_it_ends(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/runs/order%2F1")
        await expect(page.locator("#live")).to_have_text("live")
        await page.evaluate("window.same = true")
        published = page.locator("#run-published tr", has_text="progress")
        await expect(published).to_contain_text('"done": 1')
        await client.run("order/1").signal("approve", "yes", by="grace")
        await expect(published).to_contain_text('"done": 2')
        await expect(page.locator(".title .state")).to_contain_text("completed")
        await expect(page.locator("#run-history")).to_contain_text("by grace")
        await expect(page.locator("#run-acts form")).to_have_count(0)
        await expect(page.locator("#live")).to_be_hidden()
        assert await page.evaluate("window.same")


async def test_rows_keep_their_places_and_new_ones_are_counted(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/?workflow=order")
        await expect(page.locator("#live")).to_have_text("live")
        row = page.locator("#list tbody tr", has_text="order/1")
        await expect(row).to_contain_text("waiting")
        await client.start_workflow("order", "x", run_id="order/4")
        await client.start_workflow("order", "y", run_id="order/5")
        await expect(page.locator("#fresh button")).to_have_text("2 new")
        await client.run("order/1").signal("approve", "yes")
        await expect(row).to_contain_text("completed")
        await expect(page.locator("#list tbody tr")).to_have_count(2)
        await page.locator("#fresh button").click()
        await expect(page.locator("#list tbody tr")).to_have_count(4)
        await expect(page.locator("#counts")).to_contain_text("4 of 4")


async def test_keys_move_through_runs_and_their_events(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/?workflow=order")
        for key in ("j", "j", "k"):
            await page.keyboard.press(key)
        first = page.locator("#list tbody a.id").first
        await expect(first).to_be_focused()
        await page.keyboard.press("/")
        await page.keyboard.type("order/2")
        await expect(page.get_by_role("searchbox", name="Run id or text")).to_have_value("order/2")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/runs/order%2F2")
        await on_event(page, "[", -1)
        await on_event(page, "[", -1)
        await on_event(page, "]", 1)
        assert "?at=" in page.url
        await page.locator("#nth").press("Home")
        await expect(page.locator("#slider")).to_contain_text("After event 1 of")
        await expect(page.locator("#run-history tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="back to now").click()
        await expect(page.locator(".title .state")).to_contain_text("completed")
        await expect(page.get_by_role("button", name="Go", exact=True)).to_be_hidden()  # the script runs
        await page.keyboard.press("?")
        await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Keys").click()
        await page.get_by_role("button", name="Close").click()
        await page.keyboard.press("g")
        await page.keyboard.press("e")
        await page.wait_for_url("**/errors")


async def test_each_key_does_what_the_overlay_says(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/runs/order%2F2")
        await page.keyboard.press("?")
        told = page.locator("#help dl > div")
        keys = [" ".join(await one.locator("kbd").all_inner_texts()) for one in await told.all()]
        places = {f"g {key}": (path, words) for path, words, key in NAVIGATION if path != "/dead-letters"}  # SQLite has no inbox
        assert keys == ["/", "j k", "Enter", "[ ]", *places, "Ctrl K", "?"]
        await look_at(page, "keys", "light")
        await page.keyboard.press("g")
        await page.keyboard.press("e")
        assert page.url.endswith("/runs/order%2F2"), "keys are dead while the overlay is open"
        await page.keyboard.press("Escape")
        for keys, (path, words) in places.items():
            await page.goto("/settings")
            for key in keys.split():
                await page.keyboard.press(key)
            await page.wait_for_url(f"{url}{path}")
            await expect(page.get_by_role("navigation", name="Main").get_by_role("link", name=words)).to_have_attribute(
                "aria-current", "page"
            )
        await page.goto("/")
        await expect(page.locator("#list tbody tr")).not_to_have_count(0)
        await page.keyboard.press("Control+k")
        await expect(page.locator("#palette-text")).to_be_focused()
        await page.keyboard.press("Escape")
        await page.keyboard.press("j")
        await page.keyboard.press("j")
        second = page.locator("#list tbody tr").nth(1).locator("a.id")
        await expect(second).to_be_focused()
        await page.keyboard.press("k")
        await expect(page.locator("#list tbody tr").first.locator("a.id")).to_be_focused()
        await page.keyboard.press("j")
        opened = await second.get_attribute("href")
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{url}{opened}")
        await page.goto("/runs/order%2F2")
        await on_event(page, "[", -1)
        await on_event(page, "]", 1)
        await page.keyboard.press("/")
        await expect(page.get_by_role("searchbox", name="Run id or text")).to_be_focused()
        await page.keyboard.type("gs?")
        await expect(page.get_by_role("searchbox", name="Run id or text")).to_have_value("gs?")


async def on_event(page: Page, key: str, by: int) -> None:
    """Press the key, and see the run one event further."""
    before = int(await page.locator("#nth").input_value())
    await page.keyboard.press(key)
    await expect(page.locator("#nth")).to_have_value(str(before + by))


async def test_a_run_is_cancelled_and_a_callback_is_answered(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/runs/order%2F1")
        await page.get_by_role("button", name="Cancel the run…").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Why").fill("ordered twice")
        await dialog.get_by_role("button", name="Cancel the run").click()
        await expect(page.locator(".title .state")).to_contain_text("cancelled")
        await expect(page.locator("#run-head")).to_contain_text("ordered twice, by dashboard")
        await page.goto("/runs/partner-1")
        await page.locator("summary", has_text="Answer").click()
        form = page.locator("details", has_text="Answer")
        await form.get_by_label("Data, as JSON").fill('"ok"')
        await page.get_by_role("button", name="Complete").click()
        await expect(page.locator(".title .state")).to_contain_text("completed")


@pytest.mark.parametrize("script", [True, False])
async def test_a_refused_form_stays_with_its_words(client: Client, script: bool) -> None:
    async with (
        listening(client) as url,
        chromium() as browser,
        watched(browser, url, allowed="422", java_script_enabled=script) as page,
    ):
        await page.goto("/runs/partner-1")
        await page.locator("summary", has_text="Answer").click()
        form = page.locator("details", has_text="Answer")
        await form.get_by_label("Data, as JSON").fill("no quotes")
        await form.get_by_label("Why, for the history").fill("they called")
        await form.get_by_role("button", name="Complete").click()
        await expect(form.get_by_role("alert")).to_contain_text("A text needs its quotes")
        await expect(form.get_by_label("Data, as JSON")).to_be_focused()
        await expect(form.get_by_label("Data, as JSON")).to_have_value("no quotes")
        await expect(form.get_by_label("Why, for the history")).to_have_value("they called")
        if script:
            await look_at(page, "refused", "light")
        await form.get_by_label("Data, as JSON").fill("")
        await form.get_by_label("Or why it has failed").fill("nobody knows")
        await form.get_by_role("button", name="Fail").click()
        await page.wait_for_url("**/runs/partner-1")
        await eventually(lambda: ended(client, "partner-1"))
        answers = [event for event in await client.run("partner-1").history() if event.type == "callback-failed"]
        assert len(answers) == 1


async def ended(client: Client, run_id: str) -> bool:
    return (await client.run(run_id).status()).state == "failed"
