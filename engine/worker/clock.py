"""The clock for the timers of an owner.

The clock of a machine may be set, or be wrong for a moment. If this owner was asked to wait for a duration, it measures
elapsed time, whatever the clock says meanwhile. For everything else (dates, and operations that another owner began) it uses the
clock. It believes a clock that was set back at once, so that no timer is early, and a clock that jumps ahead after a minute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

from ..values.times import NEVER_MS, within
from .timers import Timers

STEADY_MS = 2000
"""A difference up to this is the usual correction of a clock, not a jump."""
DOUBT_MS = 60_000


_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def passing(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Returns a clock in seconds that is never set. It counts suspended time where the system can; a virtual loop has its own."""
    if _BOOT is None or getattr(loop, "virtual", False):
        return loop.time
    return partial(time.clock_gettime, _BOOT)


class Clock:
    """`wall` returns ms since 1970, UTC, by the machine's clock; `passed` returns seconds and is never set."""

    def __init__(self, wall: Callable[[], int], passed: Callable[[], float]) -> None:
        self._wall = wall
        self._passed = passed
        self._offset = wall() - self.elapsed()  # wall clock minus elapsed time, ms, as far as the wall clock is believed
        self._ahead_since: int | None = None

    def elapsed(self) -> int:
        """Elapsed time in ms, from an arbitrary origin."""
        # A microsecond of tolerance: 0.3 s made of 0.1 s and 0.2 s is 300 ms.
        return math.floor(self._passed() * 1000 + 0.001)

    def now(self) -> int:
        """Ms since 1970, UTC; does not follow a jump ahead for `DOUBT_MS`."""
        wall, elapsed = self._wall(), self.elapsed()
        expected = elapsed + self._offset
        if wall - expected > STEADY_MS:
            if self._ahead_since is None:
                self._ahead_since = elapsed
            if elapsed - self._ahead_since < DOUBT_MS:
                return expected
        self._ahead_since = None
        self._offset = wall - elapsed
        return wall


class Alarms:
    """The timers of an owner, by elapsed time or by the clock.

    `is_there` says whether a run exists: timers of other runs are dropped.
    """

    def __init__(self, clock: Clock, is_there: Callable[[str], bool]) -> None:
        self._clock = clock
        self._lasting = Timers(is_there)  # due by elapsed time
        self._dates = Timers(is_there)

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
