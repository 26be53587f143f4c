"""The page of the workflows that have runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from ...values.words import span
from ..routing import HttpCall
from ..workflows import MINUTES, MOST, WorkflowNow, list_workflows
from .live import stream, wanted
from .render import around, show, with_query

HEIGHT = 20


def sparkline(counts: Sequence[int], most: int) -> str:
    """The points of an SVG polyline: one unit wide for each count, and `HEIGHT` high at `most`."""
    return " ".join(f"{place},{HEIGHT - 1 - count / max(most, 1) * (HEIGHT - 2):.1f}" for place, count in enumerate(counts))


def rate(counts: Sequence[int]) -> str:
    """The mean of the counts, rounded, as text."""
    mean = sum(counts) / len(counts)
    return f"{mean:,.0f}" if mean >= 10 or mean == 0 else f"{mean:.2g}"


async def workflows_view(call: HttpCall) -> dict[str, Any]:
    context = around(call)
    found, more = await call.service.read(list_workflows, context["now"])
    return context | {
        "active": "/workflows",
        "workflows": [_shown(one) for one in found],
        "more": more,
        "most": MOST,
        "minutes": MINUTES,
        "height": HEIGHT,
    }


def _shown(one: WorkflowNow) -> dict[str, Any]:
    most = max(*one.started_by_minute, *one.failed_by_minute)
    return {
        "workflow": one.workflow,
        "versions": one.versions,
        "open": one.open,
        "failed": one.failed,
        "started": one.started,
        "rates": [rate(counts) for counts in (one.started_by_minute, one.ended_by_minute, one.failed_by_minute)],
        "line": sparkline(one.started_by_minute, most),
        "failures": sparkline(one.failed_by_minute, most) if any(one.failed_by_minute) else None,
        "run": [_span(ms) for ms in (one.run_p50_ms, one.run_p95_ms)],
        "queue": [_span(ms) for ms in (one.queue_p50_ms, one.queue_p95_ms)],
        "runs": with_query("/", workflow=one.workflow),
        "failed_runs": with_query("/", workflow=one.workflow, state="failed"),
    }


def _span(ms: float | None) -> str:
    return "–" if ms is None else span(round(ms))


async def workflows_page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "workflows_live.html", workflows_view)
    return show(call, "workflows.html", **await workflows_view(call))
