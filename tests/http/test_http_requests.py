"""Requests by HTTP: starts, signals, cancellations, answers to callbacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http import requests
from stepfold.http.routing import Caller, Role


@pytest.fixture
def client(tmp_path: Path) -> Client:
    client = Client(f"sqlite:///{tmp_path}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        return f"hello {ctx.input.data}"

    @client.workflow(id="count")
    async def count(ctx: Context[int], step: Step) -> int:
        return ctx.input.data

    @client.workflow(id="ask")
    async def ask(ctx: Context[str], step: Step) -> str:
        callback = await step.callback("answer", heartbeat="1h")
        tokens.append(callback.id)
        return str(await callback)

    return client


tokens: list[str] = []


@pytest.fixture
async def browser(client: Client) -> AsyncIterator[httpx.AsyncClient]:
    tokens.clear()
    async with served(client) as browser:
        yield browser


async def handed_out() -> list[str]:
    return tokens


GREET = {"workflow": "greet", "input": "Ada"}


async def test_a_start_brings_a_signal_which_counts_once(client: Client, browser: httpx.AsyncClient) -> None:
    body = {"workflow": "greet", "input": "Ada", "signal": {"name": "add", "data": {"n": 12345678901234567890}}}
    assert (await browser.put("/v1/runs/cart", json=body)).status_code == 201
    assert (await browser.put("/v1/runs/cart", json=body)).status_code == 200
    other = body | {"signal": {"name": "add", "data": 2}}
    assert (await browser.put("/v1/runs/cart", json=other)).status_code == 200
    keyed = {"Idempotency-Key": "cart-2"}
    for _ in range(2):
        assert (await browser.post("/v1/runs", json=body, headers=keyed)).is_success
    for run_id, data in (("cart", [{"n": 12345678901234567890}, 2]), ("cart-2", [{"n": 12345678901234567890}])):
        history = (await browser.get(f"/v1/runs/{run_id}/history")).json()["events"]
        assert [event["data"] for event in history if event["type"] == "signal-received"] == data


@pytest.mark.parametrize("signal", ["add", {"data": 1}, {"name": ""}, {"name": "add", "more": 1}])
async def test_a_start_with_a_signal_that_is_none_begins_nothing(browser: httpx.AsyncClient, signal: object) -> None:
    assert (await browser.put("/v1/runs/cart", json=GREET | {"signal": signal})).status_code == 422
    assert (await browser.get("/v1/runs/cart")).status_code == 404


async def test_the_same_start_again_is_the_same_run(browser: httpx.AsyncClient) -> None:
    first = await browser.put("/v1/runs/one", json=GREET | {"why": "a trial", "by": "Grace"})
    again = await browser.put("/v1/runs/one", json=GREET)
    other = await browser.put("/v1/runs/one", json=GREET | {"input": "Bob"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.headers["location"] == "/v1/runs/one"
    assert other.json()["code"] == "run-already-exists"
    assert first.headers["stepfold-position"] == again.headers["stepfold-position"]
    assert (first.json()["state"], first.json()["actions"]) == ("pending", ["cancel", "signal"])


async def test_a_start_without_an_id_makes_one(browser: httpx.AsyncClient, client: Client) -> None:
    made = await browser.post("/v1/runs", json=GREET)
    assert (made.status_code, made.headers["location"]) == (201, f"/v1/runs/{made.json()['id']}")
    other = await browser.post("/v1/runs", json=GREET)
    assert other.json()["id"] != made.json()["id"]
    keyed = await browser.post("/v1/runs", json=GREET, headers={"Idempotency-Key": '"k 1"'})
    again = await browser.post("/v1/runs", json=GREET, headers={"Idempotency-Key": "k 1"})
    changed = await browser.post("/v1/runs", json=GREET | {"input": 2}, headers={"Idempotency-Key": "k 1"})
    assert [one.status_code for one in (keyed, again, changed)] == [201, 200, 422]
    assert keyed.json()["id"] == again.json()["id"] == "k 1"
    assert changed.json()["code"] in ("idempotency-key-reused", "input-invalid")
    long = await browser.post("/v1/runs", json=GREET, headers={"Idempotency-Key": "k" * 201})
    assert long.status_code == 400


async def test_a_start_is_validated(browser: httpx.AsyncClient) -> None:
    wrong = await browser.put("/v1/runs/one", json={"workflow": "count", "input": "many"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/input")
    extra = await browser.put("/v1/runs/one", json=GREET | {"priority": 1})
    assert (extra.status_code, extra.json()["errors"][0]["pointer"]) == (422, "/priority")
    form = await browser.put("/v1/runs/one", data={"workflow": "greet"})
    assert form.status_code == 415
    bad = await browser.put("/v1/runs/@claim", json=GREET)
    assert (bad.status_code, bad.json()["code"]) == (422, "run-id-invalid")
    assert (await browser.get("/v1/runs/one")).status_code == 404


async def test_numbers_keep_their_digits(browser: httpx.AsyncClient) -> None:
    body = b'{"workflow": "elsewhere", "input": 1.000000000000000001}'
    refused = await browser.put("/v1/runs/one", content=body, headers={"content-type": "application/json"})
    assert (refused.status_code, "1.000000000000000001" in refused.json()["detail"]) == (422, True)


@pytest.mark.parametrize("run_id", ["a/b", "a b", "ü", "..", "%2e", "a%2Fb", "?", "#", "a//b", "\N{SNOWMAN}/"])
async def test_any_run_id_travels_in_a_path(browser: httpx.AsyncClient, client: Client, run_id: str) -> None:
    path = "/v1/runs/" + "".join(f"%{byte:02X}" for byte in run_id.encode())
    made = await browser.put(path, json=GREET)
    assert (made.status_code, made.json()["id"]) == (201, run_id)
    assert (await client.run(run_id).status()).workflow == "greet"
    shown = await browser.get(path)
    assert (shown.status_code, shown.json()["id"]) == (200, run_id)
    if run_id != "..":  # httpx, as browsers do, takes `..` out of a path that is not encoded
        found = await browser.get(made.headers["location"])
        assert (found.status_code, found.json()["id"]) == (200, run_id)


async def test_a_path_is_matched_before_it_is_decoded(browser: httpx.AsyncClient) -> None:
    for path in ("/v1%2Fruns/one", "/v1/%72uns/one", "/v1/runs/%FF", "/v1/runs/"):
        assert (await browser.get(path)).status_code == 404, path


async def test_a_start_can_wait_for_the_result(browser: httpx.AsyncClient, client: Client) -> None:
    async with client.worker():
        ended = await browser.put("/v1/runs/one", json=GREET, headers={"Prefer": "respond-async, wait=90"})
    assert (ended.status_code, ended.headers["preference-applied"]) == (201, "wait=60")
    assert (ended.json()["state"], ended.json()["result"]) == ("completed", "hello Ada")


async def test_a_signal_is_asked_for_once_under_its_key(browser: httpx.AsyncClient, client: Client) -> None:
    await browser.put("/v1/runs/one", json=GREET)
    key = {"Idempotency-Key": "s1"}
    body = {"data": {"ok": True}, "by": "Grace", "why": "it looks good"}
    first = await browser.post("/v1/runs/one/signals/approve%2Fit", json=body, headers=key)
    again = await browser.post("/v1/runs/one/signals/approve%2Fit", json=body, headers=key)
    other = await browser.post("/v1/runs/one/signals/approve%2Fit", json={"data": None}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json()["offset"] == again.json()["offset"]
    signals = [event.model_dump() for event in await client.run("one").history() if event.type == "signal-received"]
    assert [(one["signal"], one["data"], one["by"], one["why"]) for one in signals] == [
        ("approve/it", {"ok": True}, "Grace", "it looks good")
    ]
    missing = await browser.post("/v1/runs/two/signals/approve", json={})
    assert missing.status_code == 404


async def test_a_run_is_cancelled_only_as_it_was_seen(browser: httpx.AsyncClient) -> None:
    await browser.put("/v1/runs/one", json=GREET)
    seen = (await browser.get("/v1/runs/one")).headers["etag"]
    await browser.post("/v1/runs/one/signals/hello", json={})
    stale = await browser.post("/v1/runs/one/cancel", json={}, headers={"If-Match": seen})
    assert (stale.status_code, stale.json()["code"]) == (412, "run-moved-on")
    now = (await browser.get("/v1/runs/one")).headers["etag"]
    asked = await browser.post("/v1/runs/one/cancel", json={"why": "no longer needed"}, headers={"If-Match": now})
    assert asked.status_code == 202
    assert asked.headers["stepfold-position"] == f"{asked.json()['partition']}:{asked.json()['offset'] + 1}"
    assert "cancel" not in (await browser.get("/v1/runs/one")).json()["actions"]


async def test_a_run_that_has_ended_takes_no_request(browser: httpx.AsyncClient, client: Client) -> None:
    async with client.worker():
        await browser.put("/v1/runs/one", json=GREET, headers={"Prefer": "wait=30"})
    late = await browser.post("/v1/runs/one/signals/hello", json={})
    assert (late.status_code, late.json()["code"]) == (409, "run-ended")
    assert (await browser.post("/v1/runs/one/cancel", json={})).status_code == 409


async def test_the_id_of_a_callback_is_the_right_to_answer_it(
    client: Client, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.worker(), asyncio.timeout(30):
        await browser.put("/v1/runs/one", json={"workflow": "ask", "input": ""})
        [token] = await eventually(handed_out)
        beat = await browser.post(f"/v1/callbacks/{token}/heartbeat", json={})
        assert (beat.status_code, beat.json()["counts"]) == (202, True)
        keyed = {"Idempotency-Key": "a1"}
        answered = await browser.post(f"/v1/callbacks/{token}", json={"data": "yes"}, headers=keyed)
        again = await browser.post(f"/v1/callbacks/{token}", json={"data": "yes"}, headers=keyed)
        late = await browser.post(f"/v1/callbacks/{token}/fail", json={"message": "no"})
        assert [one.json()["counts"] for one in (answered, again, late)] == [True, True, False]
        result = await browser.get("/v1/runs/one/result", headers={"Prefer": "wait=30"})
        assert (result.status_code, result.json()["result"]) == (200, "yes")
    with caplog.at_level(logging.DEBUG, "stepfold"):
        for path in (f"/v1/callbacks/{token}x", f"/v1/callbacks/{token}/fail"):
            refused = await browser.post(path, json={"data": 1})
            assert refused.status_code >= 400
            assert token not in refused.text
    assert token not in caplog.text


async def test_a_sender_whose_name_is_known_cannot_give_another(client: Client) -> None:
    callers = {"ada": Caller("ada", frozenset({Role.OPERATE}))}
    async with served(client, authenticate=callers.get) as browser:
        browser.headers["Authorization"] = "Bearer ada"
        forged = await browser.put("/v1/runs/one", json=GREET | {"by": "Grace"})
        assert (forged.status_code, forged.json()["errors"][0]["pointer"]) == (422, "/by")
        await browser.put("/v1/runs/one", json=GREET)
        [started] = await client.run("one").history()
        assert started.model_dump()["by"] == "ada"
        del browser.headers["Authorization"]
        forged = await browser.post("/v1/callbacks/x", json={"by": "ada"})
        assert forged.status_code in (404, 422)


async def test_an_answer_to_a_callback_repeats_only_itself_under_its_key(
    browser: httpx.AsyncClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.worker():
        await browser.put("/v1/runs/one", json={"workflow": "ask", "input": ""})
        [token] = await eventually(handed_out)
        path, keyed = f"/v1/callbacks/{token}", {"Idempotency-Key": "answer"}
        with monkeypatch.context() as patched:
            patched.delattr(requests, "read_run")  # a first answer costs the same however long the history is
            first = await browser.post(path, json={"data": {"n": 1}}, headers=keyed)
        again = await browser.post(path, json={"data": {"n": 1}}, headers=keyed)
        assert [(one.status_code, one.json()["counts"]) for one in (first, again)] == [(202, True)] * 2
        for other, body in ((path, {"data": {"n": 2}}), (f"{path}/fail", {"message": "no"}), (f"{path}/heartbeat", {})):
            refused = await browser.post(other, json=body, headers=keyed)
            assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused"), other
            assert token not in refused.text
        assert (await browser.post(path, json={"data": 3})).json()["counts"] is False


async def test_a_body_is_not_unpacked(browser: httpx.AsyncClient) -> None:
    for encoding, status in (("gzip", 415), ("br, identity", 415), ("identity", 201)):
        answer = await browser.put("/v1/runs/one", json=GREET, headers={"Content-Encoding": encoding})
        assert answer.status_code == status
    assert answer.json()["id"] == "one"


async def test_a_problem_names_the_path_as_it_was_sent(browser: httpx.AsyncClient) -> None:
    for path in ("/v1/runs/a%2Fb", "/v1/runs/a%20b%3F"):
        assert (await browser.get(path)).json()["instance"] == path


async def test_of_two_answers_at_once_under_one_key_the_first_counts(browser: httpx.AsyncClient, client: Client) -> None:
    async with client.worker():
        await browser.put("/v1/runs/one", json={"workflow": "ask", "input": ""})
        [token] = await eventually(handed_out)
        keyed = {"Idempotency-Key": "answer"}
        bodies = [{"data": {"n": number}} for number in range(4)]
        answers = await asyncio.gather(*(browser.post(f"/v1/callbacks/{token}", json=body, headers=keyed) for body in bodies))
        assert sorted(one.status_code for one in answers) == [202, 422, 422, 422]
        [taken] = [body for body, one in zip(bodies, answers, strict=True) if one.status_code == 202]
        result = await browser.get("/v1/runs/one/result", headers={"Prefer": "wait=30"})
        assert result.json()["result"] == str(taken["data"])
