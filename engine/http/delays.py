"""How far the tables are behind the log, in records and in seconds, and whether the delay grows."""

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
"""The trend compares a delay with the oldest one measured within this time."""
NOISE_S = 0.5
"""A smaller difference counts as steady."""

Trend = Literal["growing", "steady", "shrinking"]


class Delay(NamedTuple):
    """How far the tables are behind in one partition: they hold everything below `position`, and lack `records`.

    `seconds`: the age of the first record that they lack; 0 if they lack none, None if the log does not say. `trend` of
    `seconds`; None for the first measurement.
    """

    position: int
    records: int
    seconds: float | None
    trend: Trend | None

    @property
    def words(self) -> str:
        """The delay in words, such as `12 s behind, growing`."""
        if not self.records:
            return "up to date"
        behind = f"{self.records:,} records behind" if self.seconds is None else f"{self.seconds:,.0f} s behind"
        return behind if self.trend is None else f"{behind}, {self.trend}"


class Lags:
    """The lags of the projections. All callers share one read of the log a second."""

    def __init__(self, projections: ProjectionRunner) -> None:
        self._projections = projections
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[list[Lag]] | None = None
        self._last: tuple[float, list[Lag]] | None = None

    async def recent(self) -> list[Lag]:
        """As `get`, but returns the last answer at once if it is at most `RECENT_S` old."""
        if self._last is None or time.monotonic() - self._last[0] > RECENT_S:
            return await self.get()
        self._ask()
        return self._last[1]

    async def get(self) -> list[Lag]:
        """The lags now. Raises ConfigError, and LogUnavailable, also if there is no answer within `PATIENCE_S`."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._ask())
        except TimeoutError:
            raise LogUnavailable(f"the log or the projections' database has not answered for {PATIENCE_S:g} s") from None

    def _ask(self) -> asyncio.Task[list[Lag]]:
        """The read that is under way or at most `FRESH_S` old; else a new one."""
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
    """Measures the delays of one log's tables, and remembers them for the trend. `passed`: a monotonic clock, in seconds."""

    def __init__(self, log: Log, passed: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._passed = passed
        self._looks: dict[int, deque[tuple[float, float]]] = {}

    async def of(self, lags: Sequence[Lag]) -> dict[int, Delay]:
        """The delay of each partition: that of the projection that is furthest behind."""
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
        if not looks or now - looks[-1][0] >= WINDOW_S / 60:  # however many callers ask, at most 61 are kept
            looks.append((now, seconds))
        if looks[0][0] == now:
            return None
        more = seconds - looks[0][1]
        return "steady" if abs(more) < NOISE_S else "growing" if more > 0 else "shrinking"
