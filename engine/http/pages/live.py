"""Streams of fragments: the elements of a page, rendered anew when the tables or the run have changed.

A stream holds no queue. It notes that something has changed, and renders the newest state when the socket takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.responses import Response

from ...errors import StepfoldError
from ..problems import HttpRefusal
from ..routing import HttpCall
from ..service import TableNews
from ..streaming import RETRY_MS, EventStream
from .render import text

PAUSE_S = 0.25
STREAMS = 250
"""How many pages one server keeps live."""

View = Callable[[HttpCall], Awaitable[dict[str, Any]]]
"""All that a page shows."""
Mark = Callable[[HttpCall], Awaitable[object]]
"""Something cheap that differs if the page may differ."""


def wanted(call: HttpCall) -> bool:
    """Whether the request asks for the stream of a page."""
    return call.request.headers.get("accept", "") == "text/event-stream"


async def stream(call: HttpCall, template: str, view: View, mark: Mark | None = None) -> Response:
    """The page's fragments, as they change. Errors of the first rendering are raised."""
    news = call.service.news
    if news.listeners >= STREAMS:
        raise HttpRefusal(503, "too-many-streams", f"{STREAMS} pages are live already", headers={"Retry-After": "10"})
    number = news.number
    first = await view(call)
    return EventStream(_fragments(call, template, view, mark, news, number, first))


async def _fragments(
    call: HttpCall, template: str, view: View, mark: Mark | None, news: TableNews, number: int, context: dict[str, Any]
) -> AsyncGenerator[ServerSentEvent]:
    now = context["now"]  # ages are the browser's to count: they are no news
    news.listeners += 1
    try:
        sent, last = "", None
        while True:
            fragment = text(template, context | {"now": now})
            if fragment != sent:
                sent = fragment
                yield ServerSentEvent(fragment, retry=RETRY_MS)
                await asyncio.sleep(PAUSE_S)
            if context.get("over"):
                yield ServerSentEvent("", event="over")
                return
            while True:
                number = await news.after(number)
                if mark is None:
                    break
                before, last = last, await mark(call)
                if last != before:
                    break
            context = await view(call)
    except (StepfoldError, HttpRefusal):
        return  # the browser connects again
    finally:
        news.listeners -= 1
