"""The forms of the pages: sent twice they count once, and a refused one stays with its content and the reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from form_fields import form_with
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role
from stepfold.log import partition_of

HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> object:
        return await step.wait_for_signal("approval", signal="approve")

    @client.workflow(id="asks")
    async def asks(ctx: Context[str], step: Step) -> object:
        await step.wait_for_callback("answer", lambda _: None)
        return await step.wait_for_signal("approval", signal="approve")

    return client


async def opened(browser: httpx.AsyncClient, run_id: str, words: str) -> str:
    """The page of a run, once it says `words`."""

    async def look() -> str:
        text = (await browser.get(f"/runs/{run_id}")).text
        return text if words in text else ""

    return await eventually(look)


async def requests(client: Client, run_id: str, type: str) -> list[dict[str, Any]]:
    return [event.model_dump() for event in await client.run(run_id).history() if event.type == type]


async def records(client: Client, run_id: str) -> int:
    return len(await client.log.find(partition_of(run_id, client.log.partitions), (run_id,)))


async def test_a_signal_that_is_sent_twice_is_one(client: Client) -> None:
    callers = {name: Caller(name, frozenset({Role.ADMIN})) for name in ("ada", "grace")}
    async with served(client, authenticate=callers.get) as browser:
        ada, grace = ({"Authorization": f"Bearer {name}"} for name in callers)
        await client.start_workflow("waits", "", run_id="one")
        browser.headers.update(ada)
        form = form_with((await browser.get("/runs/one")).text, do="signal") | {"name": "go", "data": "1"}
        both = await asyncio.gather(*(browser.post("/runs/one", data=form) for _ in range(2)))
        again = await browser.post("/runs/one", data=form)
        assert [one.status_code for one in (*both, again)] == [303] * 3
        assert len(await requests(client, "one", "signal-received")) == 1
        others = [
            browser.post("/runs/one", data=form | {"data": "2"}),
            browser.post("/runs/one", data=form, headers=grace),
            browser.post("/runs/one", data=form | {"why": "really"}),
            browser.post(
                "/runs/one", data=form_with((await browser.get("/runs/one")).text, do="signal") | {"name": "go", "data": "1"}
            ),
            browser.post("/runs/one", data=form | {"at": ""}),
        ]
        assert [(await one).status_code for one in others] == [303] * 5
        assert len(await requests(client, "one", "signal-received")) == 6


async def test_a_cancellation_that_is_sent_twice_is_one(client: Client) -> None:
    async with served(client) as browser, client.worker():
        await client.start_workflow("waits", "", run_id="one")
        form = form_with(await opened(browser, "one", "approve"), do="cancel") | {"why": "no longer needed"}
        assert (await browser.post("/runs/one", data=form)).status_code == 303
        await opened(browser, "one", "state cancelled")
        before = await records(client, "one")
        assert (await browser.post("/runs/one", data=form)).status_code == 303, "the run has ended, as this form asked"
        assert await records(client, "one") == before
        other = await browser.post("/runs/one", data=form | {"why": HOSTILE})
        assert (other.status_code, 'role="alert"' in other.text) == (409, True)
        assert form_with(other.text, do="cancel")["why"] == HOSTILE
        assert HOSTILE not in other.text


@pytest.mark.parametrize(
    ("do", "fields"), [("complete", {"data": '{"n": 1.50}'}), ("fail", {"message": "no", "why": "it is so"})]
)
async def test_an_answer_that_is_sent_twice_is_one(client: Client, do: str, fields: dict[str, str]) -> None:
    async with served(client) as browser, client.worker():
        await client.start_workflow("asks", "", run_id="one")
        form = form_with(await opened(browser, "one", "Answer <code>answer</code>"), step="answer") | fields | {"do": do}
        both = await asyncio.gather(*(browser.post("/runs/one", data=form) for _ in range(2)))
        assert [one.status_code for one in both] == [303, 303]
        assert (await browser.post("/runs/one", data=form)).status_code == 303
        assert len(await requests(client, "one", f"callback-{do.removesuffix('e')}ed")) == 1
        late = await browser.post("/runs/one", data=form | {"do": "complete", "message": "", "data": "3"})
        assert late.status_code == 409
        assert "does not wait for the answer" in late.text
        assert form_with(late.text, step="answer")["data"] == "3"


async def test_a_refused_action_stays_in_the_page(client: Client) -> None:
    async with served(client) as browser, client.worker():
        await client.start_workflow("asks", "", run_id="one")
        page = await opened(browser, "one", "Answer <code>answer</code>")
        answer, signal = form_with(page, step="answer"), form_with(page, do="signal")
        wrong: list[tuple[dict[str, str], str]] = [
            (answer | {"do": "complete", "data": "text", "why": HOSTILE}, "A text needs its quotes"),
            (answer | {"do": "complete", "data": "1", "message": "no"}, "press Fail"),
            (answer | {"do": "fail", "data": "1", "message": "no"}, "press Complete"),
            (answer | {"do": "fail", "message": " "}, "say why the callback has failed"),
            (signal | {"name": "a\nb", "data": " 1", "why": "x"}, "is not the name of a signal"),
            (signal | {"name": "go", "data": "[1,"}, "not JSON"),
            (signal | {"name": "go", "why": "y" * 10_001}, "10,000 characters"),
        ]
        for form, words in wrong:
            refused = await browser.post("/runs/one", data=form)
            assert (refused.status_code, words in refused.text) == (422, True), form
            assert "<details open>" in refused.text
            assert refused.text.count('id="refused" role="alert"') == 1
            assert HOSTILE not in refused.text
            mark = {"step": "answer"} if "step" in form else {"do": "signal"}
            kept = form_with(refused.text, **mark)
            sent = {name: value for name, value in form.items() if name not in ("do", "at") and "\n" not in value}
            assert sent.items() <= kept.items()
        assert await requests(client, "one", "signal-received") == []
        large = await browser.post("/runs/one", data=signal | {"name": "go", "data": f'"{"x" * 1_100_000}"'})
        assert (large.status_code, "<details open>" in large.text) == (413, True)
        assert (await browser.post("/runs/none", data=signal)).status_code == 404
        fixed = await browser.post("/runs/one", data=answer | {"do": "complete", "data": "1"})
        assert fixed.status_code == 303


async def test_a_start_that_is_sent_twice_is_one_run(client: Client) -> None:
    async with served(client) as browser:
        form = form_with((await browser.get("/start?workflow=elsewhere&form=json")).text, form="json") | {"workflow": "elsewhere"}
        both = await asyncio.gather(*(browser.post("/start", data=form | {"data": "1"}) for _ in range(2)))
        other = await browser.post("/start", data=form | {"data": "2"})
        assert [one.status_code for one in (*both, other)] == [303] * 3
        assert both[0].headers["location"] == both[1].headers["location"] != other.headers["location"]
        refused = await browser.post("/start", data=form | {"data": "x"})
        assert form_with(refused.text, form="json")["key"] == form["key"]


async def test_forms_of_jobs_and_projections_stay(client: Client) -> None:
    async with served(client) as browser:
        await client.start_workflow("waits", "", run_id="one")

        async def counted() -> bool:
            return (await browser.get("/v1/runs/count")).json()["count"] == 1

        await eventually(counted)
        preview = form_with((await browser.get("/bulk/new?workflow=waits")).text, workflow="waits")
        long = "y" * 10_001
        refused = await browser.post("/bulk", data=preview | {"why": long})
        assert (refused.status_code, form_with(refused.text, workflow="waits")["why"]) == (422, long)
        job = (await browser.post("/bulk", data=preview)).headers["location"]
        refused = await browser.post(job, data={"why": long})
        assert (refused.status_code, f'value="{long}"' in refused.text) == (422, True)
        before = await records(client, job.rpartition("/")[2])
        assert [(await browser.post(job, data={"why": "enough"})).status_code for _ in range(2)] == [303, 303]
        assert await records(client, job.rpartition("/")[2]) == before + 1
        under_way = await asyncio.gather(
            *(browser.post("/workers", data={"name": "stepfold-runs", "why": "x"}) for _ in range(2))
        )
        assert sorted(one.status_code for one in under_way) == [303, 409]
        [again] = [one.text for one in under_way if one.status_code == 409]
        assert ("<details open>" in again, 'value="x"' in again, "<option selected>stepfold-runs" in again) == (True, True, True)
