"""Time-outs of a client's calls to its log: one timer for all calls, because hardly any call ever times out."""

from __future__ import annotations

import asyncio
from types import TracebackType

from ..errors import LogUnavailable


class Patience:
    """The calls of one client that wait for its log, in one event loop."""

    def __init__(self, log_name: str) -> None:
        self._log_name = log_name
        self._calls: dict[_Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def within(self, limit_s: float) -> _Call:
        """An `async with` block: after `limit_s` it is cancelled and raises LogUnavailable."""
        return _Call(self, limit_s)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, call: _Call) -> None:
        self._calls[call] = None
        if self._timer is None or call.until < self._timer_at:
            self._look_when_over(call)

    def _look_when_over(self, call: _Call) -> None:
        self.close()
        self._timer, self._timer_at = call.loop.call_at(call.until, self._look), call.until

    def end(self, call: _Call) -> None:
        del self._calls[call]

    def _look(self) -> None:
        self._timer = None
        for call in list(self._calls):
            if not call.over and call.until <= call.loop.time():
                call.over = True
                call.task.cancel()
        left = [call for call in self._calls if not call.over]
        if left:
            self._look_when_over(min(left, key=lambda call: call.until))

    def error(self, limit_s: float) -> LogUnavailable:
        return LogUnavailable(
            f"{self._log_name} has not answered for {limit_s:g} s; it may or may not have accepted the request. Check that it "
            "can be reached; `timeout=` of the call or of the client allows it more time"
        )


class _Call:
    """Like `asyncio.timeout`, at a tenth of the cost."""

    __slots__ = ("_cancelling", "_limit_s", "_patience", "loop", "over", "task", "until")

    def __init__(self, patience: Patience, limit_s: float) -> None:
        self._patience = patience
        self._limit_s = limit_s
        self.over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a client is called in a task")
        self.task = task
        self.loop = task.get_loop()
        self.until = self.loop.time() + self._limit_s
        self._cancelling = task.cancelling()
        self._patience.begin(self)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._patience.end(self)
        if (
            self.over
            and self.task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise self._patience.error(self._limit_s) from error
