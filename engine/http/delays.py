"""How far the tables are behind the log in time, and whether they catch up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from stepfold.projections import Lag

from ..errors import ConfigError, LogUnavailable
from ..log import Log, time_at
from .routing import HttpCall
from .service import PartitionBounds

WINDOW_S = 30.0
"""The trend is the difference to the oldest look of this span."""
NOISE_S = 0.5
"""A smaller difference is not a trend."""

Trend = Literal["growing", "steady", "shrinking"]


class Delay(NamedTuple):
    """The tables in one partition: they hold everything below `position`, and lack `records`.

    `seconds`: how long ago the first record came that they lack; 0: they lack none; None: the log does not tell. `trend` of that
    since the looks before; None: there was none.
    """

    position: int
    records: int
    seconds: float | None
    trend: Trend | None

    @property
    def words(self) -> str:
        """For people."""
        if not self.records:
            return "up to date"
        behind = f"{self.records:,} records behind" if self.seconds is None else f"{self.seconds:,.0f} s behind"
        return behind if self.trend is None else f"{behind}, {self.trend}"


def delays_of(call: HttpCall) -> Delays:
    """Those of the server's log."""
    return call.request.app.state.delays


def delay_in(one: PartitionBounds, delays: Mapping[int, Delay]) -> Delay:
    """The delay in a partition: that of all its records if no table has begun with it."""
    return delays.get(one.partition) or Delay(one.start, one.end - one.start, None, None)


class Delays:
    """Looks at the tables of one log. `passed`: seconds, from any origin."""

    def __init__(self, log: Log, passed: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._passed = passed
        self._looks: dict[int, deque[tuple[float, float]]] = {}

    async def of(self, lags: Sequence[Lag]) -> dict[int, Delay]:
        """The delay of each partition, of the projection that is behind most."""
        most: dict[int, Lag] = {}
        for lag in lags:
            if lag.partition not in most or lag.position < most[lag.partition].position:
                most[lag.partition] = lag
        found = await asyncio.gather(*map(self._of, most.values()))
        return dict(zip(most, found, strict=True))

    async def _of(self, lag: Lag) -> Delay:
        seconds: float | None = 0.0
        if lag.behind:
            first = None
            with contextlib.suppress(ConfigError, LogUnavailable):  # the projection may have stopped, at an offset of another log
                first = await time_at(self._log, lag.partition, lag.position)
            seconds = None if first is None else max(self._log.now() - first, 0) / 1000
        return Delay(lag.position, lag.behind, seconds, None if seconds is None else self._trend(lag.partition, seconds))

    def _trend(self, partition: int, seconds: float) -> Trend | None:
        now = self._passed()
        looks = self._looks.setdefault(partition, deque())
        while looks and looks[0][0] < now - WINDOW_S:
            looks.popleft()
        if not looks or now - looks[-1][0] >= WINDOW_S / 60:  # many may look, and the memory is bounded
            looks.append((now, seconds))
        if looks[0][0] == now:
            return None
        more = seconds - looks[0][1]
        return "steady" if abs(more) < NOISE_S else "growing" if more > 0 else "shrinking"
