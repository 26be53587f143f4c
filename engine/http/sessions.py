"""Sessions of browsers, which send no bearer token: a cookie stands for the token with which somebody logged in."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pydantic import BaseModel, Field
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import Scope

from .login import local_path, login_form
from .problems import HttpRefusal
from .routing import Caller, HttpCall, Nothing, Role, Row

Authenticate = Callable[[str], Caller | None]
"""Returns the caller of a bearer token; None for an invalid token."""


def any_of(ways: Sequence[Authenticate]) -> Authenticate:
    """Asks these in turn; the first that knows the caller counts."""
    return lambda token: next((caller for way in ways if (caller := way(token)) is not None), None)


MOST = 1000
"""The most sessions that one server keeps; a new one ends the oldest."""
LONGEST_S = 12 * 3600


class Sessions:
    """The sessions of one server, in memory. Every request looks the token up again, so a session ends when its token does."""

    def __init__(self, authenticate: Authenticate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._kept: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, token: str) -> str | None:
        """The value of a new cookie; None if the token is not valid."""
        if self._authenticate(token) is None:
            return None
        while len(self._kept) >= MOST:
            self._kept.popitem(last=False)
        cookie = secrets.token_urlsafe(32)
        self._kept[_key(cookie)] = token, self._clock()
        return cookie

    def caller(self, cookie: str) -> Caller | None:
        token, began_s = self._kept.get(_key(cookie), ("", float("-inf")))
        caller = self._authenticate(token) if self._clock() - began_s < LONGEST_S else None
        if caller is None:
            self.end(cookie)
        return caller

    def end(self, cookie: str) -> None:
        self._kept.pop(_key(cookie), None)


def _key(cookie: str) -> str:
    """The digest under which a cookie is kept: the time of a look-up then tells nothing about cookies."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()


def cookie_name(scope: Scope) -> str:
    """The cookie's name. Browsers accept a `__Host-` cookie over TLS only, and only for this host."""
    return "__Host-stepfold" if scope.get("scheme") == "https" else "stepfold"


def cookie_of(scope: Scope) -> str | None:
    """The session's cookie; None if there is none, or more than one."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie"]
    values = [cookie_parser(line).get(cookie_name(scope)) for line in lines]
    return values[0] if len(values) == 1 else None


class Login(BaseModel, extra="forbid"):
    """The login form: the token, and the path of the dashboard to show next."""

    token: str = Field(max_length=8192)
    next: str = Field("", max_length=8192)


class LoginPage(BaseModel, extra="forbid"):
    """The query of the login page."""

    next: str = Field("", max_length=8192)


def _sessions(call: HttpCall) -> Sessions:
    sessions: Sessions | None = call.request.scope["stepfold.sessions"]
    if sessions is None:
        raise HttpRefusal(409, "no-authentication", "this server has no authentication, so it has no login")
    return sessions


def _base(call: HttpCall) -> str:
    return call.request.scope.get("root_path", "")


async def get_login(call: HttpCall) -> Response:
    return login_form(_base(call), call.query.next)


async def log_in(call: HttpCall) -> Response:
    cookie = _sessions(call).begin(call.body.token)
    if cookie is None:
        return login_form(_base(call), call.body.next, 401, "This token is not valid.")
    return _see(local_path(_base(call), call.body.next), call, cookie)


async def log_out(call: HttpCall) -> Response:
    cookie = cookie_of(call.request.scope)
    if cookie is not None:
        _sessions(call).end(cookie)
    return _see(f"{_base(call)}/login", call, None)


def _see(path: str, call: HttpCall, cookie: str | None) -> Response:
    """A redirect (303) to a path of this server that sets the cookie, or deletes it."""
    response = Response(None, 303, {"Location": path})
    response.set_cookie(
        cookie_name(call.request.scope),
        cookie or "",
        max_age=LONGEST_S if cookie else 0,
        path="/",
        secure=call.request.scope.get("scheme") == "https",
        httponly=True,
        samesite="strict",
    )
    return response


ROWS = (
    Row(
        method="GET",
        path="/login",
        role=Role.ANYONE,
        name="get_login",
        handler=get_login,
        query=LoginPage,
        answers={200: None},
        page=True,
    ),
    Row(
        method="POST",
        path="/login",
        role=Role.ANYONE,
        name="log_in",
        handler=log_in,
        body=Login,
        form=True,
        answers={303: None, 401: None},
        page=True,
    ),
    Row(
        method="POST",
        path="/logout",
        role=Role.ANYONE,
        name="log_out",
        handler=log_out,
        body=Nothing,
        form=True,
        answers={303: None},
        page=True,
    ),
)
