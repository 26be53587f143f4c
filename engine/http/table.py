"""The route table: the only source of routes, roles, models, the OpenAPI document and the tests of all routes."""

from __future__ import annotations

from . import health, history, requests, runs, sessions, system
from .pages import ROWS as PAGES
from .routing import Row

ROWS: tuple[Row, ...] = (*runs.ROWS, *requests.ROWS, *history.ROWS, *system.ROWS, *sessions.ROWS, *health.ROWS, *PAGES)
