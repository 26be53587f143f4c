"""The streams of server-sent events with which routes answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..errors import StepfoldError
from .problems import HttpRefusal
from .service import OpenStreams

logger = logging.getLogger("stepfold.http")

PING_S = 15
SEND_S = 20.0
RETRY_MS = 2000
LIFE_S = 600.0
"""After this time the client must connect again, and the server checks its caller again."""


MAX_STREAMS = 100
"""How many streams with readers of their own one server keeps open at most."""


class EventStream(Response):
    """A stream of server-sent events. It ends properly, and not by a broken connection: when its source ends, after `LIFE_S`, and
    when log or server stop."""

    def __init__(self, events: AsyncIterable[Any]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__()
        self._events = EventSourceResponse(events, headers=headers, ping=PING_S, send_timeout=SEND_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False

        async def sent(message: Message) -> None:
            nonlocal ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            async with asyncio.timeout(LIFE_S):
                await self._events(scope, receive, sent)
        except TimeoutError:
            pass  # `LIFE_S` is over, or the client does not read
        except StepfoldError as error:
            logger.warning("a stream ends: %s", error)
        if not ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEND_S):
                    await send({"type": "http.response.body", "body": b""})


class CountedStream(Response):
    """A stream with readers of its own. It counts as open until it ends, and then closes its source. Raises HttpRefusal if
    `MAX_STREAMS` are open."""

    def __init__(self, events: AsyncGenerator[Any], streams: OpenStreams) -> None:
        if streams.open >= MAX_STREAMS:
            raise HttpRefusal(503, "too-many-streams", f"{MAX_STREAMS} streams are open", headers={"Retry-After": "5"})
        super().__init__()
        self._events = events
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams.open += 1
        try:
            async with contextlib.aclosing(self._events):
                await EventStream(self._events)(scope, receive, send)
        finally:
            self._streams.open -= 1
