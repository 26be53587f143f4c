"""Tells whether a step function runs on the event loop or in a thread, and how long its calls take there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from .annotations import by_function


class Pace:
    """The recent mean duration of a plain function's calls, in seconds."""

    __slots__ = ("mean_s",)

    def __init__(self) -> None:
        self.mean_s = 0.0

    def add(self, took_s: float) -> None:
        """Add the duration of a call."""
        self.mean_s += (took_s - self.mean_s) / 8


ON_LOOP: Final = Pace()
"""The pace of everything that returns a coroutine: an async function, a partial of one, or an object with an async __call__."""


@by_function
def pace_of(fn: Callable[..., Any]) -> Pace:
    """The pace of a function. Functions with the same code share one, because each run may make its lambda anew."""
    while isinstance(fn, partial):
        fn = cast(Callable[..., Any], fn.func)
    if _is_async(fn) or _is_async(getattr(fn, "__call__", None)):  # noqa: B004  # the method itself is wanted
        return ON_LOOP
    if inspect.isroutine(fn):
        return _pace_of_code(getattr(fn, "__code__", fn))
    return _pace_of_code(fn if isinstance(fn, type) else type(fn))


def _is_async(fn: Any) -> bool:
    flags: Any = getattr(getattr(fn, "__code__", None), "co_flags", 0)
    return inspect.iscoroutinefunction(fn) and isinstance(flags, int)  # a Mock(spec=function) has any flag, but no numbers


@by_function
def _pace_of_code(_code: Any) -> Pace:
    return Pace()
