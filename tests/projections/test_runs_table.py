"""The table of runs says what `Run.status()` says, and can be listed, filtered and searched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import sqlalchemy as sa
from eventually import eventually
from hypothesis import HealthCheck, given, settings
from recording import log_of, records_of, used_again
from unit.test_fold_properties import BEGINNING, CHOICES, Author, Choice

from stepfold import Client, Context, NonRetryable, Retry, Run, Step
from stepfold.client.status import run_state, waiting_words
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver
from stepfold.log import Entry
from stepfold.projections import ProjectionRunner, RunRow, RunsProjection, count_runs, feed, list_runs, runner
from stepfold.projections.runs import Order


async def row_of(runner: ProjectionRunner, run_id: str) -> RunRow:
    await runner.catch_up()
    [row] = [row for row in await runner.query(list_runs, limit=1000) if row.run_id == run_id]
    return row


async def agree(runner: ProjectionRunner, run: Run[Any]) -> RunRow:
    """The row says what the status says."""
    row, status = await row_of(runner, run.id), await run.status()
    assert (row.run_id, row.workflow, row.version, row.state) == (status.id, status.workflow, status.version, status.state)
    assert (row.started_at, row.ended_at, row.waiting_on) == (status.started_at, status.ended_at, status.waiting_on)
    assert row.steps_completed == status.steps_completed
    return row


@pytest.fixture(params=["memory://", "sqlite"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    return Client(request.param if request.param != "sqlite" else f"sqlite:///{tmp_path / 'runs.db'}")


async def test_a_run_from_its_start_to_its_end(client: Client) -> None:
    tries = 0

    def flaky() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ValueError("try again")
        return "done"

    @client.workflow(id="order")
    async def order(ctx: Context[dict[str, int]], step: Step) -> dict[str, str]:
        await step.run("flaky", flaky, retry=Retry(5, backoff="1ms"))
        await step.wait_for_signal("approval", signal="approve")
        return {"answer": await step.run("last", lambda: "yes")}

    async with client, ProjectionRunner(client, [RunsProjection()]) as runner:
        async with client.worker():
            run = await client.start_workflow(order, {"n": 7}, run_id="order-7")

            async def waits() -> bool:
                return (await run.status()).waiting_on == ["signal 'approve' (step 'approval')"]

            await eventually(waits)
            row = await agree(runner, run)
            assert (row.state, row.steps_completed, row.attempts_failed) == ("waiting", 1, 2)
            assert (row.last_error, row.input, row.result) == ("ValueError: try again", '{"n":7}', None)
            await run.signal("approve")
            await run.result()
            row = await agree(runner, run)
        assert (row.state, row.steps_completed, row.attempts_failed) == ("completed", 2, 2)
        assert row.result == '{"answer":"yes"}'
        assert row.ended_at is not None and row.started_at <= row.updated_at == row.ended_at
        assert row == await row_of(runner, "order-7"), "a released claim changes nothing of a run that has ended"


async def test_other_ends(client: Client) -> None:
    def break_down() -> None:
        raise NonRetryable("out of paper")

    @client.workflow(id="fails")
    async def fails(ctx: Context[None], step: Step) -> None:
        await step.run("print", break_down)

    @client.workflow(id="waits")
    async def waits(ctx: Context[None], step: Step) -> None:
        await step.sleep("long", "1d")

    async with client, client.worker(), ProjectionRunner(client, [RunsProjection()]) as runner:
        failed, cancelled = await client.start_workflow(fails), await client.start_workflow(waits)
        with pytest.raises(Exception, match="out of paper"):
            await failed.result()
        await cancelled.cancel("not needed")
        with pytest.raises(Exception, match="not needed"):
            await cancelled.result()
        row = await agree(runner, failed)
        assert (row.state, row.last_error) == ("failed", "NonRetryable: out of paper")
        assert (await agree(runner, cancelled)).state == "cancelled"


async def test_what_depends_on_the_owner_follows_the_owner(tmp_path: Path) -> None:
    """A run waits for a worker, is running, waits for a worker again: no event of its own says so."""
    client = Client(f"sqlite:///{tmp_path / 'runs.db'}")
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        began.set()
        await go_on.wait()

    @client.workflow(id="slow")
    async def slowly(ctx: Context[None], step: Step) -> None:
        await step.run("quick", lambda: None)
        await step.run("slow", slow)

    async with client, ProjectionRunner(client, [RunsProjection()]) as runner:
        run = await client.start_workflow(slowly)
        unknown = await client.start_workflow("unknown", run_id="unknown")
        assert (await agree(runner, run)).state == "pending"
        assert (await agree(runner, unknown)).waiting_on == ["a worker"]
        async with client.worker(grace=0):
            await began.wait()
            assert (await agree(runner, run)).state == "running"
            assert (await agree(runner, run)).waiting_on == ["the result of a step"]

            async def is_unknown() -> bool:
                return (await unknown.status()).waiting_on == ["a worker that knows workflow 'unknown'"]

            await eventually(is_unknown)
            assert (await agree(runner, unknown)).state == "pending"
        row = await agree(runner, run)
        assert (row.state, row.waiting_on) == ("running", ["a worker"])
        await agree(runner, unknown)
        go_on.set()
        async with client.worker():
            await run.result()
        await agree(runner, run)


@given(CHOICES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_gives_the_rows_that_its_fold_describes(choices: list[Choice]) -> None:
    author = Author()
    author.write(BEGINNING + [choice for choice in choices if choice[0] != "newer_claim"])

    async def check() -> None:
        driver = await log_of(author.ledger.records)
        state = PartitionState()
        runs: dict[str, RunState] = {}
        failed: Counter[str] = Counter()
        for record in await records_of(driver, 0):
            change = fold(state, record)
            if change is not None and change.run is not None:
                if change.event["type"] == "started":
                    failed.pop(change.run.id, None)
                failed[change.run.id] += change.event["type"] == "step-failed"
                runs[change.run.id] = change.run
        async with ProjectionRunner(driver, [RunsProjection()]) as runner:
            await runner.catch_up()
            rows = await runner.query(list_runs, limit=1000)
        owned = state.owner is not None
        assert {row.run_id for row in rows} == set(runs)
        for row in rows:
            run = runs[row.run_id]
            assert (row.workflow, row.version, row.state) == (run.workflow, run.version, run_state(run, owned))
            assert row.waiting_on == ([] if run.ended else waiting_words(run, owned))
            assert row.steps_completed == sum(delivery.outcome == "result" for delivery in run.journal)
            assert row.attempts_failed == failed[run.id]
            assert row.input == orjson.dumps(run.input).decode()
            assert (row.result is None) == (run.phase != "completed")
        await driver.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "BATCH_RECORDS", 4)
        patch.setattr(feed, "SNAPSHOT_RECORDS", 9)
        asyncio.run(check())


async def test_texts_that_a_column_could_not_hold() -> None:
    log = MemoryDriver()
    await log.open()
    event = {"type": "started", "v": 1, "run_id": "big", "at": 1, "request": "r", "workflow": "w\0" * 150, "input": "é\0" * 3000}
    await log.append(0, [Entry("big", orjson.dumps(event))])
    async with ProjectionRunner(log, [RunsProjection()]) as runner:
        row = await row_of(runner, "big")
    assert row.workflow == "w\N{REPLACEMENT CHARACTER}" * 99 + "w…"
    assert len(row.input) == 2000 and row.input.startswith('"é\\u0000é') and row.input.endswith("…")
    await log.close()


async def test_of_an_id_that_is_used_again_the_last_run_has_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    log = await used_again()
    for batch in (1, 1000):
        monkeypatch.setattr(runner, "BATCH_RECORDS", batch)
        async with ProjectionRunner(log, [RunsProjection()]) as running:
            row = await row_of(running, "order-42")
        assert (row.state, row.input, row.result, row.last_error) == ("waiting", '{"n":2}', None, None)
        assert (row.steps_completed, row.attempts_failed, row.ended_at) == (0, 0, None)
    await log.close()


# Listing.

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def listing() -> AsyncIterator[sa.Connection]:
    """Ten runs, one a minute; every third fails."""
    now_ms = round(NOW.timestamp() * 1000)
    client = Client(driver=MemoryDriver(uuid4().hex, clock=lambda: now_ms))

    @client.workflow(id="even")
    async def even(ctx: Context[dict[str, Any]], step: Step) -> None:
        if ctx.input.data["n"] % 3 == 0:
            raise ValueError("100% of Paper_jams")

    @client.workflow(id="odd")
    async def odd(ctx: Context[dict[str, Any]], step: Step) -> str:
        if ctx.input.data["n"] % 3 == 0:
            raise KeyError("nothing")
        return "a Result"

    async with client, client.worker(), ProjectionRunner(client, [RunsProjection()]) as runner:
        for n in range(10):
            run = await client.start_workflow((even, odd)[n % 2], {"n": n, "name": f"Customer {n}"}, run_id=f"run-{n}")
            await asyncio.wait_for(asyncio.gather(run.result(), return_exceptions=True), 10)
            now_ms += 60_000
        await runner.catch_up()
        with runner.engine.connect() as connection:
            yield connection


def ids(rows: list[RunRow]) -> str:
    return "".join(row.run_id[4:] for row in rows)


def test_filters_and_search(listing: sa.Connection) -> None:
    assert ids(list_runs(listing)) == "9876543210"
    assert ids(list_runs(listing, order="oldest")) == "0123456789"
    assert ids(list_runs(listing, order="updated")) == "9876543210"
    assert ids(list_runs(listing, workflow="even")) == "86420"
    assert ids(list_runs(listing, state="failed")) == "9630"
    assert ids(list_runs(listing, state=["failed", "completed"])) == "9876543210"
    for nothing in (list_runs(listing, state=[]), list_runs(listing, state="cancelled"), list_runs(listing, workflow="eve")):
        assert nothing == []
    minute = timedelta(minutes=1)
    assert ids(list_runs(listing, started_after=NOW + 3 * minute, started_before=NOW + 6 * minute)) == "543"
    assert ids(list_runs(listing, error="paper_JAMS")) == "60"
    assert list_runs(listing, error="paperXjams") == [], "_ stands for itself"
    assert list_runs(listing, error="100x") == [], "% stands for itself"
    assert ids(list_runs(listing, error="100%")) == "60"
    assert ids(list_runs(listing, search="customer 7")) == "7"
    assert ids(list_runs(listing, search="RUN-3")) == "3"
    assert ids(list_runs(listing, search="keyerror")) == "93"
    assert ids(list_runs(listing, search="ODD", state="completed")) == "751"
    assert ids(list_runs(listing, search="a result")) == "751"
    assert ids(list_runs(listing, limit=3)) == "987"
    assert count_runs(listing) == 10
    assert count_runs(listing, workflow="odd", state="failed") == 2
    with pytest.raises(ValueError, match="2030-01-01T00:00:00 has no time zone"):
        list_runs(listing, started_after=NOW.replace(tzinfo=None))


@pytest.mark.parametrize("order", ["newest", "oldest", "updated"])
def test_pages_hold_every_run_once(listing: sa.Connection, order: Order) -> None:
    listing.execute(
        sa.text("UPDATE stepfold_runs SET started_at = 7, updated_at = 8 WHERE run_id IN ('run-3', 'run-4', 'run-5')")
    )
    whole = ids(list_runs(listing, order=order))
    pages = [list_runs(listing, order=order, limit=2)]
    while pages[-1]:
        pages.append(list_runs(listing, order=order, limit=2, after=pages[-1][-1]))
    assert "".join(map(ids, pages)) == whole and len(whole) == 10


async def test_what_runs_wait_for_can_be_listed() -> None:
    client = Client(driver=MemoryDriver())

    def fails() -> None:
        raise OSError("no answer")

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> None:
        if ctx.input.data == "signal":
            await step.wait_for_signal("approval", signal="go", timeout="1h")
        if ctx.input.data == "callback":
            await (await step.callback("review", heartbeat="10m"))
        if ctx.input.data == "backoff":
            await step.run("call", fails, retry=Retry(9, backoff="1h"))

    async with client, client.worker(), ProjectionRunner(client, [RunsProjection()]) as runner:
        for kind in ("signal", "callback", "backoff", "nothing"):
            await client.start_workflow(waits, kind, run_id=kind)

        async def waiting() -> list[RunRow]:
            await runner.catch_up()
            rows = await runner.query(list_runs, state="waiting")
            return rows if len(rows) == 3 and all(row.waiting_until is not None for row in rows) else []

        rows = {row.run_id: row for row in await eventually(waiting)}
        found = {run_id: (row.waiting_kind, row.waiting_step) for run_id, row in rows.items()}
        assert found == {"signal": ("wait", "approval"), "callback": ("callback", "review"), "backoff": ("step", "call")}
        for run_id, minutes in (("signal", 60), ("callback", 10), ("backoff", 60)):
            until = rows[run_id].waiting_until
            assert until is not None and minutes / 2 < (until - rows[run_id].started_at).total_seconds() / 60 < 1.5 * minutes
        assert [row.run_id for row in await runner.query(list_runs, waiting_kind="callback")] == ["callback"]
        assert [row.run_id for row in await runner.query(list_runs, attempts_failed=1)] == ["backoff"]
        [ended] = await runner.query(list_runs, state="completed")
        assert (ended.waiting_kind, ended.waiting_step, ended.waiting_until) == (None, None, None)


def test_sql_clients_see_the_same(listing: sa.Connection) -> None:
    query = sa.text("SELECT state, count(*), sum(ended_at - started_at) FROM stepfold_runs GROUP BY state ORDER BY state")
    assert listing.execute(query).all() == [("completed", 6, 0), ("failed", 4, 0)]
