"""Streams of fragments: elements of a page, which the server renders again when the tables or the run have changed.

A stream has no queue. It remembers that something has changed, and renders the newest state when the client is ready for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any
from weakref import WeakKeyDictionary

from sse_starlette import ServerSentEvent
from starlette.responses import Response

from ...errors import StepfoldError
from ..problems import HttpRefusal
from ..routing import HttpCall
from ..service import TableNews
from ..streaming import RETRY_MS, EventStream
from .render import text

PAUSE_S = 0.25
LONGEST_PAUSE_S = 0.75
SHARE = 0.3
"""All live pages together may take this part of one core, unless a page would then wait longer than `LONGEST_PAUSE_S`."""
STREAMS = 250
"""How many pages one server keeps live at most."""

View = Callable[[HttpCall], Awaitable[dict[str, Any]]]
"""Returns the template's values of a page."""
Render = Callable[[int], Awaitable[tuple[str, bool]]]
"""Renders a page's fragment at a time in ms since 1970; and says whether it is the last one."""
Mark = Callable[[HttpCall], Awaitable[object]]
"""Returns a cheap value that differs whenever the page may differ."""


def wanted(call: HttpCall) -> bool:
    """Whether the request asks for the stream of a page."""
    return call.request.headers.get("accept", "") == "text/event-stream"


class _Rendering:
    """One rendering, which all streams share that the same person has opened for the same URL."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms  # fixed, so that a fragment differs only by news: the browser counts ages itself
        self.streams = 0
        self.number = -1  # the fragment shows at least the news up to this number
        self.task: asyncio.Task[tuple[str, bool]] | None = None


class _Renderings:
    """The pages that one server keeps live. The more pages there are, the longer each waits, so that they leave time for other
    work."""

    def __init__(self) -> None:
        self._live: dict[object, _Rendering] = {}
        self._took_s = 0.0  # a moving average of the time to render one

    @property
    def pause_s(self) -> float:
        """How long a stream waits between two fragments."""
        return min(max(PAUSE_S, len(self._live) * self._took_s / SHARE), LONGEST_PAUSE_S)

    @contextlib.contextmanager
    def one(self, key: object, now_ms: int) -> Generator[_Rendering]:
        rendering = self._live.setdefault(key, _Rendering(now_ms))
        rendering.streams += 1
        try:
            yield rendering
        finally:
            rendering.streams -= 1
            if not rendering.streams:
                del self._live[key]

    async def fragment(self, rendering: _Rendering, number: int, news: TableNews, render: Render) -> tuple[str, bool]:
        """A fragment that shows at least the news up to this number, and whether it is the last one."""
        if rendering.task is None or rendering.number < number or _failed(rendering.task):
            rendering.number = news.number
            rendering.task = asyncio.create_task(self._timed(rendering, render))
            rendering.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # no stream may be left
        return await asyncio.shield(rendering.task)

    async def _timed(self, rendering: _Rendering, render: Render) -> tuple[str, bool]:
        began = time.perf_counter()
        try:
            return await render(rendering.now_ms)
        finally:
            self._took_s += (time.perf_counter() - began - self._took_s) / 8


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


_OF: WeakKeyDictionary[TableNews, _Renderings] = WeakKeyDictionary()


async def stream(call: HttpCall, template: str, view: View, mark: Mark | None = None) -> Response:
    """The stream of the page's fragments. Raises errors of the first rendering; later errors end the stream."""
    news = call.service.news
    if news.listeners >= STREAMS:
        raise HttpRefusal(503, "too-many-streams", f"{STREAMS} pages are live already", headers={"Retry-After": "10"})

    async def render(now_ms: int) -> tuple[str, bool]:
        context = await view(call)
        return text(template, context | {"now": now_ms}), bool(context.get("over"))

    renderings = _OF.setdefault(news, _Renderings())
    request = call.request
    key = (
        template,
        request.url.path,
        request.url.query,
        call.caller,
        request.scope.get("root_path"),
        request.headers.get("cookie"),
    )
    now_ms = call.service.client.log.now()
    with renderings.one(key, now_ms) as rendering:
        await renderings.fragment(rendering, news.number, news, render)
    return EventStream(_fragments(call, key, now_ms, render, mark))


async def _fragments(
    call: HttpCall, key: object, now_ms: int, render: Render, mark: Mark | None
) -> AsyncGenerator[ServerSentEvent]:
    news = call.service.news
    renderings, number = _OF[news], news.number
    news.listeners += 1
    try:
        with renderings.one(key, now_ms) as rendering:
            sent, last = "", None
            while True:
                fragment, over = await renderings.fragment(rendering, number, news, render)
                if fragment != sent:
                    sent = fragment
                    yield ServerSentEvent(fragment, retry=RETRY_MS)
                    await asyncio.sleep(renderings.pause_s)
                if over:
                    yield ServerSentEvent("", event="over")
                    return
                while True:
                    number = await news.after(number)
                    if mark is None:
                        break
                    before, last = last, await mark(call)
                    if last != before:
                        break
                    await asyncio.sleep(renderings.pause_s)
    except (StepfoldError, HttpRefusal):
        return  # the browser connects again
    finally:
        news.listeners -= 1
