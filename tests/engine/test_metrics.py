"""The figures of a worker for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepfold import Client, ConfigError, Context, NonRetryable, Retry, Step, Worker, current_step
from stepfold.drivers import MemoryDriver
from stepfold.exposition import OTHERS, exposed
from stepfold.worker import metrics as of_worker
from stepfold.worker.metrics import Address, Metrics

Labels = frozenset[tuple[str, str]]


def samples(text: str) -> dict[tuple[str, Labels], float]:
    """The values of a page, by name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(text: str, name: str, **labels: str) -> float:
    """A sample's value; 0 for a counter that has counted nothing yet."""
    return samples(text).get((f"stepfold_worker_{name}", frozenset(labels.items())), 0.0)


@asynccontextmanager
async def measured(client: Client, caplog: pytest.LogCaptureFixture) -> AsyncGenerator[tuple[Worker, str]]:
    """A worker, and the address of its metrics."""
    caplog.set_level(logging.INFO, "stepfold.worker")
    async with client, client.worker(metrics="0") as worker:
        [at] = [found for one in caplog.messages if (found := re.search(r"metrics at (http://\S+)", one))]
        caplog.clear()
        while not worker.owners or not worker.caught_up:
            await asyncio.sleep(0)
        yield worker, at[1]


async def scraped(at: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(at, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/plain")
            return answer.read().decode()

    return await asyncio.to_thread(get)


def shop(client: Client) -> Client:
    async def flaky() -> str:
        if current_step().attempt == 1:
            raise ConnectionError("no answer")
        return "done"

    async def refuse() -> None:
        raise NonRetryable("not for sale")

    @client.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> str:
        return await step.run("pay", flaky, retry=Retry(3, backoff="1ms"))

    @client.workflow(id='a "strange" \\ one')
    async def strange(ctx: Context[int], step: Step) -> None:
        await step.run("refuse", refuse)

    @client.workflow(id="sleeper")
    async def sleeper(ctx: Context[int], step: Step) -> None:
        await step.sleep("long", "30d")

    return client


async def test_a_worker_counts_what_it_has_folded(caplog: pytest.LogCaptureFixture) -> None:
    client = shop(Client(driver=MemoryDriver()))
    async with measured(client, caplog) as (_, at):
        runs = [await client.start_workflow(one, 1) for one in ("order", "order", 'a "strange" \\ one')]
        await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        await client.start_workflow("sleeper", 1)
        while value(text := await scraped(at), "timers", partition="0") == 0:
            await asyncio.sleep(0)
    assert value(text, "runs_started_total", workflow="order") == 2
    assert value(text, "runs_ended_total", workflow="order", outcome="completed") == 2
    assert value(text, "runs_ended_total", workflow='a "strange" \\ one', outcome="failed") == 1
    assert value(text, "attempts_ended_total", workflow="order", outcome="failed") == 2
    assert value(text, "attempts_ended_total", workflow="order", outcome="completed") == 2
    assert value(text, "steps_ended_total", workflow="order", outcome="failed") == 0
    assert value(text, "steps_ended_total", workflow='a "strange" \\ one', outcome="failed") == 1
    assert value(text, "run_duration_seconds_count", workflow="order") == 2
    assert value(text, "attempt_duration_seconds_count", workflow="order") == 4
    assert value(text, "attempt_queue_seconds_bucket", workflow="order", le="+Inf") == 4
    assert value(text, "responding") == value(text, "partition_caught_up", partition="0") == value(text, "claims_total") == 1
    assert value(text, "lag_records", partition="0") == value(text, "lag_seconds", partition="0") == 0
    assert value(text, "open_runs", partition="0") == value(text, "timers", partition="0") == 1
    assert value(text, "timer_late_seconds", partition="0") == 0
    assert "no answer" not in text and "not for sale" not in text


async def test_workflows_that_the_worker_does_not_know_have_one_label(caplog: pytest.LogCaptureFixture) -> None:
    client = shop(Client(driver=MemoryDriver()))
    async with measured(client, caplog) as (worker, at):
        for number in range(30):
            await client.start_workflow(f"made-up-{number}", 1)
        while value(text := await scraped(at), "runs_started_total", workflow=OTHERS) < 30:
            await asyncio.sleep(0)
        assert "made-up" not in text
        assert worker.observer is not None


async def test_two_workers_of_one_process_count_apart(caplog: pytest.LogCaptureFixture) -> None:
    one, two = shop(Client(driver=MemoryDriver())), shop(Client(driver=MemoryDriver()))
    async with measured(one, caplog) as (_, first), measured(two, caplog) as (_, second):
        await (await one.start_workflow("order", 1)).result()
        assert value(await scraped(first), "runs_started_total", workflow="order") == 1
        assert "workflow=" not in await scraped(second)


async def test_the_server_ends_with_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async with measured(shop(Client(driver=MemoryDriver())), caplog) as (_, at):
        await scraped(at)
    with pytest.raises(OSError, match="refused"):
        await scraped(at)


async def test_a_worker_whose_loop_is_held_up_still_answers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_worker, "PATIENCE_S", 0.01)
    client = shop(Client(driver=MemoryDriver()))
    async with measured(client, caplog) as (_, at):
        await (await client.start_workflow("order", 1)).result()
        scraping = asyncio.create_task(scraped(at))
        while not scraping.done():
            await asyncio.sleep(0)
            time.sleep(0.05)  # noqa: ASYNC251  # the loop is held up on purpose
        text = scraping.result()
    assert value(text, "responding") == 0
    assert value(text, "runs_started_total", workflow="order") == 1
    assert "partition=" not in text


async def test_a_failing_observer_changes_nothing_but_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(Metrics, "folded", fail)
    client = shop(Client(driver=MemoryDriver()))
    async with measured(client, caplog):
        assert await (await client.start_workflow("order", 1)).result() == "done"
        assert await (await client.start_workflow("order", 1)).result() == "done"
    assert [one for one in caplog.messages if "broken" in one] == ["Metrics has failed, which is said once: ValueError: broken"]


async def test_lag_is_that_of_the_first_record_that_is_not_folded(tmp_path: Path) -> None:
    client = shop(Client(f"sqlite:///{tmp_path}/log.db"))
    async with client, client.worker() as worker:
        while not worker.owners or not worker.caught_up:
            await asyncio.sleep(0)
        owner = worker.served[0]
        figures = owner.figures()
        assert figures is not None
        behind = await of_worker.behind_of(client.log, figures._replace(offset=0))
        assert behind is not None and behind.records == figures.offset and behind.seconds >= 0
        assert await of_worker.behind_of(client.log, figures) == (0, 0.0)


def test_metrics_without_a_worker_show_zeros() -> None:
    text = exposed([*Metrics(lambda workflow: True).collect()]).decode()
    assert value(text, "responding") == value(text, "attempts_places") == 0


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:9464", ("::1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert Address.parse(text) == parsed


@pytest.mark.parametrize("text", ["", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "a:٣"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="PORT"):
        Address.parse(text)


async def test_a_port_that_is_taken_is_refused() -> None:
    client = shop(Client(driver=MemoryDriver()))
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, client:
        with pytest.raises(ConfigError, match="cannot listen"):
            async with client.worker(metrics=str(port)):
                pass
