"""Probes and figures of the server."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest
from http_served import served

from stepfold import Client, Context, NonRetryable, Retry, Step, current_step
from stepfold.http import health
from stepfold.http.health import family

STRANGE = 'a "quoted" \\ workflow'
SAMPLE = re.compile(r'[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)+\} \d+')


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
            lines = answered.text.splitlines()
            if 'stepfold_runs{state="pending"} 1' in lines and all(
                line.endswith(" 0") for line in lines if "{projection=" in line
            ):
                break
    assert answered.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    escaped = r'workflow="a \"quoted\" \\ workflow"'
    assert {
        'stepfold_runs{state="completed"} 2',
        'stepfold_runs{state="failed"} 1',
        'stepfold_runs_started_total{workflow="order"} 3',
        'stepfold_runs_completed_total{workflow="order"} 2',
        'stepfold_steps_completed_total{workflow="order"} 2',
        'stepfold_attempts_failed_total{workflow="order"} 2',
        'stepfold_attempts_lost_total{workflow="order"} 0',
        f"stepfold_runs_failed_total{{{escaped}}} 1",
        f'stepfold_errors_total{{{escaped},type="NonRetryable"}} 2',
        'stepfold_projection_behind{projection="stepfold-runs",partition="0"} 0',
        'stepfold_projection_stopped{projection="stepfold-steps",partition="0"} 0',
    } <= set(lines)
    assert [line for line in lines if not line.startswith("# ") and not SAMPLE.fullmatch(line)] == []
    told = re.findall(r"# TYPE (\w+) (?:gauge|counter)", answered.text)
    assert len(told) == len(set(told)) == answered.text.count("# HELP ")


def test_values_of_labels_are_escaped() -> None:
    text = family("m", "gauge", "Told.", ("a", "b"), [(('x"} 9\nm{a="', "\\"), 1)])
    assert text == '# HELP m Told.\n# TYPE m gauge\nm{a="x\\"} 9\\nm{a=\\"",b="\\\\"} 1\n'


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
