"""The looks in which tests see each page, and the barriers that they look for there."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page
from repository import ROOT

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 320, "height": 700}},
    "forced": {"forced_colors": "active"},
}
SHOTS = ROOT / "build/screenshots"
"""Pictures of all pages in all looks: each run of the tests makes them anew."""


async def look_at(page: Page, name: str, look: str) -> None:
    """Hold the page that is open against WCAG and against a narrow window, and leave a picture of it."""
    found = await Axe().run(page)  # pyright: ignore[reportUnknownMemberType]  # its stub names no type for the page
    assert found.violations_count == 0, f"{name}: {found.generate_report()}"
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    await page.screenshot(path=SHOTS / f"{name}-{look}.png", full_page=True)
