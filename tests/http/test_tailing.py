"""The whole history: records of all partitions by their times, in pages and as a stream."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.http.guard import Caller
from stepfold.http.pages import tail
from stepfold.http.routing import Role
from stepfold.http.tailing import TailReader, before, read_positions, written
from stepfold.log import CLAIM_KEY, Entry


@pytest.mark.parametrize("most", [1, 3, 1000])
async def test_records_come_in_the_order_of_their_times_and_once(tmp_path: Path, most: int) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db")
    async with client:
        log = client.log
        for number in range(40):
            await log.append(number % 3, [Entry(f"run-{number}", b"{}")])
        seen: list[tuple[int, str]] = []
        async with TailReader(log, dict.fromkeys(range(log.partitions), 0)) as reader:
            while records := await reader.read(most):
                seen += [(one.record.timestamp, one.record.key) for one in records]
            assert [time for time, _ in seen] == sorted(time for time, _ in seen)
            assert sorted(key for _, key in seen) == sorted(f"run-{number}" for number in range(40))
            ends = dict(reader.positions)
            await log.append(1, [Entry("late", b"{}")])
            assert [one.record.key for one in await reader.read(most)] == ["late"]
        backward: list[str] = []
        until = ends
        while True:
            records, begin = await before(log, until, most)
            if not records:
                assert begin == until
                break
            backward = [one.record.key for one in records] + backward
            until = begin
        assert sorted(backward) == sorted(key for _, key in seen)
        async with TailReader(log, dict.fromkeys(range(log.partitions), 0), ends) as reader:
            keys = [one.record.key for _ in range(60) for one in await reader.read(most)]
        assert sorted(keys) == sorted(key for _, key in seen)


def test_positions_are_a_part_of_an_address() -> None:
    assert read_positions(written({0: 12, 2: 7}), 3) == {0: 12, 1: 0, 2: 7}
    for odd in ("", "x", "1", "1:x", "9:1", "0:-1", "0:1-", "0:" + "9" * 30, "²:1"):
        with pytest.raises(ValueError, match=r"place|partition"):
            read_positions(odd, 3)


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="greet")
    async def greet(ctx: Context[str], step: Step) -> str:
        return await step.run("look", lambda: f"seen {ctx.input.data}")

    @client.workflow(id="other")
    async def other(ctx: Context[str], step: Step) -> str:
        return await step.run("else", lambda: "x")

    return client


def rows(page: str) -> list[str]:
    return re.findall(r'<tr data-key="([0-9:]+)"', page)


async def test_pages_hold_each_record_once_and_filters_find_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(tmp_path)
    monkeypatch.setattr(tail, "ROWS", 10)
    async with served(client) as browser, client.worker():
        for number in range(9):
            run = await client.start_workflow(("greet", "other")[number % 2], f"data-{number}", run_id=f"run-{number}")
            await run.result()
        await eventually(lambda: all_known(browser))
        seen: list[str] = []
        path = "/history"
        while path:
            page = (await browser.get(path)).text
            seen += rows(page)
            path = link(page, "prev")
        assert len(seen) == len(set(seen))
        first = (await browser.get("/history?from=0:0")).text
        onward = rows(first)
        while path := link(first, "next"):
            first = (await browser.get(path)).text
            onward += rows(first)
        assert sorted(onward) == sorted(seen)
        assert len(seen) == sum([len(await client.run(f"run-{number}").history()) for number in range(9)])
        monkeypatch.setattr(tail, "ROWS", 200)
        assert set(re.findall(r'class="mono" href="/runs/(run-\d)\?', (await browser.get("/history?workflow=other")).text)) == {
            *("run-1", "run-3", "run-5", "run-7"),
        }
        assert len(rows((await browser.get("/history?type=started")).text)) == 9
        assert len(rows((await browser.get("/history?text=DATA-3")).text)) == 1
        assert len(rows((await browser.get("/history?run=run-3&type=step-completed")).text)) == 1
        assert "claimed" in (await browser.get("/history?type=claimed")).text
        assert "No record fits" in (await browser.get("/history?text=nowhere")).text
        for odd in ("/history?from=x", "/history?until=99:1"):
            assert (await browser.get(odd)).status_code == 422


async def all_known(browser: httpx.AsyncClient) -> bool:
    return 'data-key="run-8"' in (await browser.get("/?state=completed")).text


def link(page: str, rel: str) -> str:
    found = re.search(rf'<a href="([^"]+)" rel="{rel}"', page)
    return "" if found is None else found[1].replace("&amp;", "&")


async def test_the_stream_goes_on_from_the_last_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepfold.http.streaming.LIFE_S", 0.5)
    client = client_of(tmp_path)
    async with served(client) as browser:
        await client.start_workflow("greet", "one", run_id="run-1")
        await client.start_workflow("greet", "two", run_id="run-2")
        first = await messages(browser, "/history?from=0:0")
        assert {"run-1", "run-2"} <= set(re.findall(r"run-\d", first))
        last = re.findall(r"^id: (\S+)", first, re.MULTILINE)[-1]
        await client.start_workflow("greet", "three", run_id="run-3")
        again = await messages(browser, "/history?from=0:0", last)
        assert set(re.findall(r"run-\d", again)) == {"run-3"}
        assert CLAIM_KEY not in again
        assert (await browser.get("/history?from=x", headers={"Accept": "text/event-stream"})).status_code == 422


async def messages(browser: httpx.AsyncClient, path: str, last: str = "") -> str:
    """The messages of a stream until its life is over."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    answer = await browser.get(path, headers=headers)
    assert answer.status_code == 200
    return answer.text


async def test_a_caller_without_the_right_sees_no_payload(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    callers = {"v": Caller("vera", frozenset({Role.VIEW}))}
    async with served(client, authenticate=callers.get) as browser, client.worker():
        run = await client.start_workflow("greet", "canary", run_id="one", by="ada")
        await run.result()
        browser.headers["Authorization"] = "Bearer v"
        page = (await browser.get("/history")).text
        assert ("by ada" in page, "canary" in page) == (True, False)
        assert rows((await browser.get("/history?text=canary")).text) == []
