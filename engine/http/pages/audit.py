"""The page that lists requests: who asked for what, and why."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field
from starlette.responses import Response

from ...core.records import Request
from ...events import Event
from ...values.times import ms_of
from ..audit import actions_page
from ..routing import HttpCall
from .live import stream, wanted
from .render import around, run_path, show, with_query

PAGE = 50
TYPES = sorted(model.model_fields["type"].default for model in get_args(Event) if issubclass(model, Request))


class AuditQuery(BaseModel, extra="ignore"):
    """Conditions on requests, "" for none; `cursor`: where the previous page has ended."""

    by: str = ""
    type: str = ""
    run_id: str = ""
    cursor: Annotated[str, Field(max_length=60)] = ""

    def chosen(self) -> dict[str, str]:
        """The conditions that are set."""
        return {name: value for name, value in self.model_dump(exclude={"cursor"}).items() if value}


async def view(call: HttpCall) -> dict[str, Any]:
    """The template's values."""
    query: AuditQuery = call.query
    chosen = query.chosen()
    rows, following = await actions_page(call, PAGE, query.cursor, dict(chosen))
    return around(call) | {
        "active": "/audit",
        "query": query,
        "chosen": chosen,
        "types": TYPES,
        "rows": [
            {
                "place": f"{row.partition}:{row.offset}",
                "at": ms_of(row.at),
                "type": row.type,
                "run": row.run_id,
                "path": with_query(run_path(row.run_id), at=row.offset),
                "workflow": row.workflow,
                "subject": row.subject or "",
                "by": row.by,
                "by_path": None if row.by is None else with_query("/audit", by=row.by),
                "why": row.why or "",
            }
            for row in rows
        ],
        "next": None if following is None else with_query("/audit", **chosen, cursor=following),
        "here": with_query("/audit", **chosen),
    }


async def audit_page(call: HttpCall) -> Response:
    if wanted(call):
        return await stream(call, "audit_live.html", view)
    return show(call, "audit.html", **await view(call))
