"""Streams of pages that show the same to the same person share one rendering, and see no older state for it."""

from __future__ import annotations

import asyncio

import pytest

from stepfold.http.pages.live import LONGEST_PAUSE_S, PAUSE_S, _Renderings  # pyright: ignore[reportPrivateUsage]  # all of it
from stepfold.http.service import TableNews


async def test_a_rendering_is_shared_until_there_is_news() -> None:
    renderings, news, asked = _Renderings(), TableNews(), 0

    async def render(now_ms: int) -> tuple[str, bool]:
        nonlocal asked
        asked += 1
        number = asked
        await asyncio.sleep(0)
        return f"{number} at {now_ms}", False

    with renderings.one("page", 7) as one, renderings.one("page", 8) as other, renderings.one("another", 9) as third:
        found = await asyncio.gather(*(renderings.fragment(each, 0, news, render) for each in (one, other, one)))
        assert found == [("1 at 7", False)] * 3
        assert await renderings.fragment(third, 0, news, render) == ("2 at 9", False)
        news.number += 1
        assert await renderings.fragment(one, 1, news, render) == ("3 at 7", False)
        assert await renderings.fragment(other, 1, news, render) == ("3 at 7", False)
        assert PAUSE_S <= renderings.pause_s <= LONGEST_PAUSE_S
    with renderings.one("page", 10) as new:
        assert await renderings.fragment(new, 0, news, render) == ("4 at 10", False), "no stream had kept the old one"


async def test_a_rendering_that_failed_is_not_kept() -> None:
    renderings, news = _Renderings(), TableNews()

    async def fails(now_ms: int) -> tuple[str, bool]:
        raise ValueError("no answer")

    async def works(now_ms: int) -> tuple[str, bool]:
        return "a page", True

    with renderings.one("page", 7) as one:
        with pytest.raises(ValueError, match="no answer"):
            await renderings.fragment(one, 0, news, fails)
        assert await renderings.fragment(one, 0, news, works) == ("a page", True)
