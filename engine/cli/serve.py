"""`stepfold serve`: the HTTP API and the dashboard of a log, without a worker."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import remark
from .problems import Problem
from .projection import DatabaseOption
from .target import AppOption, UrlOption, check_reachable, client_of
from .worker import log_to_stderr

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port to listen on; 0 chooses a free one.")] = 8080,
    database: DatabaseOption = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Serve the HTTP API and the dashboard of a log until Ctrl-C or SIGTERM; it needs no worker."""
    try:
        import uvicorn

        from ..http import app as http_app
    except ImportError as error:
        raise Problem(f"the server needs more packages ({error}): pip install 'stepfold[web]'") from None
    if host not in LOOPBACK:
        raise Problem(f"--host {host}: without authentication the server listens on loopback only ({', '.join(LOOPBACK)})")
    client = client_of(app, url)
    check_reachable(client, may_create=True)
    log_to_stderr()
    server = uvicorn.Server(uvicorn.Config(http_app(client, database=database), host=host, port=port, log_config=None))
    remark(f"serving {client.log.name} at http://{host}:{port}")
    server.run()
