"""`stepfold serve`: the HTTP API and the dashboard of a log, without a worker."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import typer

from .output import remark
from .problems import Exit, Problem
from .projection import DatabaseOption
from .target import AppOption, UrlOption, check_reachable, client_of
from .worker import log_to_stderr

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  # names that no caller may use


@contextlib.contextmanager
def needing_web() -> Generator[None]:
    """Import what the extra `web` brings in the block. Raises Problem."""
    try:
        yield
    except ImportError as error:
        raise Problem(f"the server needs more packages ({error}): pip install 'stepfold[web]'") from None


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
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Serve the HTTP API and the dashboard of a log until Ctrl-C or SIGTERM; it needs no worker."""
    with needing_web():
        import uvicorn

        from ..http import TokenFile
        from ..http import app as http_app
        from ..http.guard import LOCAL_HOSTS
    if host not in LOOPBACK and tokens is None:
        raise Problem(
            f"--host {host}: without --tokens the server listens on loopback only ({', '.join(LOOPBACK)}), "
            "because everybody who reaches it is an admin"
        )
    for one in allowed_host or ():
        if not re.fullmatch(r"[^/:@\s]+|\[[0-9A-Fa-f:.]+\]", one):
            raise Problem(f"--allowed-host {one}: give a name without scheme and port, such as runs.example.com")
    authenticate = None if tokens is None else TokenFile(tokens)
    client = client_of(app, url)
    check_reachable(client, may_create=True)
    log_to_stderr()
    name = f"[{host}]" if ":" in host else host
    hosts = [*LOCAL_HOSTS, *(() if host in EVERY_ADDRESS else (name,)), *(allowed_host or ())]
    asgi = http_app(client, database=database, hosts=hosts, authenticate=authenticate)
    config = uvicorn.Config(asgi, host=host, port=port, log_config=None, access_log=False, server_header=False, lifespan="on")
    server = uvicorn.Server(config)
    with listening(host, port) as listener:
        remark(f"serving {client.log.name} at http://{name}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    if not server.started:
        raise Problem("the server could not start, as was logged", Exit.LOG)


def listening(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises Problem."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise Problem(f"--host {host} --port {port}: {error.strerror or error}", Exit.LOG) from None
