"""The clock by which an owner's timers are due.

The clock of a machine may be set, or be wrong for a moment. If this owner was asked to wait for a duration, it measures
elapsed time, whatever the clock says meanwhile. For everything else (dates, and operations that another owner began) it uses the
clock. It believes a clock that was set back at once, so that no timer is early, and a clock that jumps ahead after a minute.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

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
