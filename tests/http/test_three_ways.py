"""Every action of an operator, by page, by curl and by command: the history names who did it and why."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path

import orjson
import pytest
from chromium import CHROMIUM, chromium, listening, watched
from eventually import eventually
from playwright.async_api import Page, expect
from shell import shell_in

from stepfold import Client, Context, Step
from stepfold.operations.callback import CallbackId

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here"),
]

EVENTS = {
    "start": "started",
    "signal": "signal-received",
    "cancel": "cancel-requested",
    "complete": "callback-completed",
    "fail": "callback-failed",
    "bulk": "cancel-requested",
}
"""The event of each action."""

Way = Callable[[str, str], Coroutine[None, None, None]]
"""Acts, once for an action and the id of its run. The reason that it gives is `why(run_id)`."""


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/stepfold.db")

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> None:
        await step.wait_for_signal("approval", signal="approve")

    @client.workflow(id="partner")
    async def partner(ctx: Context[str], step: Step) -> None:
        await (await step.callback("answer"))

    return client


def why(run_id: str) -> str:
    return f"the reason of {run_id}"


async def callback_of(client: Client, run_id: str) -> str:
    async def created() -> str | None:
        history = await client.run(run_id).history()
        return next((event.nonce for event in history if event.type == "callback-created"), None)

    nonce = await eventually(created)
    assert nonce is not None
    return str(CallbackId(run_id, "answer", nonce))


async def ran(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def by_curl(client: Client, url: str) -> Way:
    async def act(action: str, run_id: str) -> None:
        run = f"/v1/runs/{run_id}"
        body: dict[str, object] = {"by": "grace", "why": why(run_id)}
        put: tuple[str, ...] = ()
        if action == "start":
            path, put, body = run, ("-X", "PUT"), body | {"workflow": "order", "input": "lamp"}
        elif action == "signal":
            path, body = f"{run}/signals/approve", body | {"data": True}
        elif action == "cancel":
            path = f"{run}/cancel"
        elif action == "bulk":
            path, body = "/v1/bulk", body | {"action": "cancel", "ids": [run_id]}
        else:
            path = f"/v1/callbacks/{await callback_of(client, run_id)}{'' if action == 'complete' else '/fail'}"
            body |= {"data": 1} if action == "complete" else {"message": "no"}
        await ran("curl", "-s", "--show-error", "--fail-with-body", *put, f"{url}{path}", "--json", orjson.dumps(body).decode())

    return act


def by_command(client: Client, folder: Path) -> Way:
    async def act(action: str, run_id: str) -> None:
        said = ("--by", "ada", "--why", why(run_id))
        if action == "start":
            command = ("run", "start", "order", "--data", '"lamp"', "--run-id", run_id)
        elif action == "signal":
            command = ("run", "signal", run_id, "approve", "--data", "true")
        elif action == "cancel":
            command = ("run", "cancel", run_id)
        elif action == "bulk":
            command = ("run", "cancel", run_id, "no-such-run")
        else:
            callback = await callback_of(client, run_id)
            command = ("callback", "complete", callback) if action == "complete" else ("callback", "fail", callback, "no")
        with shell_in(folder) as shell:
            await asyncio.to_thread(shell, *command, *said)

    return act


def by_page(client: Client, page: Page) -> Way:
    async def act(action: str, run_id: str) -> None:
        if action == "start":
            await page.goto("/start?workflow=order")
            form = page.locator("main form", has=page.get_by_role("button", name="Start"))
            await form.get_by_label("input", exact=True).fill("lamp")
            await form.get_by_label("Run id").fill(run_id)
            button = "Start"
        elif action == "bulk":
            await page.goto(f"/?q={run_id}&workflow=order")
            await page.get_by_role("link", name="Cancel all that match…").click()
            form, button = page.locator("main form", has=page.get_by_label("Why")), "Cancel all that match"
        else:
            await page.goto(f"/runs/{run_id}")
            if action == "cancel":
                await page.get_by_role("button", name="Cancel the run…").click()
                form, button = page.get_by_role("dialog"), "Cancel the run"
            elif action == "signal":
                await page.locator("summary", has_text="Send a signal").click()
                form, button = page.locator("details", has_text="Send a signal"), "Send"
                await form.get_by_label("Data, as JSON").fill("true")
            else:
                await page.locator("summary", has_text="Answer").click()
                form, button = page.locator("details", has_text="Answer"), action.title()
                if action == "complete":
                    await form.get_by_label("Data, as JSON").fill("1")
                else:
                    await form.get_by_label("Or why it has failed").fill("no")
        await form.get_by_label("Why").last.fill(why(run_id))
        await form.get_by_role("button", name=button).click()

    return act


async def noted(client: Client, action: str, run_id: str) -> tuple[str | None, str | None] | None:
    """Who asked for the action and why, once the history has it."""
    for event in await client.run(run_id).history():
        if event.type == EVENTS[action]:
            fields = event.model_dump()
            return fields["by"], fields.get("why") or fields.get("reason")
    return None


async def test_each_action_by_page_curl_and_command(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with (
        client,
        client.worker(),
        listening(client) as url,
        chromium() as browser,
        watched(browser, url) as page,
    ):
        ways = {"dashboard": by_page(client, page), "grace": by_curl(client, url), "ada": by_command(client, tmp_path)}
        for who, act in ways.items():
            for action in EVENTS:
                run_id = f"{who}-{action}"
                if action != "start":
                    await client.start_workflow("partner" if action in ("complete", "fail") else "order", "", run_id=run_id)
                    await eventually(lambda run_id=run_id: waits(client, run_id))
                if action == "bulk" and who == "dashboard":
                    await page.goto(f"/?q={run_id}&workflow=order")
                    await expect(page.locator("#list tbody tr")).to_have_count(1)
                await act(action, run_id)
                found = await eventually(lambda action=action, run_id=run_id: noted(client, action, run_id))
                assert found == (who, why(run_id)), action


async def waits(client: Client, run_id: str) -> bool:
    return bool((await client.run(run_id).status()).waits)
