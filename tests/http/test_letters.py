"""Dead letters by the API and on their page: on a log without an inbox, and on a real Kafka."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from chromium import CHROMIUM, chromium, listening, watched
from eventually import eventually
from form_fields import form_with
from http_served import served
from looks import LOOKS, look_at
from playwright.async_api import Page

from stepfold import Client, Context, RunNotFound, Step
from stepfold.drivers.kafka import KafkaDriver
from stepfold.http.guard import Caller
from stepfold.http.routing import Role

HOSTILE = "<img src=x onerror=alert(1)>"


async def test_a_log_without_an_inbox_says_so(tmp_path: Path) -> None:
    async with served(Client(f"sqlite:///{tmp_path}/log.db")) as browser:
        assert (await browser.get("/v1/dead-letters")).json() == {"inbox": False, "letters": []}
        for verb, body in (("redrive", {}), ("drop", {"places": ["a/0/1"]})):
            refused = await browser.post(f"/v1/dead-letters/{verb}", json=body)
            assert (refused.status_code, refused.json()["code"]) == (409, "no-inbox")
        page = await browser.get("/dead-letters")
        assert (page.status_code, "This log has no inbox" in page.text) == (200, True)
        assert ">Dead letters</a>" not in page.text


@pytest.mark.kafka
async def test_requests_are_sent_again_edited_and_dropped(kafka_bootstrap: str) -> None:
    driver = KafkaDriver(kafka_bootstrap, f"letters-{uuid4().hex[:12]}")
    await driver.create_topics(1, 1)
    client = Client(driver=driver)

    @client.workflow(id="greet")
    async def greet(ctx: Context[dict[str, int]], step: Step) -> int:
        return ctx.input.data["n"]

    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    async with client, client.worker():
        for number in range(3):
            request = {"type": "start", "workflow": "greet", "run_id": f"run-{number}", "data": {"n": HOSTILE}}
            await producer.send_and_wait(driver.namespace.inbox, orjson.dumps(request), partition=0)  # pyright: ignore[reportUnknownMemberType]  # aiokafka ships no types
        await producer.stop()
        callers = {
            "v": Caller("vera", frozenset({Role.VIEW})),
            "o": Caller("olga", frozenset({Role.OPERATE, Role.PAYLOAD})),
        }
        async with served(client, authenticate=callers.get) as browser:
            browser.headers["Authorization"] = "Bearer o"

            async def letters() -> list[dict[str, Any]]:
                found = (await browser.get("/v1/dead-letters")).json()["letters"]
                return found if len(found) == 3 else []

            third, second, first = await eventually(letters)
            assert [one["state"] for one in (third, second, first)] == ["waiting"] * 3
            assert "run-0" in first["value"]
            assert first["reason"]
            page = (await browser.get("/dead-letters", params={"place": first["place"]})).text
            assert ">Dead letters</a>" in page
            assert HOSTILE not in page
            assert "&lt;img src=x" in page

            edited = first["value"].replace(f'"{HOSTILE}"', "7")
            wrong = {"places": [first["place"], second["place"]], "value": edited}
            assert (await browser.post("/v1/dead-letters/redrive", json=wrong)).status_code == 422
            done = await browser.post(
                "/v1/dead-letters/redrive", json={"places": [first["place"]], "value": edited, "why": "a typo"}
            )
            assert done.json() == {"sent": 1, "refused": {}}
            assert await eventually(lambda: ended(client, "run-0")) == 7
            dropped = await browser.post("/dead-letters", data={"do": "drop", "place": second["place"], "why": "a test"})
            assert dropped.status_code == 303
            assert (await browser.post("/dead-letters", data={"do": "drop"})).status_code == 422
            twice = {"do": "drop", "place": second["place"], "state": "waiting", "value": "edited", "why": "once more"}
            refused = await browser.post("/dead-letters", data=twice)
            assert (refused.status_code, "it is dropped by now, by olga" in refused.text) == (409, True)
            kept = form_with(refused.text, place=second["place"])
            assert (kept["value"], kept["why"], kept["state"]) == ("edited", "once more", "dropped")
            unknown = await browser.post("/dead-letters", data={"do": "drop", "place": "nowhere/0/1"})
            assert (unknown.status_code, 'role="alert"' in unknown.text) == (409, True)
            found = {one["place"]: one for one in await letters()}
            assert [found[one["place"]]["state"] for one in (first, second, third)] == ["sent again", "dropped", "waiting"]
            said = [(found[one["place"]]["by"], found[one["place"]]["why"]) for one in (first, second)]
            assert said == [("olga", "a typo"), ("olga", "a test")]
            assert (await browser.post("/v1/dead-letters/drop", json={"places": ["nowhere/0/1"]})).json()[
                "code"
            ] == "letter-unknown"

            browser.headers["Authorization"] = "Bearer v"
            seen = (await browser.get("/v1/dead-letters")).text + (await browser.get("/dead-letters")).text
            assert "img src" not in seen
            assert "run-0" not in seen
            assert (await browser.post("/v1/dead-letters/redrive", json={})).status_code == 403
            browser.headers["Authorization"] = "Bearer o"
            again = await browser.post("/dead-letters", data={"do": "redrive"})  # the dropped one stays out
            assert again.headers["location"] == "/dead-letters?sent=1"


@pytest.mark.kafka
@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no Chromium here: install the package chromium")
async def test_the_page_of_letters_has_no_barriers(kafka_bootstrap: str) -> None:
    driver = KafkaDriver(kafka_bootstrap, f"letters-{uuid4().hex[:12]}")
    await driver.create_topics(1, 1)
    client = Client(driver=driver)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    async with client, client.worker():
        for text in (HOSTILE, "not JSON", "no more"):
            await producer.send_and_wait(driver.namespace.inbox, text.encode(), partition=0)  # pyright: ignore[reportUnknownMemberType]  # aiokafka ships no types
        await producer.stop()
        async with listening(client) as url, chromium() as browser:
            for look, options in LOOKS.items():
                async with watched(browser, url, **options) as page:

                    async def listed(page: Page = page) -> bool:
                        await page.goto("/dead-letters")
                        return await page.locator("tbody tr").count() == 3

                    await eventually(listed)
                    await look_at(page, "letters", look)
                    await page.keyboard.press("g")
                    await page.keyboard.press("l")
                    await page.wait_for_url("**/dead-letters")
                    await page.locator("tbody a.id").last.click()
                    await page.wait_for_url("**place=**")
                    await look_at(page, "letter", look)


async def ended(client: Client, run_id: str) -> Any:
    with contextlib.suppress(RunNotFound):
        return await result_of(client, run_id)


async def result_of(client: Client, run_id: str) -> Any:
    status = await client.run(run_id).status()
    return status.result if status.state == "completed" else None
