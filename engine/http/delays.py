"""How far the tables are behind the log, in records and in time, and whether they catch up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from stepfold.projections import Lag, ProjectionRunner

from ..errors import ConfigError, LogUnavailable
from ..log import Log, time_at

PATIENCE_S = 3.0
FRESH_S = 1.0
RECENT_S = 5.0
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


class Lags:
    """The lags of the projections, asked of the log once a second at most, however many callers want them."""

    def __init__(self, projections: ProjectionRunner) -> None:
        self._projections = projections
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[list[Lag]] | None = None
        self._last: tuple[float, list[Lag]] | None = None

    async def recent(self) -> list[Lag]:
        """As `get`, but does not wait for an answer if the last one is a few seconds old at most."""
        if self._last is None or time.monotonic() - self._last[0] > RECENT_S:
            return await self.get()
        self._ask()
        return self._last[1]

    async def get(self) -> list[Lag]:
        """Raises LogUnavailable, also if there is no answer in `PATIENCE_S`, and ConfigError."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._ask())
        except TimeoutError:
            raise LogUnavailable(f"the log or the projections' database has not answered for {PATIENCE_S:g} s") from None

    def _ask(self) -> asyncio.Task[list[Lag]]:
        """The question that is under way, or the last one if it is fresh."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._asked_s > FRESH_S):
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(self._read())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _read(self) -> list[Lag]:
        began = time.monotonic()
        lags = await self._projections.lag()
        self._last = began, lags
        return lags

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()


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
