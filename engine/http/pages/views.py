"""The saved views of one browser: names for filters of the list of runs. A cookie holds them, so they need no script."""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..problems import HttpRefusal
from ..routing import HttpCall
from .look import keep

COOKIE = "stepfold-views"
COOKIE_BYTES = 3500
"""The most bytes of the views. Browsers keep cookies of up to 4096 bytes, name and attributes included."""


class SavedView(NamedTuple):
    """A saved view. `query`: of the list's URL. At most one view is the default, to which the list without a query redirects."""

    name: str
    query: str
    default: bool = False

    @property
    def path(self) -> str:
        return f"/?{self.query}"


_KEPT: TypeAdapter[list[SavedView]] = TypeAdapter(list[SavedView])


class ViewForm(BaseModel, extra="ignore"):
    """The form that changes the saved views. `save` replaces a view of the same name."""

    do: Literal["save", "drop", "default", "plain"]
    name: str = Field(min_length=1, max_length=60)
    query: str = Field("", max_length=1000)
    default: bool = False


def views_of(request: Request) -> list[SavedView]:
    """The views that the browser keeps; none if its cookie cannot be read."""
    try:
        return _KEPT.validate_json(unquote(request.cookies.get(COOKIE, "[]")))
    except ValidationError:
        return []


async def change_views(call: HttpCall) -> Response:
    """Save or drop a view, or change the default. The answer redirects to the view, or to the list."""
    form: ViewForm = call.body
    name, base = form.name.strip() or form.name, call.request.scope.get("root_path", "")
    query = urlencode([(key, value) for key, value in parse_qsl(form.query) if key != "after"])
    views = views_of(call.request)
    known = next((view for view in views if view.name == name), SavedView(name, query))
    changed = SavedView(name, query, form.default) if form.do == "save" else known._replace(default=form.do == "default")
    if changed.default:
        views = [view._replace(default=False) for view in views]
    if form.do == "drop":
        views = [view for view in views if view.name != name]
    elif any(view.name == name for view in views):
        views = [changed if view.name == name else view for view in views]
    else:
        views.append(changed)
    answer = RedirectResponse(base + ("/?state=" if form.do == "drop" else changed.path), 303)
    value = quote(orjson.dumps(views, default=list).decode(), safe="")
    if len(value) > COOKIE_BYTES:
        raise HttpRefusal(422, "too-many-views", "a browser keeps no more views than these: drop one first")
    keep(answer, call, COOKIE, value)
    return answer
