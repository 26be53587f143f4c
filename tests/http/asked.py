"""Requests to an ASGI application, byte for byte as a test writes them, and answers from their first message on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepfold.http.guard import Guard

LOOK_S = 1.0
"""For how long a test reads an answer that does not end, such as a stream."""
DEADLINE_S = 30
"""For how long a test waits for the first message of an answer; only a failing one waits this long."""


@dataclass
class Answered:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


async def ask(
    app: Guard,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Sequence[tuple[str, str]] = (),
    host: str | None = "localhost",
    body: bytes = b"",
    scheme: str = "http",
    client: tuple[str, int] | None = ("127.0.0.1", 1),
    only_status: bool = False,
) -> Answered:
    """The answer. `only_status`: up to its first message, which has status and headers."""
    sent = [*((("host", host),) if host is not None else ()), *headers]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent],
        "client": client,
        "server": ("127.0.0.1", 80),
    }
    answered = Answered()
    begun, done = asyncio.Event(), asyncio.Event()
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not parts:
            await done.wait()
            return {"type": "http.disconnect"}
        return parts.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            begun.set()
            if only_status:
                done.set()
        else:
            answered.body += message.get("body", b"")
            if not message.get("more_body", False):
                done.set()

    asking = asyncio.create_task(app(scope, receive, send))
    beginning, waiting = asyncio.create_task(begun.wait()), asyncio.create_task(done.wait())
    await asyncio.wait({asking, beginning}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait({asking, waiting}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    for task in (beginning, waiting, asking):
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert answered.status, f"{method} {path} has no answer"
    return answered
