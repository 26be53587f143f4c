"""The event loop that serves runs: uvloop's if it is installed (`stepfold[uvloop]`), else asyncio's.

The code of workflows runs on a loop of its own (`replay/loop.py`), which is the same everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def name() -> str:
    """The name of the loop's implementation, with the version of uvloop."""
    return _found()[0]


def runner() -> asyncio.Runner:
    """A runner for the loop."""
    return asyncio.Runner(loop_factory=_found()[1])


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`."""
    with runner() as one:
        return one.run(main)


def _found() -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.new_event_loop
    return f"uvloop {uvloop.__version__}", uvloop.new_event_loop
