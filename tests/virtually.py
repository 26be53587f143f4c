"""Tests in virtual time: hours of waiting take no time at all, and to the millisecond."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from stepfold import Client
from stepfold.drivers import MemoryDriver
from stepfold.testing import run_virtual, virtual_clock

T = TypeVar("T")


def virtually(main: Callable[[Client], Coroutine[Any, Any, T]], *, random: Random | None = None) -> T:
    """Run `main` with a client on a memory log, in virtual time."""

    async def inner() -> T:
        return await main(Client(driver=MemoryDriver(clock=virtual_clock), random=random))

    return run_virtual(inner())
