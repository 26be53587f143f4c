"""The dashboard: pages that the server renders from the same data as the API. They work without script."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from ..routing import Handler, Role, Row
from . import (
    actions,
    audit,
    bulk,
    compare,
    dashboards,
    forms,
    letters,
    run,
    runs,
    settings,
    starting,
    system,
    tail,
    views,
    workflows,
)
from .render import refused
from .static import asset

_Answers = Mapping[int, type[BaseModel] | None]
_SHOWN: _Answers = {200: None}
_MOVED: _Answers = {303: None}
_STARTED: _Answers = {200: None, 303: None}


def _page(
    path: str, name: str, handler: Handler, query: type[BaseModel], role: Role = Role.VIEW, answers: _Answers = _SHOWN
) -> Row:
    return Row(
        method="GET", path=path, role=role, name=name, handler=handler, query=query, answers=answers, page=True, show=refused
    )


def _form(
    path: str, name: str, handler: Handler, body: type[BaseModel], answers: _Answers = _MOVED, role: Role = Role.OPERATE
) -> Row:
    return Row(
        method="POST",
        path=path,
        role=role,
        name=name,
        handler=handler,
        body=body,
        form=True,
        answers=answers,
        page=True,
        show=refused,
    )


ROWS: tuple[Row, ...] = (
    _page("/", "runs_page", runs.page, runs.ListQuery),
    _page("/open", "open_page", runs.jump, runs.JumpQuery, answers=_MOVED),
    _page("/runs/{id:path}", "run_page", compare.page, run.RunQuery),
    _form("/runs/{id:path}", "act", actions.act, forms.ActForm),
    _page("/payload/{id:path}", "payload_page", run.payload, run.PayloadQuery, Role.PAYLOAD),
    _page("/start", "start_page", starting.start_page, starting.StartQuery),
    _form("/start", "start_run_form", starting.start, forms.StartForm, answers=_STARTED),
    _page("/bulk", "bulk_jobs_page", bulk.list_page, runs.AnyQuery),
    _form("/bulk", "start_bulk_form", bulk.start, bulk.BulkQuery),
    _page("/bulk/new", "new_bulk_page", bulk.new_page, bulk.BulkQuery, Role.OPERATE),
    _page("/bulk/{id}", "bulk_job_page", bulk.page, bulk.JobQuery),
    _form("/bulk/{id}", "abort_bulk_form", bulk.abort, bulk.AbortForm),
    _page("/workflows", "workflows_page", workflows.workflows_page, runs.AnyQuery),
    _page("/errors", "errors_page", system.errors_page, system.ErrorsQuery),
    _page("/dashboards", "dashboards_page", dashboards.index, runs.AnyQuery),
    _page("/dashboards/{name}", "dashboard_page", dashboards.page, runs.AnyQuery, Role.PAYLOAD),
    _page("/workers", "workers_page", system.workers_page, runs.AnyQuery),
    _page("/dead-letters", "dead_letters_page", letters.page, letters.LettersQuery),
    _form("/dead-letters", "dead_letters_form", letters.act, letters.LettersForm),
    _page("/history", "history_page", tail.tail_page, tail.TailQuery),
    _page("/audit", "audit_page", audit.audit_page, audit.AuditQuery),
    _page("/settings", "settings_page", settings.settings_page, settings.SettingsQuery),
    _form("/settings", "change_settings", settings.change_settings, settings.SettingsForm, role=Role.VIEW),
    _form("/views", "change_views", views.change_views, views.ViewForm, role=Role.VIEW),
    _form("/workers", "rebuild_form", system.rebuild, system.RebuildForm, role=Role.ADMIN),
    _page("/static/{name}", "static", asset, runs.AnyQuery, Role.ANYONE),
)
