"""Asks the code of a run a question: a function that reads its state, where its code stands. Pure, except for the user's code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..errors import NonDeterminism
from .execution import Execution
from .frames import frames_of, source_of

T = TypeVar("T")


def ask(execution: Execution, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a question to its end, on the loop and in the context of the code, which `advance` has brought to where it stands.

    After that the execution can only be closed. Raises NonDeterminism if the question waits, asks for an operation, or does what
    only a step may do, also if it catches the error of that; CancelledError if it cancels itself; else what it raises.
    """
    loop = execution.loop
    loop.asked = loop.attended = True
    task: asyncio.Task[T] = execution.inside(loop.create_task, question(), name=f"a query of {execution.run.id}")
    loop.run_until_idle()
    loop.attended = False
    loop.check()
    if not task.done():
        raise _waits(task)
    return task.result()


def _waits(task: asyncio.Task[Any]) -> NonDeterminism:
    source = source_of(reversed(list(frames_of(task))))
    return NonDeterminism(
        "it waits for something, and nothing happens while a query reads: return what is there now"
        + (f" (at {source[0]})" if source else ""),
        found="a query that waits",
        source=source,
    )
