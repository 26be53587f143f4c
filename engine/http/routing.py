"""The rows of the route table, and the one place that runs handlers: it checks role, query and body, and turns errors into
answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from ..values.digits import loads
from ..values.nesting import MAX_DEPTH, is_deeper
from .login import login_form
from .problems import HttpRefusal, answer, invalid, refusal
from .service import Service

logger = logging.getLogger("stepfold.http")


class Role(StrEnum):
    """The rights of a caller: see metadata, see payloads, act on runs, act on the system. `ANYONE`: no login is needed."""

    ANYONE = "anyone"
    VIEW = "view"
    PAYLOAD = "payload"
    OPERATE = "operate"
    ADMIN = "admin"


IMPLIED: dict[Role, frozenset[Role]] = {
    Role.ANYONE: frozenset({Role.ANYONE}),
    Role.VIEW: frozenset({Role.ANYONE, Role.VIEW}),
    Role.PAYLOAD: frozenset({Role.ANYONE, Role.VIEW, Role.PAYLOAD}),
    Role.OPERATE: frozenset({Role.ANYONE, Role.VIEW, Role.OPERATE}),
    Role.ADMIN: frozenset(Role),
}
"""A role includes these roles."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, with its roles. Events of requests hold `name` as `by`."""

    name: str | None
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        return any(role in IMPLIED[one] for one in self.roles)


NOBODY = Caller(None, frozenset({Role.ANYONE}))


class Nothing(BaseModel, extra="forbid"):
    """The query of a route without parameters."""


@dataclass(slots=True)
class HttpCall:
    """A checked request. `query` and `body`: instances of the row's models."""

    service: Service
    caller: Caller
    request: Request
    path: Mapping[str, str]
    query: Any
    body: Any


@dataclass(slots=True)
class Answer:
    """The answer of a handler: a model, which is sent as JSON, or None for no body."""

    value: BaseModel | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])


Handler = Callable[[HttpCall], Awaitable[Answer | Response]]
Show = Callable[[HttpRefusal, Request], Response]
"""Renders an error as a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One route.

    `answers`: by status that the handler itself may answer, the model of the body; None for no body or another media type.
    `media`: further media types of a 200. `headers`: the request headers that the handler reads; `sends`: by status, the headers
    of its answers. `secret`: the path holds a secret, which no answer and no log repeats. `streams`: the answer does not end by
    itself. `page`: a page of the dashboard, not of the API: `show` renders its errors, and a caller who is not logged in gets the
    login. `form`: the body may be a form.
    """

    method: str
    path: str
    role: Role
    name: str
    handler: Handler
    query: type[BaseModel] = Nothing
    body: type[BaseModel] | None = None
    answers: Mapping[int, type[BaseModel] | None]
    media: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    sends: Mapping[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    secret: bool = False
    streams: bool = False
    page: bool = False
    show: Show | None = None
    form: bool = False


BODY_BYTES = 2 * 1024 * 1024
BODY_S = 30
FIELDS = 1000
"""How many fields a form or a query may have."""
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def routes(rows: Sequence[Row]) -> list[BaseRoute]:
    """The rows as Starlette's routes: one for each path, so that `Allow` names all its methods."""
    by_path: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, {})[row.method] = row
    return [RawRoute(path, _endpoint(found), methods=list(found), name=path) for path, found in by_path.items()]


def _raw_path(scope: Scope) -> str:
    """The path as the client sent it, before decoding."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.decode("latin-1")


class RawRoute(Route):
    """A route that matches the path before it is decoded, so that `%2F` belongs to a parameter and does not separate parts.

    A parameter is decoded once; if the result is not UTF-8, the route does not match.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches({**scope, "path": _raw_path(scope), "root_path": quote(scope.get("root_path", ""))})
        if match is not Match.NONE:
            try:
                child["path_params"] = {name: unquote(value, errors="strict") for name, value in child["path_params"].items()}
            except UnicodeDecodeError:
                return Match.NONE, {}
        return match, child


def instance_of(row: Row | None, request: Request) -> str:
    """The path that a problem names: the request's path, or the row's template if the path holds a secret."""
    return row.path if row is not None and row.secret else quote(_raw_path(request.scope), safe="/%")


