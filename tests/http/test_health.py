"""Probes and figures of the server."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from http_served import served
from prometheus_client.parser import text_string_to_metric_families

from stepfold import Client, Context, NonRetryable, Retry, Step, current_step
from stepfold.exposition import OTHERS
from stepfold.http import health

STRANGE = 'a "quoted" \\ workflow'


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def shop(url: str) -> Client:
    client = Client(url)

    async def flaky() -> str:
        if current_step().attempt == 1:
            raise ConnectionError("no answer")
        return "done"

    async def refuse() -> None:
        raise NonRetryable("not for sale")

    @client.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> str:
        return await step.run("pay", flaky, retry=Retry(3, backoff="1ms"))

    @client.workflow(id=STRANGE)
    async def strange(ctx: Context[int], step: Step) -> None:
        await step.run("refuse", refuse)

    return client


async def test_metrics_count_what_has_happened(tmp_path: Path) -> None:
    client = shop(f"sqlite:///{tmp_path}/log.db")
    async with served(client) as browser:
        async with client.worker():
            runs = [await client.start_workflow(one, 1) for one in ("order", "order", STRANGE)]
            await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        await client.start_workflow("order", 1)
        while True:
            answered = await browser.get("/metrics")
            found = samples(answered.text)
            lags = [value for (name, _), value in found.items() if name == "stepfold_projection_lag_records"]
            if found.get(("stepfold_runs", frozenset({("state", "pending")}))) == 1 and not any(lags):
                break
    assert answered.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"

    def value(name: str, **labels: str) -> float:
        return found[f"stepfold_{name}", frozenset(labels.items())]

    assert value("runs", state="completed") == 2
    assert value("runs", state="failed") == 1
    assert value("runs_started_total", workflow="order") == 3
    assert value("runs_completed_total", workflow="order") == 2
    assert value("steps_completed_total", workflow="order") == 2
    assert value("attempts_failed_total", workflow="order") == 2
    assert value("attempts_lost_total", workflow="order") == 0
    assert value("runs_failed_total", workflow=STRANGE) == 1
    assert value("errors_total", workflow=STRANGE, type="NonRetryable") == 2
    assert value("projection_stopped", projection="stepfold-steps", partition="0") == 0
    assert value("partition_owned", partition="0") == value("tables_lag_seconds", partition="0") == 0
    assert answered.text.count("# TYPE ") == answered.text.count("# HELP ")


async def test_made_up_workflows_cannot_take_the_labels_of_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "NAMED", 3)
    client = shop(f"sqlite:///{tmp_path}/log.db")
    async with served(client) as browser:
        for number in range(10):
            await client.start_workflow(f"made-up-{number}", 1)
        async with client.worker():
            await (await client.start_workflow("order", 1)).result()
        while ("stepfold_runs", frozenset({("state", "completed")})) not in samples((await browser.get("/metrics")).text):
            await asyncio.sleep(0)
        found = samples((await browser.get("/metrics")).text)
    of = {dict(labels)["workflow"]: value for (name, labels), value in found.items() if name == "stepfold_runs_started_total"}
    assert len(of) == 4 and of["order"] == 1 and of[OTHERS] == 8


async def test_a_server_is_ready_while_log_and_projections_are(tmp_path: Path) -> None:
    client = shop(f"sqlite:///{tmp_path}/log.db")
    database = tmp_path / "projections.db"
    async with served(client, database=f"sqlite:///{database}") as browser:
        assert (await browser.get("/healthz")).json() == {"status": "alive"}
        ready = await browser.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "log": True, "projections": True, "behind": 0})
        with sqlite3.connect(database) as connection:
            [(positions,)] = connection.execute("select name from sqlite_master where name like '%positions' and type = 'table'")
            connection.execute(f"drop table {positions}")
        while (ready := await browser.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.1)
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "log": True, "projections": False, "behind": None})
        assert (await browser.get("/healthz")).status_code == 200


async def test_metrics_say_when_the_log_does_not_answer_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(shop(f"sqlite:///{tmp_path}/log.db")) as browser:
        monkeypatch.setattr(health, "PATIENCE_S", 0)
        answered = await browser.get("/metrics")
        assert (answered.status_code, answered.json()["code"]) == (503, "log-unavailable")
        ready = await browser.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
