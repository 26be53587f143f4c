"""Whether the server works, and its figures for Prometheus, from the tables and the positions of the projections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel
from starlette.responses import Response

from stepfold.projections import Lag
from stepfold.projections.runs import runs
from stepfold.projections.steps import errors, minutes

from ..errors import LogUnavailable, StepfoldError
from .routing import Answer, HttpCall, Role, Row
from .service import Service

PATIENCE_S = 3.0
FRESH_S = 1.0
RECENT_S = 5.0
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Alive(BaseModel):
    """The process is up."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether the log answers and the projections go on. `behind`: offsets that are not applied; None if that is not known.

    Anyone may see it, so it names no server, file or error.
    """

    ready: bool
    log: bool
    projections: bool
    behind: int | None


class Lags:
    """The lags of the projections, asked of the log once a second at most, however many callers want them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[list[Lag]] | None = None
        self._last: tuple[float, list[Lag]] | None = None

    async def recent(self) -> list[Lag]:
        """As `get`, but does not wait for an answer if the last one is a few seconds old at most."""
        if self._last is None or time.monotonic() - self._last[0] > RECENT_S:
            return await self.get()
        self._ask()
        return self._last[1]

    async def get(self) -> list[Lag]:
        """Raises LogUnavailable, also if there is no answer in `PATIENCE_S`, and ConfigError."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._ask())
        except TimeoutError:
            raise LogUnavailable(f"the log or the projections' database has not answered for {PATIENCE_S:g} s") from None

    def _ask(self) -> asyncio.Task[list[Lag]]:
        """The question that is under way, or the last one if it is fresh."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_s > FRESH_S):
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(self._read())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _read(self) -> list[Lag]:
        began = time.monotonic()
        lags = await self._service.projections.lag()
        self._last = began, lags
        return lags

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()


async def get_alive(call: HttpCall) -> Answer:
    """Tell that the process is up."""
    return Answer(Alive())


async def get_ready(call: HttpCall) -> Answer:
    """Tell whether the log answers and the projections go on."""
    lags: list[Lag] | None = None
    log = True
    try:
        async with asyncio.timeout(PATIENCE_S):
            await call.service.client.log.bounds(0)
    except (StepfoldError, TimeoutError):
        log = False
    if log:
        with contextlib.suppress(StepfoldError):
            lags = await lags_of(call).get()
    going = lags is not None and not call.service.projections.failures and not any(lag.stopped for lag in lags)
    behind = None if lags is None else sum(lag.behind for lag in lags)
    return Answer(Readiness(ready=log and going, log=log, projections=going, behind=behind), 200 if log and going else 503)


def lags_of(call: HttpCall) -> Lags:
    """The lags that all routes of the application share."""
    return call.request.app.state.lags


async def get_metrics(call: HttpCall) -> Response:
    """Show the figures in the text format of Prometheus."""
    lags = await lags_of(call).get()
    tables = await call.service.projections.query(_counted)
    lag = [((one.projection, one.partition), one.behind) for one in lags]
    stopped = [((one.projection, one.partition), int(one.stopped is not None)) for one in lags]
    families = (
        *tables,
        family("stepfold_projection_behind", "gauge", "Offsets that a projection has not applied.", _PLACE, lag),
        family("stepfold_projection_stopped", "gauge", "1 where a projection has stopped.", _PLACE, stopped),
    )
    return Response("".join(families), media_type=MEDIA_TYPE)


_PLACE = ("projection", "partition")
Samples = Iterable[tuple[Sequence[Any], int]]


def _counted(connection: sa.Connection) -> list[str]:
    states = connection.execute(sa.select(runs.c.state, sa.func.count()).group_by(runs.c.state)).all()
    counts = ("started", "completed", "failed", "cancelled", "steps_completed", "attempts_failed", "attempts_lost")
    sums = (sa.func.sum(minutes.c[name]).label(name) for name in counts)
    found = connection.execute(sa.select(minutes.c.workflow, *sums).group_by(minutes.c.workflow)).all()
    alike = sa.select(errors.c.workflow, errors.c.type, sa.func.sum(errors.c.count)).group_by(errors.c.workflow, errors.c.type)
    of_type = [((workflow, kind), int(count)) for workflow, kind, count in connection.execute(alike)]

    def counter(name: str, told: str, column: str) -> str:
        return family(name, "counter", told, ("workflow",), [((row.workflow,), int(getattr(row, column))) for row in found])

    return [
        family("stepfold_runs", "gauge", "Runs by state.", ("state",), [((state,), count) for state, count in states]),
        counter("stepfold_runs_started_total", "Runs that have started.", "started"),
        counter("stepfold_runs_completed_total", "Runs that have completed.", "completed"),
        counter("stepfold_runs_failed_total", "Runs that have failed.", "failed"),
        counter("stepfold_runs_cancelled_total", "Runs that were cancelled.", "cancelled"),
        counter("stepfold_steps_completed_total", "Steps that have completed.", "steps_completed"),
        counter("stepfold_attempts_failed_total", "Attempts of steps that have failed.", "attempts_failed"),
        counter("stepfold_attempts_lost_total", "Attempts of steps whose worker was gone.", "attempts_lost"),
        family("stepfold_errors_total", "counter", "Errors of attempts and runs by type.", ("workflow", "type"), of_type),
    ]


def family(name: str, kind: str, told: str, labels: Sequence[str], samples: Samples) -> str:
    """One metric in the text format of Prometheus."""
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    for values, count in samples:
        pairs = ",".join(f'{label}="{_escaped(str(value))}"' for label, value in zip(labels, values, strict=True))
        lines.append(f"{name}{{{pairs}}} {count}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


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
