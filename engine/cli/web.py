"""The HTTP server within a command: it listens on a socket that the command has bound, and leaves signals to the command."""

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
"""How long a server that stops waits for answers under way; streams have no end."""


def http_app() -> Callable[..., Guard]:
    """`stepfold.http.app`, where the packages of `stepfold[web]` are there. Raises Problem."""
    with needing_web():
        from ..http import app
    return app


@contextlib.contextmanager
def needing_web() -> Generator[None]:
    """Import modules of `stepfold.http` in the block. Raises Problem."""
    try:
        yield
    except ImportError as error:
        raise Problem(f"the server needs more packages ({error}): pip install 'stepfold[web]'") from None


def bound(host: str, port: int, *, or_any: bool = False) -> socket.socket:
    """A socket that listens at this address. `or_any`: at a free port if this one is taken. Raises Problem."""
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
    """Leave what the process has made so far out of the collection of garbage, whose full turns hold up all answers."""
    gc.collect()
    gc.freeze()


def address(listening: socket.socket) -> str:
    """The URL of a server that listens here."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_http(app: Guard, listening: socket.socket) -> None:
    """Serve until cancelled; then answers under way end, and the app is closed."""
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
