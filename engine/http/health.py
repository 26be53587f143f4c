"""The routes of the server's health, and of its metrics for Prometheus, from the tables and the positions of the projections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import sqlalchemy as sa
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import BaseModel
from starlette.responses import Response

from stepfold.projections import Lag
from stepfold.projections.runs import runs
from stepfold.projections.steps import errors, workflows

from ..errors import LogUnavailable, StepfoldError
from ..exposition import OTHERS, exposed
from .delays import PATIENCE_S, Delay
from .routing import Answer, HttpCall, Role, Row
from .service import PartitionBounds

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Alive(BaseModel):
    """The process is up."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether the log answers and no projection has stopped. `behind`: how many offsets are not applied; null if unknown.

    Anyone may read this, so it names no server, file or error.
    """

    ready: bool
    log: bool
    projections: bool
    behind: int | None


async def get_alive(call: HttpCall) -> Answer:
    """Tell that the process is up."""
    return Answer(Alive())


async def get_ready(call: HttpCall) -> Answer:
    """Tell whether the log answers and no projection has stopped."""
    lags: list[Lag] | None = None
    log = True
    try:
        async with asyncio.timeout(PATIENCE_S):
            await call.service.client.log.bounds(0)
    except (StepfoldError, TimeoutError):
        log = False
    if log:
        with contextlib.suppress(StepfoldError):
            lags = await call.service.lags.get()
    going = lags is not None and not call.service.projections.failures and not any(lag.stopped for lag in lags)
    behind = None if lags is None else sum(lag.behind for lag in lags)
    return Answer(Readiness(ready=log and going, log=log, projections=going, behind=behind), 200 if log and going else 503)


async def get_metrics(call: HttpCall) -> Response:
    """Show the metrics in the text format of Prometheus."""
    lags = await call.service.lags.get()
    try:
        async with asyncio.timeout(PATIENCE_S):
            partitions = await call.service.partitions()
            delays = await call.service.delays.of(lags)
    except TimeoutError:
        raise LogUnavailable(f"the log has not answered for {PATIENCE_S:g} s") from None
    tables = await call.service.projections.query(counted)
    return Response(exposed([*tables, *_placed(lags, partitions, delays)]), media_type=MEDIA_TYPE)


def _placed(lags: Sequence[Lag], partitions: Sequence[PartitionBounds], delays: Mapping[int, Delay]) -> Iterator[Metric]:
    """The metrics of partitions, and of projections in them."""

    def gauge(name: str, told: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
        family = GaugeMetricFamily(f"stepfold_{name}", told, labels=labels)
        for values, value in samples:
            family.add_metric(values, value)
        return family

    place = ("projection", "partition")
    owned = [((str(one.partition),), int(one.owner is not None)) for one in partitions]
    seconds = [((str(partition),), delay.seconds) for partition, delay in sorted(delays.items()) if delay.seconds is not None]
    behind = [((one.projection, str(one.partition)), one.behind) for one in lags]
    stopped = [((one.projection, str(one.partition)), int(one.stopped is not None)) for one in lags]
    yield gauge("partition_owned", "1 where a worker owns the partition, else 0.", ("partition",), owned)
    yield gauge("tables_lag_seconds", "How long ago the first record came that the tables lack.", ("partition",), seconds)
    yield gauge("projection_lag_records", "Records that a projection has not applied.", place, behind)
    yield gauge("projection_stopped", "1 where a projection has stopped.", place, stopped)


_COUNTERS = (
    ("runs_started", "Runs that have started.", "started"),
    ("runs_completed", "Runs that have completed.", "completed"),
    ("runs_failed", "Runs that have failed.", "failed"),
    ("runs_cancelled", "Runs that were cancelled.", "cancelled"),
    ("steps_completed", "Steps that have completed.", "steps_completed"),
    ("attempts_failed", "Attempts of steps that have failed.", "attempts_failed"),
    ("attempts_lost", "Attempts of steps whose worker was gone.", "attempts_lost"),
)
NAMED = 200
"""The most workflows with labels of their own, and the most pairs of workflow and type of error.

A client may start a run of any name, even of a workflow that no worker knows. So workflows with steps come first, and then the
oldest.
"""


def counted(connection: sa.Connection) -> list[Metric]:
    """The metrics that the tables hold."""
    states = GaugeMetricFamily("stepfold_runs", "Runs by state.", labels=["state"])
    for state, count in connection.execute(sa.select(runs.c.state, sa.func.count()).group_by(runs.c.state)):
        states.add_metric([state], count)
    sums = [sa.func.sum(workflows.c[column]).label(column) for _, _, column in _COUNTERS]
    first = sa.func.min(workflows.c.first_minute).label("first")
    rows = connection.execute(sa.select(workflows.c.workflow, first, *sums).group_by(workflows.c.workflow)).mappings().all()
    known = sorted(rows, key=lambda row: (not (row["steps_completed"] or row["attempts_failed"]), row["first"], row["workflow"]))
    families: list[Metric] = [states]
    for name, told, column in _COUNTERS:
        family = CounterMetricFamily(f"stepfold_{name}", told, labels=["workflow"])
        for labels, count in bounded(((row["workflow"],), int(row[column])) for row in known):
            family.add_metric(labels, count)
        families.append(family)
    alike = sa.select(errors.c.workflow, errors.c.type, sa.func.sum(errors.c["count"])).group_by(errors.c.workflow, errors.c.type)
    of_types = connection.execute(alike.order_by(sa.func.min(errors.c.first_at), errors.c.workflow, errors.c.type))
    family = CounterMetricFamily("stepfold_errors", "Errors of attempts and runs by type.", labels=["workflow", "type"])
    for labels, count in bounded(((workflow, error), int(count)) for workflow, error, count in of_types):
        family.add_metric(labels, count)
    return [*families, family]


def bounded(samples: Iterable[tuple[tuple[str, ...], int]]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The first `NAMED` samples, and one sample with the sum of the others."""
    rest: int | None = None
    labels: tuple[str, ...] = ()
    for number, (labels, count) in enumerate(samples):
        if number < NAMED:
            yield labels, count
        else:
            rest = (rest or 0) + count
    if rest is not None:
        yield (OTHERS,) * len(labels), rest


ROWS = (
    Row(method="GET", path="/healthz", role=Role.ANYONE, name="get_alive", handler=get_alive, answers={200: Alive}),
    Row(
        method="GET",
        path="/readyz",
        role=Role.ANYONE,
        name="get_ready",
        handler=get_ready,
        answers={200: Readiness, 503: Readiness},
    ),
    Row(
        method="GET",
        path="/metrics",
        role=Role.VIEW,
        name="get_metrics",
        handler=get_metrics,
        answers={200: None},
        media=("text/plain",),
    ),
)
