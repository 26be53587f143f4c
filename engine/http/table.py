"""The route table: the only source of routes, roles, models, the OpenAPI document and the tests of all routes."""

from __future__ import annotations

from . import (
    audit,
    bulk,
    changes,
    children,
    dashboards,
    health,
    history,
    letters,
    published,
    requests,
    runs,
    schemas,
    sessions,
    system,
    workflows,
)
from .openapi import described
from .pages import ROWS as PAGES
from .routing import Row

_API = (
    *runs.ROWS,
    *requests.ROWS,
    *history.ROWS,
    *published.ROWS,
    *children.ROWS,
    *schemas.ROWS,
    *audit.ROWS,
    *bulk.ROWS,
    *changes.ROWS,
    *letters.ROWS,
    *system.ROWS,
    *workflows.ROWS,
    *dashboards.ROWS,
    *health.ROWS,
)
ROWS: tuple[Row, ...] = (*_API, described(_API), *sessions.ROWS, *PAGES)
