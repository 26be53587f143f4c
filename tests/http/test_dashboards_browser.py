"""A user's dashboard in Chromium: its looks, and the rows of new orders as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import CHROMIUM, chromium, listening, watched
from looks import LOOKS, look_at
from playwright.async_api import expect
from test_dashboards import Sales, client_of
from test_pages_browser import HOSTILE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium"),
]


@pytest.mark.parametrize("look", LOOKS)
async def test_a_dashboard_is_live_and_has_no_barriers(tmp_path: Path, look: str) -> None:
    client = client_of(tmp_path)
    async with (
        listening(client, projections=[Sales()]) as url,
        chromium() as browser,
        watched(browser, url, **LOOKS[look]) as page,
    ):
        await page.goto("/dashboards")
        await page.get_by_role("link", name=Sales.name).click()
        number = page.locator("#panel-0 + .value, section:has(#panel-0) .value")
        await expect(number).to_have_text("0")
        for count, item in enumerate(("lamp", HOSTILE, "chair"), 1):
            await client.start_workflow("sell", {"item": item, "cents": 250 * count}, run_id=f"sale/{count}")
            await expect(number).to_have_text(str(count))
        await look_at(page, "sales", look)
        await page.locator("summary", has_text="Numbers").click()
        await expect(page.get_by_role("cell", name="lamp").first).to_be_visible()
        await look_at(page, "sales-numbers", look)
