"""The guard: every request passes it before any route, and gets its caller here. It denies by default."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from ..errors import ConfigError
from .problems import HttpRefusal, answer
from .routing import NOBODY, Caller, Role
from .sessions import Authenticate, Sessions, cookie_of

logger = logging.getLogger("stepfold.http")

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
EVERYTHING = Caller(None, frozenset({Role.ADMIN}))
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_HEADERS, HEADER_BYTES, TARGET_BYTES = 100, 32 * 1024, 8 * 1024
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Checks size, host, origin and caller of each request, adds security headers to the answer, and writes the access log.

    `hosts`: the names without port that the Host header may have. `authenticate`: None serves everybody on this machine as an
    admin, and nobody else.
    """

    def __init__(self, app: Starlette, hosts: Collection[str], authenticate: Authenticate | None) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._authenticate = None if authenticate is None else _or_503(authenticate)
        self._sessions = None if self._authenticate is None else Sessions(self._authenticate)

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """Serve during an `async with` block, for servers that do not run the lifespan of an app, such as one that mounts it."""
        return self._app.router.lifespan_context(self._app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no websockets here"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s, status = time.monotonic(), 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            try:
                scope["stepfold.sessions"] = self._sessions
                scope["stepfold.caller"] = self._caller(scope)
            except HttpRefusal as refused:
                await answer(refused, scope["path"])(scope, receive, guarded)
            else:
                await self._app(scope, receive, guarded)
        finally:  # logs the path's template: the path and the query may hold ids and secrets
            route = scope.get("stepfold.route", "-")
            logger.info("%.20s %s %d %.1f ms", scope["method"], route, status, (time.monotonic() - began_s) * 1000)

    def _caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        _check_size(scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            raise HttpRefusal(421, "host-unknown", "this server does not serve the host that the request names")
        token, cookie = _bearer(headers), cookie_of(scope)
        if scope["method"] not in SAFE and token is None and not _same_origin(headers, hosts[0], with_cookie=cookie is not None):
            raise HttpRefusal(403, "cross-site", "a page of another site may not ask for this")
        if self._authenticate is None or self._sessions is None:
            if not _from_here(scope):
                raise HttpRefusal(403, "not-local", "without authentication this server answers callers on its own machine only")
            return EVERYTHING
        if token is None:
            return (None if cookie is None else self._sessions.caller(cookie)) or NOBODY
        caller = self._authenticate(token)
        if caller is None:
            raise HttpRefusal(401, "unauthenticated", "the token is not valid", headers={"WWW-Authenticate": "Bearer"})
        return caller


def _or_503(authenticate: Authenticate) -> Authenticate:
    """`authenticate`, with a 503 where it raises: the server lets nobody in while it cannot identify callers."""

    def asked(token: str) -> Caller | None:
        try:
            return authenticate(token)
        except (ConfigError, OSError) as error:
            logger.error("nobody can be authenticated: %s", error)  # noqa: TRY400  # the text has file and line
            raise HttpRefusal(503, "authentication-unavailable", "the tokens cannot be read; the server's log says why") from None

    return asked


def _check_size(scope: Scope) -> None:
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > TARGET_BYTES:
        raise HttpRefusal(414, "target-too-long", f"path and query are longer than {TARGET_BYTES:,} bytes")
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if len(scope["headers"]) > MOST_HEADERS or size > HEADER_BYTES:
        raise HttpRefusal(431, "headers-too-large", f"more than {MOST_HEADERS} headers, or {HEADER_BYTES:,} bytes of them")


def _bearer(headers: Headers) -> str | None:
    """The bearer token of the Authorization header; None without that header. Raises HttpRefusal for another scheme."""
    sent = headers.getlist("authorization")
    if not sent:
        return None
    scheme, _, token = sent[0].partition(" ")
    if len(sent) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise HttpRefusal(
            401, "unauthenticated", "send one header Authorization: Bearer ...", headers={"WWW-Authenticate": "Bearer"}
        )
    return token.strip()


def _same_origin(headers: Headers, host: str, *, with_cookie: bool) -> bool:
    """Whether the request cannot come from a page of another site. Browsers say in headers which site sends; other clients send
    neither these headers nor a cookie."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        scheme, _, sender = origin.partition("://")
        return scheme in ("http", "https") and sender.lower() == host.strip().lower()
    return not with_cookie


def _from_here(scope: Scope) -> bool:
    """Whether the connection comes from this machine. The Host header proves nothing: any client can send any name."""
    client: tuple[str, int] | None = scope.get("client")
    if client is None or client[0] == "":  # a Unix socket
        return True
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _name(host: str) -> str:
    """The host without its port."""
    name = host.strip().lower()
    head, colon, port = name.rpartition(":")
    return head if colon and port.isdecimal() and not head.endswith(":") else name
