"""The routes of users' dashboards: the panels of their projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from stepfold.projections import Cell, Chart, Number, Panel, PanelRows

from .headers import POSITION, reach
from .payload import lags_for
from .problems import HttpRefusal
from .routing import Answer, HttpCall, Role, Row


class PanelNow(BaseModel):
    """A panel without its rows."""

    title: str
    kind: Literal["number", "bars", "lines", "table"]
    unit: str


class DashboardNamed(BaseModel):
    """A dashboard: its projection's name, and the panels without their rows."""

    name: str
    panels: list[PanelNow]


class DashboardsNow(BaseModel):
    """The dashboards that the server has."""

    dashboards: list[DashboardNamed]


class PanelRead(PanelNow):
    """A panel with its rows. A number has one column and one row; the first column of a chart is its axis. `more`: there are more
    rows. `failed`: why the panel could not be read; null if it was read."""

    columns: list[str]
    rows: list[list[Cell]]
    more: bool
    failed: str | None


class DashboardRead(BaseModel):
    """A dashboard with the rows of its panels. `behind`: how many records its projection has not applied. `stopped`: why the
    projection has stopped; null if it has not."""

    name: str
    behind: Annotated[int, Field(ge=0)]
    stopped: str | None
    panels: list[PanelRead]


def panel_now(panel: Panel) -> PanelNow:
    kind = "number" if isinstance(panel, Number) else panel.kind if isinstance(panel, Chart) else "table"
    unit = panel.unit if isinstance(panel, Chart | Number) else ""
    return PanelNow(title=panel.title, kind=kind, unit=unit)


def _named(name: str, panels: Sequence[Panel]) -> DashboardNamed:
    return DashboardNamed(name=name, panels=[panel_now(panel) for panel in panels])


def all_dashboards(call: HttpCall) -> DashboardsNow:
    """The view of the API and of the page."""
    return DashboardsNow(dashboards=[_named(*one) for one in sorted(call.service.dashboards.named.items())])


def _with_rows(panel: Panel, read: PanelRows) -> PanelRead:
    columns, rows = read.columns, read.rows
    if isinstance(panel, Number):
        columns, rows = columns[:1], [row[:1] for row in rows[:1]]
    more = read.more and not isinstance(panel, Number)
    return PanelRead(**panel_now(panel).model_dump(), columns=columns, rows=rows, more=more, failed=read.failed)


async def one_dashboard(call: HttpCall, name: str, *, wait: bool) -> DashboardRead:
    """A dashboard for the API and for the page. `wait`: wait for the newest rows. Raises HttpRefusal for an unknown name."""
    service = call.service
    panels = service.dashboards.named.get(name)
    if panels is None:
        raise HttpRefusal(404, "dashboard-not-found", f"there is no dashboard {name!r}; /v1/dashboards lists them")
    lags = [lag for lag in lags_for(call.caller, await service.projections.lag()) if lag.projection == name]
    read = await service.dashboards.read(name, service.news.number, wait=wait)
    return DashboardRead(
        name=name,
        behind=sum(lag.behind for lag in lags),
        stopped=next((lag.stopped for lag in lags if lag.stopped), None),
        panels=[_with_rows(panel, rows) for panel, rows in zip(panels, read, strict=True)],
    )


async def get_dashboards(call: HttpCall) -> Answer:
    """List the dashboards of users' projections."""
    return Answer(all_dashboards(call))


async def get_dashboard(call: HttpCall) -> Answer:
    """Show the rows of a dashboard's panels."""
    await reach(call.service, call.request)
    return Answer(await one_dashboard(call, call.path["name"], wait=True))


ROWS = (
    Row(
        method="GET",
        path="/v1/dashboards",
        role=Role.VIEW,
        name="list_dashboards",
        handler=get_dashboards,
        answers={200: DashboardsNow},
    ),
    Row(
        method="GET",
        path="/v1/dashboards/{name}",
        role=Role.PAYLOAD,
        name="get_dashboard",
        handler=get_dashboard,
        headers=(POSITION,),
        answers={200: DashboardRead},
    ),
)
