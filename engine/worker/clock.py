"""The clock that the timers of an owner go by.

The clock of a machine may be set, and be wrong for a moment. What this owner was told to wait for so long, it waits for by
what has passed, whatever the clock says meanwhile. All else, dates and what another owner had begun, waits for the clock: one
that was set back is believed at once, so that nothing comes early; one that jumps ahead after a minute.
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
"""A clock that is no further off than this was not set, but corrected as clocks are all the time."""
DOUBT_MS = 60_000


_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def passing(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Seconds that pass, while the machine is suspended, too, where that can be told; the loop's own where it has its own."""
    if _BOOT is None or getattr(loop, "virtual", False):
        return loop.time
    return partial(time.clock_gettime, _BOOT)


class Clock:
    """`wall` gives ms since 1970, UTC, as the machine says; `passed` seconds, which are never set."""

    def __init__(self, wall: Callable[[], int], passed: Callable[[], float]) -> None:
        self._wall = wall
        self._passed = passed
        self._offset = wall() - self.elapsed()  # of the wall clock, as far as it is believed
        self._ahead_since: int | None = None

    def elapsed(self) -> int:
        """What has passed since some time or other, in ms."""
        # A microsecond of tolerance: 0.3 s made of 0.1 s and 0.2 s is 300 ms.
        return math.floor(self._passed() * 1000 + 0.001)

    def now(self) -> int:
        """Ms since 1970, UTC, as far as the machine is believed."""
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
    """What an owner wakes up for: runs with what they wait for, by what has passed or by the clock.

    `is_there` says whether there is such a run: for one that is gone nobody wakes up.
    """

    def __init__(self, clock: Clock, is_there: Callable[[str], bool]) -> None:
        self._clock = clock
        self._lasting = Timers(is_there)  # due by what has passed
        self._dates = Timers(is_there)

    def __len__(self) -> int:
        return len(self._lasting) + len(self._dates)

    def clear(self) -> None:
        """Drop all."""
        self._lasting.clear()
        self._dates.clear()

    def set(self, at: int, run_id: str, step_id: str, elapsed: int | None = None) -> bool:
        """Ring at a time, ms since 1970; or, where this owner was told how long to wait, once so much has `elapsed`.

        Whether it may be the next one of all. One for a time that never comes is none.
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
        """How long until the next one, as far as is known; None: there is none."""
        left_ms: list[int] = []
        if self._lasting:
            left_ms.append(self._lasting.first - self._clock.elapsed())
        if self._dates:
            left_ms.append(self._dates.first - self._clock.now())
        return max(min(left_ms) / 1000, 0.0) if left_ms else None

    def due(self, limit: int) -> Iterator[tuple[int, str, str]]:
        """Take out what is due by now, up to `limit`: the time that it was set for, run and step."""
        elapsed, now = self._clock.elapsed(), self._clock.now()
        for _ in range(limit):
            if self._lasting and self._lasting.first <= elapsed:
                yield self._lasting.pop()
            elif self._dates and self._dates.first <= now:
                yield self._dates.pop()
            else:
                return
