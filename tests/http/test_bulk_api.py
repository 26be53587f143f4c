"""One action on many runs, by HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import Caller, Role


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> str:
        await step.wait_for_signal("go", signal="go")
        return "went"

    @client.workflow(id="other")
    async def other(ctx: Context[str], step: Step) -> None:
        await step.wait_for_signal("go", signal="go")

    return client


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    async with served(client) as browser:
        yield browser


async def begin(client: Client, browser: httpx.AsyncClient, count: int, workflow: str = "waits") -> list[str]:
    ids = [f"{workflow}-{number}" for number in range(count)]
    for run_id in ids:
        await client.start_workflow(workflow, "", run_id=run_id)
    await eventually(lambda: counted(browser, workflow, count))
    return ids


async def counted(browser: httpx.AsyncClient, workflow: str, count: int) -> bool:
    return (await browser.get("/v1/runs/count", params={"workflow": workflow})).json()["count"] == count


async def over(browser: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job, once its run has ended and the tables have what became of all its runs."""

    async def look() -> dict[str, Any]:
        job = (await browser.get(f"/v1/bulk/{job_id}")).json()
        open_ones = {"pending", "running", "waiting"} & {item["state"] for item in job["items"] if item["outcome"] == "asked"}
        return job if job["ended_at"] is not None and not open_ones else {}

    return await eventually(look)


async def asked_to_end(client: Client, run_id: str) -> list[tuple[str | None, str | None]]:
    return [(event.by, event.reason) for event in await client.run(run_id).history() if event.type == "cancel-requested"]


async def test_cancel_all_that_match(client: Client, browser: httpx.AsyncClient) -> None:
    async with client.worker():
        ids = await begin(client, browser, 4)
        [other] = await begin(client, browser, 1, "other")
        await client.run(ids[0]).signal("go")
        await client.run(ids[0]).result()
        wanted = {"action": "cancel", "filter": {"workflow": "waits"}, "why": "spring cleaning", "by": "ada"}

        async def ended() -> bool:
            return (await browser.get("/v1/runs", params={"state": "completed"})).json()["runs"] != []

        await eventually(ended)
        preview = (await browser.post("/v1/bulk", json=wanted | {"dry_run": True})).json()
        assert (preview["count"], preview["would_ask"]) == (4, 3)
        assert preview["refused"] == [{"why": "it has ended: completed", "count": 1}]
        assert {one["run_id"] for one in preview["sample"]} == set(ids)
        assert len(preview["position"]) == client.log.partitions
        assert (await browser.get("/v1/bulk")).json() == {"jobs": []}, "a preview leaves nothing"
        made = await browser.post("/v1/bulk", json=wanted)
        assert made.status_code == 202
        job = await over(browser, made.json()["id"])
        assert made.headers["location"] == f"/v1/bulk/{job['id']}"
        assert job["outcomes"] == {"asked": 3, "ended": 1, "unknown": 0, "refused": 0, "open": 0}
        assert (job["state"], job["states"]) == ("completed", {"cancelled": 3, "completed": 1})
        assert (job["by"], job["why"], job["chosen"]) == ("ada", "spring cleaning", {"workflow": "waits"})
        outcome = {item["run_id"]: (item["outcome"], item["why"], item["state"]) for item in job["items"]}
        assert outcome == {
            ids[0]: ("ended", "it had ended: completed", "completed"),
            **dict.fromkeys(ids[1:], ("asked", None, "cancelled")),
        }
        assert await asked_to_end(client, ids[1]) == [("ada", "spring cleaning")]
        assert await asked_to_end(client, other) == []
        listed = (await browser.get("/v1/bulk")).json()["jobs"]
        assert [(one["id"], one["count"]) for one in listed] == [(job["id"], 4)]


async def test_without_a_worker_the_job_is_pending_and_says_so(client: Client, browser: httpx.AsyncClient) -> None:
    ids = await begin(client, browser, 2)
    made = (await browser.post("/v1/bulk", json={"action": "cancel", "ids": [*ids, "nobody", ids[0]]})).json()
    assert (made["state"], made["count"], made["outcomes"]["open"]) == ("pending", 3, 3)
    assert made["waits"][0]["kind"] == "worker"
    assert made["waits"][0]["who"]
    aborted = await browser.request("DELETE", f"/v1/bulk/{made['id']}", params={"why": "a mistake"})
    assert aborted.status_code == 202
    async with client.worker():
        job = await over(browser, made["id"])
    assert (job["state"], job["reason"], job["outcomes"]["open"]) == ("cancelled", "a mistake", 3)
    assert [await asked_to_end(client, run_id) for run_id in ids] == [[], []]
    assert (await browser.request("DELETE", f"/v1/bulk/{made['id']}")).status_code == 202, "once more changes nothing"


