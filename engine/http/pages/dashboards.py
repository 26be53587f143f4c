"""The pages of users' dashboards."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..dashboards import PanelRead, all_dashboards, one_dashboard
from ..routing import HttpCall
from .charts import drawing, number_words
from .live import stream, wanted
from .render import around, show


async def index(call: HttpCall) -> Response:
    return show(call, "dashboards.html", active="/dashboards", dashboards=all_dashboards(call).dashboards)


async def view(call: HttpCall) -> dict[str, Any]:
    """The template's values of a dashboard. A stream waits for the newest rows."""
    found = await one_dashboard(call, call.path["name"], wait=wanted(call))
    return around(call) | {
        "active": "/dashboards",
        "name": found.name,
        "behind": found.behind,
        "stopped": found.stopped,
        "panels": [_shown(number, panel) for number, panel in enumerate(found.panels)],
    }


def _shown(number: int, panel: PanelRead) -> dict[str, Any]:
    drawn = drawing(panel.kind, panel.columns, panel.rows, panel.unit) if panel.kind in ("bars", "lines") and panel.rows else None
    return {
        "id": f"panel-{number}",
        "title": panel.title,
        "kind": panel.kind,
        "unit": panel.unit,
        "failed": panel.failed,
        "columns": panel.columns,
        "numeric": [_numeric(panel, column) for column in range(len(panel.columns))],
        "rows": [[number_words(cell) for cell in row] for row in panel.rows],
        "raw": panel.rows,
        "run_column": panel.columns.index("run_id") if "run_id" in panel.columns else None,
        "more": panel.more,
        "value": number_words(panel.rows[0][0]) if panel.rows else "–",
        "drawing": drawn,
    }


def _numeric(panel: PanelRead, column: int) -> bool:
    cells = [row[column] for row in panel.rows]
    return any(isinstance(cell, int | float) for cell in cells) and not any(isinstance(cell, str | bool) for cell in cells)


async def page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "dashboard_live.html", view)
    return show(call, "dashboard.html", **await view(call))
