"""The dashboard with much to show, and with the keyboard alone, in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from chromium import CHROMIUM, chromium, listening, watched
from eventually import eventually
from playwright.async_api import Locator, Page, expect

from stepfold import Client, Context, Step

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium"),
]
STEPS = 10_000
LARGE = 890_000


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Client]:
    client = Client(f"sqlite:///{tmp_path}/log.db?durability=normal")

    @client.workflow(id="many")
    async def many(ctx: Context[int], step: Step) -> None:
        await asyncio.gather(*(step.run(f"step-{number}", lambda: None) for number in range(ctx.input.data)))

    @client.workflow(id="large")
    async def large(ctx: Context[str], step: Step) -> str:
        return f"{len(ctx.input.data)}"

    @client.workflow(id="ask")
    async def ask(ctx: Context[str], step: Step) -> str:
        answer = await step.wait_for_signal("answer", signal="answer")
        return f"{ctx.input.data} {answer}"

    async with client:
        yield client


async def test_a_run_of_ten_thousand_steps_is_shown_in_windows(client: Client) -> None:
    async with client.worker():
        await (await client.start_workflow("many", STEPS, run_id="many")).result()
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/runs/many")
        steps = page.locator("#run-steps")
        await expect(steps).to_contain_text(f"200 of {STEPS:,}, from number {STEPS - 199:,} on")
        await expect(steps.locator("tbody tr")).to_have_count(200)
        await expect(page.locator("#history-count")).to_contain_text(f"200 of {STEPS + 2:,} events")
        await steps.get_by_role("link", name="Earlier").click()
        await expect(steps).to_contain_text(f"from number {STEPS - 399:,} on")
        await page.get_by_role("searchbox", name="Text", exact=True).fill("step-77")
        await page.locator("#history").get_by_role("button", name="Filter").click()
        await expect(page.locator("#history-count")).to_contain_text("111 match")
        await page.get_by_role("link", name="one event back").click()
        await expect(page.locator("#slider")).to_contain_text(f"After event {STEPS + 1:,} of {STEPS + 2:,}")
        await page.locator("#nth").press("Home")
        await expect(page.locator("#slider")).to_contain_text("After event 1 of")
        await page.get_by_role("link", name="compare with now").click()
        await expect(page.locator("#changes")).to_contain_text(f"200 of {STEPS:,} of {STEPS:,}")
        await page.locator("#changes").get_by_role("link", name="Later").click()
        await expect(page.locator("#changes tbody tr")).to_have_count(200)


async def test_a_large_payload_is_cut_shown_whole_and_saved(client: Client) -> None:
    async with client.worker():
        await (await client.start_workflow("large", "x" * LARGE, run_id="large")).result()
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/runs/large")
        assert len(await page.content()) < 100_000
        async with page.expect_download() as saving:
            await page.get_by_role("link", name="download the input").click()
        saved = await (await saving.value).path()
        assert saved.stat().st_size == LARGE + 2
        await page.get_by_role("link", name=f"show all {LARGE + 2:,} characters of the input").click()
        assert len(await page.locator("body").inner_text()) == LARGE + 2
        await page.goto("/history?run=large")
        assert len(await page.content()) < 100_000


async def test_a_list_of_many_runs(client: Client) -> None:
    await asyncio.gather(*(client.start_workflow("ask", "x", run_id=f"run-{number}") for number in range(2000)))
    async with listening(client) as url, chromium() as browser, watched(browser, url) as page:

        async def listed() -> bool:
            await page.goto("/?workflow=ask")
            return "2,000" in await page.locator("#counts").inner_text()

        await eventually(listed)
        await expect(page.locator("#list tbody tr")).to_have_count(50)
        await page.get_by_role("link", name="Next 50").click()
        await page.get_by_role("searchbox", name="Text", exact=True).fill("run-1234")
        await page.keyboard.press("Enter")
        await expect(page.locator("#list tbody tr")).to_have_count(1)
        await page.goto("/history")
        await expect(page.locator("#tail tbody tr")).to_have_count(200)
        await page.get_by_role("link", name="Older").click()
        await expect(page.locator("#tail tbody tr")).to_have_count(200)


async def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the control has the focus."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        if await target.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError(f"{target} is not reached by the keyboard")


async def test_a_tour_with_the_keyboard_alone(client: Client) -> None:
    async with client.worker(), listening(client) as url, chromium() as browser, watched(browser, url) as page:
        await page.goto("/")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        for key, path in (("e", "errors"), ("h", "history"), ("a", "audit"), ("w", "workers"), ("s", "start")):
            await page.keyboard.press("g")
            await page.keyboard.press(key)
            await page.wait_for_url(f"**/{path}")
        await tab_to(page, page.get_by_role("link", name="ask version 1"))
        await page.keyboard.press("Enter")
        await tab_to(page, page.get_by_label("input", exact=True))
        await page.keyboard.type("hello")
        await tab_to(page, page.locator("main").get_by_label("Run id"))
        await page.keyboard.type("tour")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/runs/tour")
        await expect(page.locator(".title .state")).to_contain_text("waiting")
        await tab_to(page, page.locator("summary", has_text="Send a signal"))
        await page.keyboard.press("Enter")
        await tab_to(page, page.get_by_label("Data, as JSON"))
        await page.keyboard.type('"world"')
        await tab_to(page, page.get_by_role("button", name="Send"))
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        await expect(page.locator(".title .state")).to_contain_text("completed")
        await page.keyboard.press("[")
        await expect(page.locator("#slider")).to_contain_text("After event")
        await tab_to(page, page.get_by_role("link", name="compare with now"))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Operations that have changed")).to_be_visible()
        await page.wait_for_load_state("load")
        await page.keyboard.press("g")
        await page.keyboard.press("r")
        await expect(page.locator("#list tbody tr").first).to_contain_text("tour")
        await page.wait_for_load_state("load")
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/runs/tour")
