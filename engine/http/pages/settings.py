"""The page of settings: time zone and theme of one browser."""

from __future__ import annotations

from itertools import groupby

from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from ..problems import HttpRefusal
from ..routing import HttpCall
from .look import COOKIE, LOCAL, THEMES, Look, Theme, keep, zone_of, zones
from .render import around, show


class SettingsForm(BaseModel, extra="ignore"):
    """The form of a browser's settings."""

    theme: Theme = "system"
    zone: str = LOCAL


class SettingsQuery(BaseModel, extra="ignore"):
    """`saved`: the page follows a change, and says so."""

    saved: str = ""


async def settings_page(call: HttpCall) -> Response:
    groups = [(area, list(names)) for area, names in groupby(zones(), lambda name: name.partition("/")[0])]
    context = {"active": "/settings", "themes": THEMES, "zones": groups, "saved": bool(call.query.saved)}
    return show(call, "settings.html", **around(call), **context)


async def change_settings(call: HttpCall) -> Response:
    form: SettingsForm = call.body
    if form.zone != LOCAL and zone_of(form.zone) is None:
        raise HttpRefusal(422, "invalid", "this server does not know that time zone")
    answer = RedirectResponse(call.request.scope.get("root_path", "") + "/settings?saved=1", 303)
    keep(answer, call, COOKIE, Look(form.theme, form.zone).written())
    return answer
