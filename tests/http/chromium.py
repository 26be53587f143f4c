"""A real server and a real browser: what pages do there, and nothing that they should not do."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator
from typing import Any

from playwright.async_api import Browser, Page, Route, async_playwright

from stepfold import Client
from stepfold.cli.web import address, bound, serve_http
from stepfold.http import app

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@contextlib.asynccontextmanager
async def listening(client: Client, **options: Any) -> AsyncGenerator[str]:
    """The URL of a server of the client's log."""
    listens = bound("127.0.0.1", 0)
    serving = asyncio.create_task(serve_http(app(client, **options), listens))
    try:
        yield address(listens)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listens.close()


@contextlib.asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def watched(browser: Browser, url: str, *, allowed: str | None = None, **options: Any) -> AsyncGenerator[Page]:
    """A page, at whose end nothing was in the console, no dialog came up and no other server was asked. `allowed`: the status of
    a page that is refused, which Chromium notes in the console."""
    context = await browser.new_context(base_url=url, **options)
    page = await context.new_page()
    page.set_default_timeout(20_000)
    seen: list[str] = []

    async def ask(route: Route) -> None:
        if not route.request.url.startswith(f"{url}/"):
            seen.append(f"request: {route.request.url}")
        await route.continue_()

    await context.route("**/*", ask)
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
    try:
        yield page
    finally:
        await context.close()
    noted = f"console: Failed to load resource: the server responded with a status of {allowed}"
    seen = [one for one in seen if allowed is None or not one.startswith(noted)]
    assert not seen, seen
