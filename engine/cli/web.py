"""The HTTP server in a command. It listens on a socket that the command has bound, and leaves signals to the command."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from .problems import Exit, Problem

if TYPE_CHECKING:
    from ..http.guard import Guard

GRACE_S = 1
"""How long a stopping server waits for answers under way: streams never end by themselves."""


def http_app() -> Callable[..., Guard]:
    """`stepfold.http.app`. Raises Problem if the packages of `stepfold[web]` are not installed."""
    with needing_web():
        from ..http import app
    return app


@contextlib.contextmanager
def needing_web() -> Generator[None]:
    """A block that imports modules of `stepfold.http`. Raises Problem if packages are missing."""
    try:
        yield
    except ImportError as error:
        raise Problem(f"the server needs more packages ({error}): pip install 'stepfold[web]'") from None


def bound(host: str, port: int, *, or_any: bool = False) -> socket.socket:
    """A socket that listens at this address. `or_any`: at any free port if this one is taken. Raises Problem if it cannot
    listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in (port, 0) if or_any else (port,):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, number))
            found.listen(1024)
        except OSError as error:
            found.close()
            if number == 0 or not or_any:
                raise Problem(f"the server cannot listen at {host} port {port}: {error.strerror or error}", Exit.LOG) from None
        else:
            return found
    raise AssertionError


def settle() -> None:
    """Exclude all objects so far from garbage collection (`gc.freeze`): full collections would delay all answers."""
    gc.collect()
    gc.freeze()


def address(listening: socket.socket) -> str:
    """The URL of a server that listens here."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_http(app: Guard, listening: socket.socket) -> None:
    """Serve until cancelled; then finish answers under way, and close the app."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="on")
    server = Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.wait([serving])
