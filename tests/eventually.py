"""Waiting for what will happen, without saying when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 120.0
"""Only a failing test waits this long."""


async def eventually(look: Callable[[], Awaitable[T]]) -> T:
    """What `look` gives once it is true; AssertionError with its last answer after `DEADLINE_S`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + DEADLINE_S
    while not (found := await look()):
        assert loop.time() < until, f"it did not happen; the last answer was {found!r}"
        await asyncio.sleep(0.002)
    return found
