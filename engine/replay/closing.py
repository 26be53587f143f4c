"""Ends the code of tasks that no loop runs any more."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, cast

_enter_task: Callable[[Any, Any], None] = vars(asyncio.tasks)["_enter_task"]
_leave_task: Callable[[Any, Any], None] = vars(asyncio.tasks)["_leave_task"]
# From 3.14 on a future knows the tasks that wait for it, and forgets a task only when the task runs again.
_forget_waiter: Callable[[asyncio.Future[Any], asyncio.Task[Any]], None] = (
    vars(asyncio.futures)["future_discard_from_awaited_by"] if sys.version_info >= (3, 14) else lambda future, task: None
)


def close_task(task: asyncio.Task[Any]) -> None:
    """End the code of a task at its current await. Its `finally` blocks run, but nothing that they await ever comes."""
    coro: Any = task.get_coro()
    chain: list[Coroutine[Any, Any, Any]] = [coro]
    while isinstance(coro := getattr(coro, "cr_await", None), CoroutineType):
        chain.append(cast("Coroutine[Any, Any, Any]", coro))
    # Make it the current task: without one, asyncio.timeout and the like raise, and code that catches everything never ends.
    loop = task.get_loop()
    _enter_task(loop, task)
    try:
        # Innermost first: Python closes an awaited coroutine only once, and complains if it goes on.
        while chain and _stops(chain[-1]):
            del chain[-1]
    finally:
        _leave_task(loop, task)
    if chain:
        keep_for_ever(chain[0])
        return
    # The future and the task refer to each other: break the cycle.
    waiter: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
    if waiter is not None:
        waiter.cancel()
        _forget_waiter(waiter, task)
    _tell_others(task)


def _tell_others(task: asyncio.Task[Any]) -> None:
    """Call the done callbacks that are not asyncio's: a library may stop a thread of the task in one."""
    for callback, context in getattr(task, "_callbacks", None) or ():
        if (getattr(callback, "__module__", None) or "_asyncio").partition(".")[0] not in ("asyncio", "_asyncio"):
            with contextlib.suppress(BaseException):  # the callback may read the task's outcome, and there is none
                context.run(callback, task)


def _stops(coro: Coroutine[Any, Any, Any]) -> bool:
    # Code that catches everything and awaits again needs several errors to stop.
    for _ in range(100):
        try:
            awaited: Any = coro.throw(GeneratorExit)
        except BaseException:  # noqa: BLE001  # stopped; no code is left that could handle the error
            return True
        if isinstance(awaited, asyncio.Future):
            awaited._asyncio_future_blocking = False  # as a task does, so that the code can await it again
    return False


def keep_for_ever(coro: Coroutine[Any, Any, Any]) -> None:
    """Keep code that never stops in memory. Before Python frees a coroutine, at the latest when the process ends, it throws
    GeneratorExit into it, and would then wait for ever."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coro))