def _endpoint(rows: Mapping[str, Row]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        row = rows["GET" if request.method == "HEAD" and "HEAD" not in rows else request.method]
        request.scope["stepfold.route"] = row.path
        try:
            return await _run(row, request)
        except Exception as error:  # every error becomes an answer
            refused = refusal(error)
            if refused.problem.status == 401 and row.page:
                return login_form(request.scope.get("root_path", ""), _here(request), 401)
            if refused.problem.status == 500:
                logger.exception("%s %s", row.method, row.path)
            return answer(refused, instance_of(row, request)) if row.show is None else row.show(refused, request)

    return endpoint


async def _run(row: Row, request: Request) -> Response:
    caller: Caller = request.scope["stepfold.caller"]
    if not caller.may(row.role):
        raise denied(caller, row.role)
    query = _model(row.query, _pairs(request), "the query")
    body = None if row.body is None else _model(row.body, await _body(request, form=row.form), "the body")
    service: Service = request.app.state.service
    answered = await row.handler(HttpCall(service, caller, request, request.path_params, query, body))
    if isinstance(answered, Response):
        return answered
    content = None if answered.value is None else answered.value.model_dump_json(by_alias=True).encode()
    return Response(content, answered.status, answered.headers, None if content is None else JSON)


def denied(caller: Caller, role: Role) -> HttpRefusal:
    """Raises HttpRefusal: 401 for an unknown caller, 403 for one without the role."""
    if caller is NOBODY:
        return HttpRefusal(
            401, "unauthenticated", "send a token: Authorization: Bearer ...", headers={"WWW-Authenticate": "Bearer"}
        )
    return HttpRefusal(403, "forbidden", f"this needs the role {role.value!r}")


def _model(model: type[BaseModel], data: Any, what: str) -> BaseModel:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid(error, what) from None


def _here(request: Request) -> str:
    """The page to show after the login: the one that the browser asked for, or the first page for other requests."""
    if request.method != "GET":
        return ""
    return _raw_path(request.scope) + (f"?{request.url.query}" if request.url.query else "")


def _pairs(request: Request) -> dict[str, Any]:
    return _joined(request.query_params.multi_items(), "the query")


def _joined(pairs: Sequence[tuple[str, str]], what: str) -> dict[str, Any]:
    """Names and values; a name that comes several times has the list of its values."""
    if len(pairs) > FIELDS:
        raise HttpRefusal(422, "invalid", f"{what} has more than {FIELDS:,} fields")
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


async def _body(request: Request, *, form: bool) -> Any:
    """The body as JSON, or as the fields of a form. Limits are checked before parsing."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON and not (form and media == FORM):
        raise HttpRefusal(415, "unsupported-media-type", f"the body must be {JSON}{f' or {FORM}' if form else ''}")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise HttpRefusal(
            415,
            "unsupported-encoding",
            "the body must be sent as it is, without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    body = await _read(request)
    if media == FORM:
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=FIELDS)
        except ValueError:
            raise HttpRefusal(400, "not-a-form", f"the body is not a form of up to {FIELDS:,} fields in UTF-8") from None
        return _joined(pairs, "the form")
    try:
        found = loads(body)  # keeps all digits of numbers
    except ValueError as error:
        raise HttpRefusal(400, "not-json", f"the body is not JSON: {error}") from None
    if is_deeper(body, found):
        raise HttpRefusal(422, "too-deep", f"the body is nested more than {MAX_DEPTH} deep")
    return found


async def _read(request: Request) -> bytes:
    too_large = HttpRefusal(413, "payload-too-large", f"the body is larger than {BODY_BYTES:,} bytes")
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise HttpRefusal(408, "timeout", f"the body did not come within {BODY_S} s") from None
    except ClientDisconnect:
        raise HttpRefusal(400, "body-cut", "the client went away before the end of the body") from None
    return bytes(body)


async def no_route(request: Request, error: Exception) -> Response:
    """The answer where no route fits, or none has the method."""
    return answer(unrouted(error), instance_of(None, request))


def unrouted(error: Exception) -> HttpRefusal:
    """The problem of a request that no route fits: 404, or 405 with `Allow`."""
    status, headers = (error.status_code, dict(error.headers or {})) if isinstance(error, HTTPException) else (500, {})
    code, detail = {
        404: ("not-found", "there is nothing at this path"),
        405: ("method-not-allowed", "this path has no such method; Allow names those that it has"),
    }.get(status, ("bad-request", str(error)))
    return HttpRefusal(status, code, detail, headers=headers)
