"""The route of the workflows that have runs: counts, rates and durations, from the projections' counts by minute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from pydantic import BaseModel

from stepfold.projections.runs import runs
from stepfold.projections.steps import MINUTE_MS, durations, minutes, percentile, workflows

from ..values.times import utc
from .headers import POSITION, reach
from .routing import Answer, HttpCall, Role, Row

MINUTES = 60
"""Rates and durations are those of this many last minutes."""
MOST = 200
VERSIONS_OF = 500
"""The versions of a workflow are those of this many newest runs."""
_TOTALS = ("started", "completed", "failed", "cancelled")


class WorkflowNow(BaseModel):
    """A workflow that has runs. `open` to `cancelled` count all time; rates and durations are those of the last hour.

    `versions`: those of its newest runs. `…_by_minute`: 60 counts, the oldest first; the last minute is not over. `run_p50_ms`,
    `run_p95_ms`: how long the ended runs took; `queue_…`: how long attempts waited for a slot. Null if there were none.
    """

    workflow: str
    versions: list[str]
    open: int
    started: int
    completed: int
    failed: int
    cancelled: int
    started_by_minute: list[int]
    ended_by_minute: list[int]
    failed_by_minute: list[int]
    run_p50_ms: float | None
    run_p95_ms: float | None
    queue_p50_ms: float | None
    queue_p95_ms: float | None


class WorkflowsNow(BaseModel):
    """Workflows, those with the newest events first. `more`: there are others. `until`: the log's time of this answer."""

    workflows: list[WorkflowNow]
    more: bool
    until: datetime


def list_workflows(connection: sa.Connection, now_ms: int) -> tuple[list[WorkflowNow], bool]:
    """The workflows with the newest events first, and whether there are more than `MOST`. `now_ms`: the log's time."""
    sums = [sa.func.sum(workflows.c[name]).label(name) for name in _TOTALS]
    newest = sa.select(workflows.c.workflow, *sums).group_by(workflows.c.workflow)
    newest = newest.order_by(sa.func.max(workflows.c.last_minute).desc(), workflows.c.workflow).limit(MOST + 1)
    totals = connection.execute(newest).mappings().all()
    of = [str(row["workflow"]) for row in totals[:MOST]]
    since = now_ms // MINUTE_MS * MINUTE_MS - (MINUTES - 1) * MINUTE_MS
    rates, took = _rates(connection, of, since), _took(connection, of, since)
    found = [_figures(row, _versions(connection, row["workflow"]), rates[row["workflow"]], took) for row in totals[:MOST]]
    return found, len(totals) > MOST


def _figures(
    row: sa.RowMapping, versions: list[str], rates: Sequence[list[int]], took: Mapping[tuple[str, str], list[tuple[int, int]]]
) -> WorkflowNow:
    workflow = str(row["workflow"])
    started, completed, failed, cancelled = (int(row[name]) for name in _TOTALS)
    run, queue = (took.get((workflow, measure), []) for measure in ("run", "queue"))
    return WorkflowNow(
        workflow=workflow,
        versions=versions,
        open=max(started - completed - failed - cancelled, 0),
        started=started,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        started_by_minute=rates[0],
        ended_by_minute=rates[1],
        failed_by_minute=rates[2],
        run_p50_ms=percentile(run, 0.5),
        run_p95_ms=percentile(run, 0.95),
        queue_p50_ms=percentile(queue, 0.5),
        queue_p95_ms=percentile(queue, 0.95),
    )


def _versions(connection: sa.Connection, workflow: str) -> list[str]:
    newest = sa.select(runs.c.version).where(runs.c.workflow == workflow).order_by(runs.c.started_at.desc()).limit(VERSIONS_OF)
    found = connection.execute(sa.select(newest.subquery().c.version).distinct())
    return sorted(version for (version,) in found if version is not None)


def _rates(connection: sa.Connection, of: Sequence[str], since: int) -> Mapping[str, list[list[int]]]:
    """By workflow: the counts of starts, ends and failures, 60 minutes each."""
    rates: defaultdict[str, list[list[int]]] = defaultdict(lambda: [[0] * MINUTES for _ in range(3)])
    sums = [sa.func.sum(minutes.c[name]).label(name) for name in _TOTALS]
    query = sa.select(minutes.c.workflow, minutes.c.minute, *sums).where(minutes.c.minute >= since, minutes.c.workflow.in_(of))
    for row in connection.execute(query.group_by(minutes.c.workflow, minutes.c.minute)).mappings():
        place = (int(row["minute"]) - since) // MINUTE_MS
        if place < MINUTES:  # the log's clock may have been ahead
            started, completed, failed, cancelled = (int(row[name]) for name in _TOTALS)
            for counts, count in zip(rates[row["workflow"]], (started, completed + failed + cancelled, failed), strict=True):
                counts[place] = count
    return rates


def _took(connection: sa.Connection, of: Sequence[str], since: int) -> Mapping[tuple[str, str], list[tuple[int, int]]]:
    """By workflow and measure: counts of the buckets of durations, in order."""
    took: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    columns = (durations.c.workflow, durations.c.measure, durations.c.bucket)
    query = sa.select(*columns, sa.func.sum(durations.c["count"])).where(
        durations.c.minute >= since, durations.c.workflow.in_(of)
    )
    for workflow, measure, bucket, count in connection.execute(query.group_by(*columns).order_by(durations.c.bucket)):
        took[workflow, measure].append((bucket, int(count)))
    return took


async def get_workflows(call: HttpCall) -> Answer:
    """Show the workflows with their counts, rates and durations."""
    await reach(call.service, call.request)
    now = call.service.client.log.now()
    found, more = await call.service.read(list_workflows, now)
    return Answer(WorkflowsNow(workflows=found, more=more, until=utc(now)))


ROWS = (
    Row(
        method="GET",
        path="/v1/workflows",
        role=Role.VIEW,
        name="list_workflows",
        handler=get_workflows,
        answers={200: WorkflowsNow},
        headers=(POSITION,),
    ),
)
