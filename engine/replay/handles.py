"""Callbacks of the deterministic loop: those that are ready, and timers."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import DeterministicLoop


class Handle:
    """A callback in the ready queue."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def get_context(self) -> contextvars.Context:
        return self.context


class Timer(Handle):
    """A durable timer, which the code made directly or through `sleep`, `timeout`, `wait_for` and the like.

    `number` counts the timers of the loop from 1. `delay_s`: seconds from the loop's time at its making, above 0. (A timer
    without a delay has number 0 and is not durable.)
    """

    __slots__ = ("_loop", "_when", "delay_s", "fired", "number", "reported")

    def __init__(
        self,
        loop: DeterministicLoop,
        number: int,
        delay_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        super().__init__(callback, args, context)
        self._loop = loop
        self._when = loop.time() + delay_s
        self.number = number
        self.delay_s = delay_s
        self.reported = False
        self.fired = False

    @property
    def id(self) -> str:
        """`@timer`, `@timer#2`, …"""
        return "@timer" if self.number == 1 else f"@timer#{self.number}"

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        # Python 3.11 cancels the handle of a timer that has fired, later versions do not. Both must behave alike.
        if self.callback is not None and self.reported and not self.fired:
            self._loop.timer_cancelled(self)
        super().cancel()
