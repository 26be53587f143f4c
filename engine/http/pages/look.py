"""Time zone and theme of one browser. A cookie holds them, so they work without script."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import cache
from typing import Literal, get_args
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from ..routing import HttpCall

COOKIE = "stepfold-look"
YEAR_S = 365 * 24 * 3600
Theme = Literal["system", "light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)
LOCAL = "local"
"""The browser's own zone. Only its script knows it: without script, times are in UTC."""


@cache
def zones() -> tuple[str, ...]:
    """The names of all time zones that this machine knows."""
    return tuple(
        sorted(name for name in zoneinfo.available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/")))
    )


def zone_of(name: str) -> tzinfo | None:
    """The zone of this name; None if this machine does not know it."""
    if name == "UTC":
        return UTC
    return zoneinfo.ZoneInfo(name) if name in zones() else None


@dataclass(frozen=True, slots=True)
class Look:
    """A browser's settings. `zone`: `local`, `UTC`, or the name of an IANA zone."""

    theme: Theme = "system"
    zone: str = LOCAL

    @property
    def tz(self) -> tzinfo:
        return zone_of(self.zone) or UTC

    @property
    def zone_name(self) -> str:
        """The name beside times that the server writes."""
        return "UTC" if self.zone == LOCAL else self.zone

    def written(self) -> str:
        """The value of the cookie."""
        return urlencode({"theme": self.theme, "zone": self.zone})


def keep(answer: Response, call: HttpCall, name: str, value: str) -> None:
    """Set a cookie for a year. It must not hold a secret or give a right."""
    scope = call.request.scope
    answer.set_cookie(
        name,
        value,
        max_age=YEAR_S,
        path=scope.get("root_path", "") or "/",
        secure=scope.get("scheme") == "https",
        httponly=True,
        samesite="lax",
    )


def look_of(request: Request) -> Look:
    """The settings in the request's cookie; defaults for missing and unknown values."""
    found = dict(parse_qsl(request.cookies.get(COOKIE, "")[:500], max_num_fields=5, errors="replace"))
    theme, zone = found.get("theme", ""), found.get("zone", "")
    return Look(theme if theme in THEMES else "system", zone if zone_of(zone) is not None else LOCAL)
