"""The stream of all changes: its bounds, and the records that make none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from asked import ask

from stepfold import Client, Context, Step
from stepfold.client.requests import cancel_requested
from stepfold.http import app
from stepfold.http.changes import ROWS


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> None:
        await step.wait_for_signal("go", signal="go")

    return client


async def test_the_number_of_streams_is_bounded_and_each_leaves_no_reader_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepfold.http.changes.MAX_STREAMS", 0)
    made = app(client_of(tmp_path))
    async with made.lifespan():
        refused = await ask(made, "GET", "/v1/changes")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        monkeypatch.setattr("stepfold.http.changes.MAX_STREAMS", 1)
        counts: set[int] = set()
        for _ in range(3):
            answered = await ask(made, "GET", "/v1/changes")
            assert (answered.status, answered.headers["cache-control"]) == (200, "no-store")
            assert answered.body.count(b"event: begin") == 1
            counts.add(len(asyncio.all_tasks()))
        assert len(counts) == 1


async def test_a_record_that_does_not_count_is_no_change(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    made = app(client)
    async with made.lifespan():
        first = await ask(made, "GET", "/v1/changes")
        place = first.body.split(b"id: ")[1].splitlines()[0].decode()
        run = await client.start_workflow("waits", "", run_id="one")
        await run.cancel("enough")
        status = await run.status()
        assert status.state == "pending"
        changes = await after(made, place)
        assert [change.count(b'"run_id":"one"') for change in changes] == [1], "records that are read together are one change"
        place = changes[-1].split(b"id: ")[1].splitlines()[0].decode()
        void = cancel_requested("one", "again", request="second", at=client.log.now())
        await client.log.append((await client.views.read("one")).state.partition, [void])
        assert await after(made, place) == []


async def after(made: Any, place: str) -> list[bytes]:
    """The changes behind this place."""
    answered = await ask(made, "GET", "/v1/changes", headers=[("last-event-id", place)])
    return [one for one in answered.body.replace(b"\r\n", b"\n").split(b"\n\n") if b"event: change" in one]


def test_it_is_for_whoever_may_look() -> None:
    assert [(row.role, row.streams) for row in ROWS] == [("view", True)]
