"""The one choke point: every request passes it before any route, and gets its caller here. Deny by default."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from .problems import HttpRefusal, answer
from .routing import NOBODY, Caller, Role

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
EVERYTHING = Caller(None, frozenset({Role.ADMIN}))
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
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

Authenticate = Callable[[str], Caller | None]
"""The caller of a bearer token; None for one that is not valid."""


class Guard:
    """Checks host, origin and token, and adds the headers of security.

    `hosts`: the names in Host that are served, without a port. `authenticate`: None serves everybody as an admin, which is only
    for a server that listens on loopback.
    """

    def __init__(self, app: Starlette, hosts: Collection[str], authenticate: Authenticate | None) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._authenticate = authenticate

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """Serve during an `async with` block, for servers that do not run the lifespan of an app, such as one that mounts it."""
        return self._app.router.lifespan_context(self._app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"stepfold.http serves no {scope['type']!r}")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            scope["stepfold.caller"] = self._caller(scope)
        except HttpRefusal as refused:
            await answer(refused, scope["path"])(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:
            raise HttpRefusal(421, "host-unknown", "this server does not serve the host that the request names")
        kind, _, token = headers.get("authorization", "").partition(" ")
        bearer = kind.lower() == "bearer" and bool(token.strip())
        if scope["method"] not in SAFE and not bearer and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HttpRefusal(403, "cross-site", "a page of another site may not ask for this")
        if self._authenticate is None:
            return EVERYTHING
        if not bearer:
            return NOBODY
        found = self._authenticate(token.strip())
        if found is None:
            raise HttpRefusal(401, "unauthenticated", "the token is not valid", headers={"WWW-Authenticate": "Bearer"})
        return found


def _name(host: str) -> str:
    """The host without its port."""
    name = host.strip().lower()
    head, colon, port = name.rpartition(":")
    return head if colon and port.isdecimal() and not head.endswith(":") else name
