"""`stepfold serve`: the HTTP API and the dashboard of a log, without a worker."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import remark
from .problems import Exit, Problem
from .projection import DatabaseOption, ProjectionsOption, yours
from .target import AppOption, UrlOption, check_reachable, client_of
from .web import GRACE_S, address, bound, needing_web, settle
from .worker import log_to_stderr

if TYPE_CHECKING:
    from ..http.sessions import Authenticate

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  # names that no caller may use


def serve(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port to listen on; 0 chooses a free one.")] = 8080,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="FILE", help="Serve callers with a token of this file only: stepfold token create."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="A name, without a port, by which callers reach the server."),
    ] = None,
    jwt_key: Annotated[
        Path | None,
        typer.Option("--jwt-key", metavar="FILE", help="Serve callers with a JWT, too, that this key signed: PEM, or JWKS."),
    ] = None,
    jwt_issuer: Annotated[str | None, typer.Option("--jwt-issuer", metavar="URL", help="The issuer of the JWTs.")] = None,
    jwt_audience: Annotated[str | None, typer.Option("--jwt-audience", metavar="NAME", help="The audience of the JWTs.")] = None,
    jwt_roles: Annotated[str, typer.Option("--jwt-roles", metavar="CLAIM", help="The claim with the roles.")] = "roles",
    projection: ProjectionsOption = None,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Serve the HTTP API and the dashboard of a log until Ctrl-C or SIGTERM; it needs no worker."""
    with needing_web():
        import uvicorn

        from ..http import SignedTokens, TokenFile
        from ..http import app as http_app
        from ..http.guard import LOCAL_HOSTS
        from ..http.sessions import any_of
    _check_names(host, allowed_host or (), authenticates=tokens is not None or jwt_key is not None)
    ways: list[Authenticate] = [] if tokens is None else [TokenFile(tokens)]
    if jwt_key is not None:
        if not jwt_issuer or not jwt_audience:
            raise Problem("--jwt-key needs --jwt-issuer and --jwt-audience: a key signs for others, too")
        ways.append(SignedTokens(jwt_key, issuer=jwt_issuer, audience=jwt_audience, roles=jwt_roles))
    elif jwt_issuer or jwt_audience:
        raise Problem("--jwt-issuer and --jwt-audience need --jwt-key")
    client, projections = client_of(app, url), yours(projection)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(Exit.OK))  # uvicorn raises the signal again after it has stopped
    check_reachable(client, may_create=True)
    log_to_stderr()
    name = f"[{host}]" if ":" in host else host
    hosts = [*LOCAL_HOSTS, *(() if host in EVERY_ADDRESS else (name,)), *(allowed_host or ())]
    authenticate = any_of(ways) if ways else None
    asgi = http_app(client, database=database, projections=projections, hosts=hosts, authenticate=authenticate)
    server = uvicorn.Server(
        uvicorn.Config(
            asgi, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_S, lifespan="on"
        )
    )
    with bound(host, port) as listening:
        remark(f"serving {client.log.name} at {address(listening)}")
        settle()
        server.run(sockets=[listening])
    if not server.started:
        raise Problem("the server could not start, as was logged", Exit.LOG)


def _check_names(host: str, allowed: Sequence[str], *, authenticates: bool) -> None:
    """Raises Problem for an address that needs authentication, and for a host name that no client can send."""
    if host not in LOOPBACK and not authenticates:
        raise Problem(
            f"--host {host}: without --tokens the server listens on loopback only ({', '.join(LOOPBACK)}), "
            "because everybody who reaches it is an admin"
        )
    for one in allowed:
        if not re.fullmatch(r"[^/:@\s]+|\[[0-9A-Fa-f:.]+\]", one):
            raise Problem(f"--allowed-host {one}: give a name without scheme and port, such as runs.example.com")