async def test_the_same_key_gives_the_same_job(client: Client, browser: httpx.AsyncClient) -> None:
    [first, second] = await begin(client, browser, 2)
    key, wanted = {"Idempotency-Key": "today"}, {"action": "cancel", "filter": {"workflow": "waits"}}
    made = (await browser.post("/v1/bulk", json=wanted, headers=key)).json()
    await begin(client, browser, 3)
    again = await browser.post("/v1/bulk", json=wanted, headers=key)
    assert (again.status_code, again.json()["id"], again.json()["count"]) == (202, made["id"], 2)
    for other in ({"why": "another"}, {"filter": {"workflow": "other"}}, {"filter": None, "ids": [first]}):
        refused = await browser.post("/v1/bulk", json=wanted | other, headers=key)
        assert refused.json()["code"] in ("idempotency-key-reused", "nothing-matches"), refused.text
    assert second


async def test_pages_of_runs(client: Client, browser: httpx.AsyncClient) -> None:
    ids = await begin(client, browser, 5)
    job_id = (await browser.post("/v1/bulk", json={"action": "cancel", "ids": ids})).json()["id"]
    seen: list[str] = []
    first: int | None = 0
    while first is not None:
        page = (await browser.get(f"/v1/bulk/{job_id}", params={"first": first, "limit": 2})).json()
        seen += [item["run_id"] for item in page["items"]]
        first = page["next"]
    assert seen == ids


async def test_requests_that_are_refused(client: Client, browser: httpx.AsyncClient) -> None:
    [run_id] = await begin(client, browser, 1)
    wrongs: list[dict[str, Any]] = [
        {"action": "cancel"},
        {"action": "cancel", "filter": {}},
        {"action": "cancel", "ids": []},
        {"action": "cancel", "ids": ["@claim"]},
        {"action": "explode", "ids": ["a"]},
        {"action": "cancel", "ids": ["a"], "filter": {"workflow": "waits"}},
        {"action": "cancel", "filter": {"workflow": "waits", "everything": True}},
    ]
    for wrong in wrongs:
        refused = await browser.post("/v1/bulk", json=wrong)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid"), wrong
    nothing = await browser.post("/v1/bulk", json={"action": "cancel", "filter": {"workflow": "nobody's"}})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing-matches")
    for missing in ("nobody", run_id):
        assert (await browser.get(f"/v1/bulk/{missing}")).status_code == 404
        assert (await browser.request("DELETE", f"/v1/bulk/{missing}")).status_code == 404
    assert await asked_to_end(client, run_id) == []
    for workflow in ("@bulk", "@bulk-part", "@anything"):
        refused = await browser.put("/v1/runs/x", json={"workflow": workflow, "input": {}})
        assert (refused.status_code, refused.json()["code"]) == (422, "workflow-built-in")


async def test_a_selection_by_payload_needs_the_role_and_stays_hidden_without_it(client: Client) -> None:
    callers = {
        "look": Caller("eve", frozenset({Role.VIEW})),
        "act": Caller("ada", frozenset({Role.OPERATE})),
        "all": Caller("bob", frozenset({Role.ADMIN})),
    }
    async with served(client, authenticate=callers.get) as browser:
        who = {name: {"Authorization": f"Bearer {name}"} for name in callers}
        await client.start_workflow("waits", "canary", run_id="one")

        async def listed() -> bool:
            return (await browser.get("/v1/runs/count", headers=who["look"])).json()["count"] == 1

        await eventually(listed)
        wanted = {"action": "cancel", "filter": {"search": "canary"}}
        assert (await browser.post("/v1/bulk", json=wanted, headers=who["look"])).status_code == 403
        assert (await browser.post("/v1/bulk", json=wanted, headers=who["act"])).status_code == 403
        made = await browser.post("/v1/bulk", json=wanted, headers=who["all"])
        assert (made.status_code, made.json()["by"]) == (202, "bob")
        for name, expected in (("all", {"search": "canary"}), ("look", {"search": None})):
            job = await browser.get(f"/v1/bulk/{made.json()['id']}", headers=who[name])
            assert job.json()["chosen"] == expected
            assert ("canary" in job.text) == (name == "all")
        assert (await browser.request("DELETE", f"/v1/bulk/{made.json()['id']}", headers=who["look"])).status_code == 403
        forged = await browser.post("/v1/bulk", json={"action": "cancel", "ids": ["one"], "by": "eve"}, headers=who["act"])
        assert (forged.status_code, forged.json()["code"]) == (422, "sender-known")


async def test_the_form_that_starts_a_run_knows_no_workflow_of_stepfold(client: Client, browser: httpx.AsyncClient) -> None:
    await begin(client, browser, 1)
    await browser.post("/v1/bulk", json={"action": "cancel", "ids": ["waits-0"]})
    assert "@bulk" not in (await browser.get("/start")).text
    refused = await browser.post("/start", data={"workflow": "@bulk", "data": "{}", "form": "json"})
    assert refused.status_code == 422
    assert "stepfold&#39;s own" in refused.text
