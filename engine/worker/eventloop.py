"""The event loop of whoever makes one to serve runs: uvloop's where that is installed (`stepfold[uvloop]`), else asyncio's.

The code of workflows runs on another one (`loop.py`), which is the same everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def name() -> str:
    """Whose it is, with the version."""
    return _found()[0]


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=_found()[1]) as runner:
        return runner.run(main)


def _found() -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.new_event_loop
    return f"uvloop {uvloop.__version__}", uvloop.new_event_loop
