"""The timers of the open operations of a partition, such as sleeps, and one call of the event loop for the next one.

`Timers.arm` sets those of a run that is in memory, `Timers.add` one of a run that a new owner has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from ...core.state import Open, RunState
from ...values.times import NEVER_MS, within
from ..clock import Clock
from ..heap import TimerHeap
from .ownership import Ownership

TIMER_CHECK_S = 60.0
"""The clock may jump, so the owner looks at a timer again this often, or after a thousandth of the time left if that is longer.
"""
RINGS = 100
"""How many timers that are due ring in one turn of the loop."""


class TimerQueue:
    """Timers in two heaps: those that are due by elapsed time, and those that are due by the clock.

    `is_there` says whether a run exists: timers of other runs are dropped.
    """

    def __init__(self, clock: Clock, is_there: Callable[[str], bool]) -> None:
        self._clock = clock
        self._lasting = TimerHeap(is_there)  # due by elapsed time
        self._dates = TimerHeap(is_there)

    def __len__(self) -> int:
        return len(self._lasting) + len(self._dates)

    def clear(self) -> None:
        """Drop all timers."""
        self._lasting.clear()
        self._dates.clear()

    def set(self, at: int, run_id: str, step_id: str, elapsed: int | None = None) -> bool:
        """Set a timer for `at`, ms since 1970, or, if this owner measures the duration, for `elapsed` as `Clock.elapsed` tells.

        Returns whether it may be the next timer to fire. Sets no timer for a time that never comes.
        """
        at = within(at)
        if at == NEVER_MS:
            return False
        if elapsed is None:
            self._dates.push(at, run_id, step_id)
            return self._dates.first == at
        self._lasting.push(elapsed, run_id, step_id, at)
        return self._lasting.first == elapsed

    def left_s(self) -> float | None:
        """Seconds until the next timer; None without timers."""
        left_ms = self._left_ms()
        return None if left_ms is None else max(left_ms / 1000, 0.0)

    def late_s(self) -> float:
        """For how many seconds the next timer has been due; 0: none is due."""
        return max(-(self._left_ms() or 0) / 1000, 0.0)

    def _left_ms(self) -> int | None:
        left_ms: list[int] = []
        if self._lasting:
            left_ms.append(self._lasting.first - self._clock.elapsed())
        if self._dates:
            left_ms.append(self._dates.first - self._clock.now())
        return min(left_ms) if left_ms else None

    def due(self, limit: int) -> Iterator[tuple[int, str, str]]:
        """Remove up to `limit` timers that are due; yields their `at`, run id and step id."""
        elapsed, now = self._clock.elapsed(), self._clock.now()
        for _ in range(limit):
            if self._lasting and self._lasting.first <= elapsed:
                yield self._lasting.pop()
            elif self._dates and self._dates.first <= now:
                yield self._dates.pop()
            else:
                return


class Timers:
    """The timers of the open operations of one partition.

    `ring` is called with the time (ms), run id and step id of each timer that is due.
    """

    def __init__(self, ownership: Ownership, ring: Callable[[int, str, str], None]) -> None:
        self._ownership = ownership
        self._loop = ownership.loop
        self._ring = ring
        self._queue = TimerQueue(ownership.clock, self._is_there)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # kept here: on uvloop the handle of a call without delay has no `when()`

    def __len__(self) -> int:
        return len(self._queue)

    def late_s(self) -> float:
        """For how many seconds the next timer has been due; 0: none is due."""
        return self._queue.late_s()

    def arm(self, run: RunState, step_id: str | None) -> None:
        """Set the timers of an operation that has begun, if it has any."""
        op = run.open.get(step_id) if step_id else None
        if op is None:
            return
        assert step_id is not None
        due = op.due_at
        if due is not None:
            live = self._ownership.live.get(run.id)
            asked = live.execution.ops.get(step_id) if live is not None else None
            if self._queue.set(due, run.id, step_id, asked.elapsed if asked is not None else None):
                self.start()
        self.arm_by_log(op, run.id, step_id, run.now)

    def arm_by_log(self, op: Open, run_id: str, step_id: str, log_now: int) -> None:
        """Set the timer of an operation by the log's clock, if it has one. `log_now`: what this clock says now, ms since 1970.

        The owner measures the time that is left, whatever its own clock says.
        """
        due = op.due_by_log
        if due is not None and self._queue.set(due, run_id, step_id, self._ownership.clock.elapsed() + max(due - log_now, 0)):
            self.start()

    def wake_at(self, at: int, run_id: str, step_id: str, elapsed: int | None = None) -> None:
        """Set a timer that looks at an operation again at `at`, ms since 1970; `elapsed` as of `TimerQueue.set`."""
        if self._queue.set(at, run_id, step_id, elapsed):
            self.start()

    def add(self, at: int, run_id: str, step_id: str) -> None:
        """Add one of many timers; the caller then calls `start` once for all."""
        self._queue.set(at, run_id, step_id)

    def start(self) -> None:
        """Wake at the next timer."""
        left_s = self._queue.left_s() if self._ownership.active else None
        if left_s is None:
            return
        delay_s = min(left_s, max(TIMER_CHECK_S, left_s / 1000))
        at = self._loop.time() + delay_s
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_later(delay_s, self._due), at

    def stop(self) -> None:
        """Do not wake any more, until the next `start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def clear(self) -> None:
        """Drop all timers."""
        self._queue.clear()

    def _is_there(self, run_id: str) -> bool:
        state = self._ownership.state
        return state is not None and run_id in state.runs

    def _due(self) -> None:
        self._timer = None
        if not self._ownership.active:
            return
        for at, run_id, step_id in self._queue.due(RINGS):
            self._ring(at, run_id, step_id)
        self.start()
