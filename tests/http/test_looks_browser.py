"""Settings, saved views, the palette and the history of all runs in Chromium."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from chromium import CHROMIUM, chromium, listening, watched
from playwright.async_api import expect

from stepfold import Client, Context, Step

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium"),
]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Client]:
    """A client with a worker, and a run that waits."""
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> str:
        await step.run("reserve", lambda: "ok")
        return str(await step.wait_for_signal("approval", signal="approve"))

    async with client, client.worker():
        await client.start_workflow("order", "x", run_id="order/1", by="ada")
        yield client


async def test_times_are_those_of_the_browser_or_of_the_settings(client: Client) -> None:
    async with listening(client) as url, chromium() as browser:
        async with watched(browser, url, timezone_id="Asia/Tokyo") as page:
            await page.goto("/runs/order%2F1")
            await expect(page.locator("time[data-clock]").first).to_contain_text("GMT+9")
            await expect(page.locator(".foot [data-zone-name]")).to_have_text("Asia/Tokyo")
            await page.get_by_role("link", name="Settings").click()
            await expect(page.locator("main")).to_be_focused()
            await page.get_by_label("Time zone").select_option("America/New_York")
            await page.get_by_label("dark").check()
            await page.get_by_role("button", name="Save").click()
            await expect(page.get_by_role("status").first).to_contain_text("Saved")
            await expect(page.locator("time[data-clock]").first).to_contain_text("E")
            await expect(page.locator("body")).to_have_css("background-color", "rgb(20, 21, 19)")
        async with watched(browser, url, java_script_enabled=False, color_scheme="dark") as page:
            await page.goto("/settings")
            await page.get_by_label("Time zone").select_option("Asia/Tokyo")
            await page.get_by_label("light").check()
            await page.get_by_role("button", name="Save").click()
            await page.goto("/runs/order%2F1")
            await expect(page.locator("time").first).to_contain_text("JST")


async def test_a_copied_time_is_in_utc(client: Client) -> None:
    [started, *_] = await client.run("order/1").history()
    assert started.time is not None
    allowed = ["clipboard-read", "clipboard-write"]
    async with (
        listening(client) as url,
        chromium() as browser,
        watched(browser, url, timezone_id="Asia/Tokyo", permissions=allowed) as page,
    ):
        await page.goto("/runs/order%2F1")
        await expect(page.locator(".facts time").first).to_contain_text("GMT+9")
        await page.evaluate("getSelection().selectAllChildren(document.querySelector('.facts'))")
        await page.keyboard.press("Control+c")
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert f"{started.time:%Y-%m-%dT%H:%M:%S}" in copied
        assert "GMT" not in copied
        await expect(page.locator(".facts time").first).to_contain_text("GMT+9")
        await page.evaluate("""() => {
            const text = document.querySelector('.facts time').firstChild;
            getSelection().setBaseAndExtent(text, 3, text, 8);
        }""")
        await page.keyboard.press("Control+c")
        assert await page.evaluate("navigator.clipboard.readText()") == await page.locator(".facts time").first.get_attribute(
            "datetime"
        )


async def test_the_palette_goes_to_pages_runs_and_actions(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/errors")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("hist")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/history")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("order/1")
        await expect(page.get_by_role("option", name="order/1 waiting · order")).to_be_visible()
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/runs/order%2F1")
        await page.keyboard.press("Control+k")
        await page.keyboard.type("signal")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Signal")).to_be_focused()
        await page.keyboard.press("Control+k")
        await page.keyboard.type("order")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Escape")
        await expect(page.locator("#palette")).to_be_hidden()


async def test_a_view_is_saved_and_shown_first_without_script(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url, java_script_enabled=False) as page:
        await page.goto("/?state=waiting")
        await page.locator("summary", has_text="Save this view").click()
        await page.get_by_label("Name").fill("what waits")
        await page.get_by_label("show it first").check()
        await page.get_by_role("button", name="Save").click()
        await page.goto("/")
        await page.wait_for_url("**/?state=waiting")
        await expect(page.get_by_role("group", name="Saved views")).to_contain_text("what waits")
        await page.get_by_role("navigation", name="State").get_by_role("link", name="all").click()
        await page.wait_for_url("**/?state=")


async def test_the_history_of_all_runs_is_live_until_it_is_stopped(client: Client) -> None:
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/history?type=signal-received")
        await expect(page.locator("#live")).to_have_text("live")
        await client.run("order/1").signal("other", "first")
        rows = page.locator("#tail tbody tr")
        await expect(rows).to_have_count(1)
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#live")).to_be_hidden()
        await client.run("order/1").signal("other", "second")
        await page.get_by_role("button", name="Go on").click()
        await expect(rows).to_have_count(2)
        await expect(rows.first).to_contain_text("second")
        await page.get_by_role("link", name="Search from the beginning").click()
        await expect(rows).to_have_count(2)
        await page.get_by_role("button", name="Go on").click()
        await client.run("order/1").signal("other", "third")
        await expect(rows).to_have_count(3)
        await expect(page.locator("#tail-said")).to_contain_text("looked at")
