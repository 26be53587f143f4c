"""Tests in virtual time: hours of waiting take no time at all, and to the millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar, cast

from stepfold import Client
from stepfold.drivers import MemoryDriver
from stepfold.testing.virtual import VirtualTimeLoop, run_virtual

T = TypeVar("T")


def now_ms() -> int:
    """The virtual date, inside `virtually`."""
    return cast(VirtualTimeLoop, asyncio.get_running_loop()).clock()


def virtually(main: Callable[[Client], Coroutine[Any, Any, T]], *, random: Random | None = None) -> T:
    """Run `main` with a client on a memory log, in virtual time."""

    async def inner() -> T:
        return await main(Client(driver=MemoryDriver(clock=now_ms), random=random))

    return run_virtual(inner())
