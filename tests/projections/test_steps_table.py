"""The tables of operations, errors and minutes say what the story of each run says."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from eventually import eventually
from hypothesis import HealthCheck, example, given, settings
from recording import log_of, records_of, used_again
from unit.test_fold_properties import BEGINNING, CHOICES, Author, Choice

from stepfold import Client, Context, Retry, Step
from stepfold.client.story import story
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver
from stepfold.errors import ErrorInfo
from stepfold.events import Event, parse
from stepfold.log import Log
from stepfold.operations.line import Line
from stepfold.projections import ProjectionRunner, StepRow, StepsProjection, feed, list_errors, list_minutes, list_steps, runner
from stepfold.projections.steps import bucket_of, fingerprint, likeness, middle_ms, minutes, percentile, step_name, workflows
from stepfold.values.times import utc


async def told(log: Log) -> tuple[dict[str, list[Line]], Counter[str], int]:
    """By the fold, from the beginning of partition 0: the story of each run's last use, the types of accepted events, and how
    many of them hold an error.
    """
    state, runs, events = PartitionState(), dict[str, RunState](), dict[str, list[Event]]()
    types, errors = Counter[str](), 0
    for record in await records_of(log, 0):
        change = fold(state, record)
        if change is None or change.run is None:
            continue
        run, kind = change.run, change.event["type"]
        if kind == "started":
            events[run.id] = []
        runs[run.id] = run
        events[run.id].append(parse(change.event, record.offset, run.now))
        types[kind] += 1
        errors += "error" in type(events[run.id][-1]).model_fields
    return {run_id: story(run, events[run_id]) for run_id, run in runs.items()}, types, errors


def agree(line: Line, row: StepRow) -> None:
    assert (row.step_id, row.kind, row.state, row.lost) == (line.step_id, line.kind, line.became, line.lost)
    assert row.attempts in (line.attempts, line.attempts + 1), "the last attempt may run"
    if line.kind == "step" and line.became in ("done", "failed"):
        assert row.attempts == line.attempts
    assert (row.ended_at is None) == (line.became == "open")
    if line.points:
        assert row.began_at <= utc(line.points[0][0])
    if line.became == "failed":
        assert row.last_error == str(line.error)
    if row.last_error is not None:
        assert row.fingerprint is not None


def sums_of_workflows(connection: sa.Connection) -> list[list[Any]]:
    """First and last minute and the sums of each workflow: by its minutes, and as they are kept."""
    names = [column.name for column in minutes.c if not column.primary_key]
    found: list[list[Any]] = []
    for table, first, last in ((minutes, "minute", "minute"), (workflows, "first_minute", "last_minute")):
        span = sa.func.min(table.c[first]), sa.func.max(table.c[last])
        query = sa.select(table.c.workflow, *span, *(sa.func.sum(table.c[name]) for name in names))
        found.append([tuple(row) for row in connection.execute(query.group_by("workflow").order_by("workflow"))])
    return found


CHECKED = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@CHECKED
@given(CHOICES)
@example([("wait", 0, 0), ("signal", 0, 0), ("let_go", 0, 0)])
@example([("wait", 0, 0), ("time", 0, 0), ("signal", 0, 0), ("time", 0, 0), ("let_go", 0, 0)])
def test_any_history_gives_the_rows_that_its_story_describes(choices: list[Choice]) -> None:
    author = Author()
    author.write(BEGINNING + [choice for choice in choices if choice[0] != "newer_claim"])

    async def check() -> None:
        driver = await log_of(author.ledger.records)
        stories, types, errors = await told(driver)
        async with ProjectionRunner(driver, [StepsProjection()]) as running:
            await running.catch_up()
            for run_id, lines in stories.items():
                rows = {row.step_id: row for row in await running.query(list_steps, run_id, limit=1000)}
                assert rows.keys() == {line.step_id for line in lines}
                for line in lines:
                    agree(line, rows[line.step_id])
            assert sum(group.count for group in await running.query(list_errors, limit=1000)) == errors
            counted = await running.query(list_minutes, after=utc(0), before=utc(driver.now() + 1))
            of_minutes, of_workflows = await running.query(sums_of_workflows)
            assert of_minutes == of_workflows
        for name in ("started", "completed", "failed", "cancelled"):
            assert sum(getattr(minute, name) for minute in counted) == types[name]
        assert sum(minute.steps_completed for minute in counted) == types["step-completed"]
        assert sum(minute.attempts_lost for minute in counted) == types["attempt-lost"]
        await driver.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "BATCH_RECORDS", 4)
        patch.setattr(feed, "SNAPSHOT_RECORDS", 9)
        asyncio.run(check())


async def test_of_an_id_that_is_used_again_the_last_run_has_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    log = await used_again()
    for batch in (1, 1000):
        monkeypatch.setattr(runner, "BATCH_RECORDS", batch)
        async with ProjectionRunner(log, [StepsProjection()]) as running:
            await running.catch_up()
            [row] = await running.query(list_steps, "order-42")
            [group] = await running.query(list_errors)
        assert (row.step_id, row.kind, row.state) == ("b", "sleep", "open")
        assert row.until is not None and row.ended_at is None
        assert (group.type, group.count, group.step) == ("E", 1, "a"), "errors are counted for ever"
    await log.close()


async def test_an_order_that_fails_and_waits() -> None:
    client = Client(driver=MemoryDriver())

    def charge(card: str) -> None:
        raise OSError(f"card {card} of 'Ada' declined at 12:31")

    @client.workflow(id="order")
    async def order(ctx: Context[int], step: Step) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.wait_for_signal("approval", signal="go", timeout="1h"))
            async with step.scope(f"line-{ctx.input.data}") as line:
                await line.run("charge", charge, f"4711-{ctx.input.data}", retry=Retry(2, backoff=0))

    async with client, ProjectionRunner(client, [StepsProjection()]) as running, client.worker():
        runs = [await client.start_workflow(order, number, run_id=f"order-{number}") for number in range(3)]

        async def over() -> bool:
            return all([(await run.status()).state == "failed" for run in runs])

        await eventually(over)
        await running.catch_up()
        rows = await running.query(list_steps, "order-2")
        assert {(row.step_id, row.kind, row.state, row.attempts) for row in rows} == {
            ("approval", "wait", "dropped", 0),
            ("line-2/charge", "step", "failed", 2),
        }
        groups = {(group.step, group.count): group for group in await running.query(list_errors, workflow="order")}
        charges = groups["line-*/charge", 6]
        assert charges.likeness == "card * of * declined at *:*" and charges.last_run_id in {run.id for run in runs}
        assert charges.sample.endswith(" of 'Ada' declined at 12:31")
        assert await running.query(list_errors, after=datetime.now(UTC) + timedelta(minutes=1)) == []
        assert await running.query(list_errors, workflow="another") == []
        span: dict[str, Any] = {"after": datetime.now(UTC) - timedelta(hours=1), "before": datetime.now(UTC) + timedelta(hours=1)}
        counted = await running.query(list_minutes, workflow="order", **span)
        assert (sum(one.started for one in counted), sum(one.failed for one in counted)) == (3, 3)
        assert sum(one.attempts_failed for one in counted) == 6
        assert all(one.p50_ms is not None and one.p50_ms <= (one.p99_ms or 0) for one in counted if one.failed)
        assert await running.query(list_minutes, workflow="another", **span) == []


async def test_steps_in_pages() -> None:
    client = Client(driver=MemoryDriver())

    @client.workflow(id="many")
    async def many(ctx: Context[None], step: Step) -> None:
        for _ in range(7):
            await step.run("s", asyncio.sleep, 0)

    async with client, ProjectionRunner(client, [StepsProjection()]) as running, client.worker():
        run = await client.start_workflow(many, None)
        await run.result()
        await running.catch_up()
        pages: list[list[StepRow]] = [await running.query(list_steps, run.id, limit=3)]
        while pages[-1]:
            pages.append(await running.query(list_steps, run.id, limit=3, after=pages[-1][-1].step_id))
        assert [len(page) for page in pages] == [3, 3, 1, 0]
        assert len({row.step_id for page in pages for row in page}) == 7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 17 has no line 3", "order 18 has no line 4"),
        ("no user 'ada'", "no user 'bob'"),
        ("trace 5f0c7f4e-1111-4222-8333-444455556666 is lost", "trace 00000000-0000-4000-8000-000000000000 is lost"),
        ("object at 0x7f8a1c9d", "object at 0x11aa22bb"),
        ("first line\nat 1", "first line\nand more"),
        ("run order-0a1b2c failed", "run order-99ff00 failed"),
    ],
)
def test_messages_that_are_alike(one: str, other: str) -> None:
    assert likeness(one) == likeness(other)
    assert fingerprint("w", "a#2", ErrorInfo("E", one)) == fingerprint("w", "a", ErrorInfo("E", other))


def test_messages_and_steps_that_are_not_alike() -> None:
    assert likeness("disk is full") != likeness("disk is slow")
    assert fingerprint("w", "a", ErrorInfo("E", "m")) != fingerprint("w", "b", ErrorInfo("E", "m"))
    assert fingerprint("w", "a", ErrorInfo("E", "m")) != fingerprint("w", None, ErrorInfo("E", "m"))
    assert (step_name("line-7/charge#3"), step_name(None)) == ("line-*/charge", "")
    assert len(likeness("x" * 5000)) == 300


def test_percentiles_are_right_to_a_twentieth() -> None:
    times = [round(1.07**n) for n in range(1, 200)]
    buckets = sorted(Counter(map(bucket_of, times)).items())
    for share in (0.5, 0.95, 0.99):
        exact = sorted(times)[round(share * len(times)) - 1]
        found = percentile(buckets, share)
        assert found is not None and abs(found - exact) <= max(0.1 * exact, 1)
    assert percentile([], 0.5) is None
    assert (bucket_of(0), middle_ms(0)) == (0, 0.0)
