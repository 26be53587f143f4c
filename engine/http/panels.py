"""The dashboards of users' projections, by name. Panels are read off the event loop, once for all readers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from stepfold.projections import Panel, PanelRows, Projection, ProjectionRunner, read_panels

REST = 5
"""After a read of one second, the dashboard rests for this many seconds; longer reads rest longer."""
LEAST_REST_S = 0.25


@dataclass(slots=True)
class _Reading:
    """The last rows of a dashboard, from tables that hold the change `number`. `until`: when the dashboard may be read again, on
    `time.monotonic()`."""

    number: int
    until: float
    rows: list[PanelRows]


class Dashboards:
    """The dashboards of these projections. `named`: projection's name -> panels."""

    def __init__(self, runner: ProjectionRunner, projections: Sequence[Projection]) -> None:
        self.named: dict[str, Sequence[Panel]] = {one.name: one.pages for one in projections if one.pages}
        self._runner = runner
        self._readings: dict[str, _Reading] = {}
        self._locks = {name: asyncio.Lock() for name in self.named}

    async def read(self, name: str, number: int, *, wait: bool) -> list[PanelRows]:
        """The rows of the dashboard's panels, from tables that hold the change `number`.

        While the dashboard rests, `wait` waits until it may be read again; without `wait` the rows are those of the last read.
        Raises KeyError for an unknown name.
        """
        panels = self.named[name]
        async with self._locks[name]:
            last = self._readings.get(name)
            if last is not None and last.number >= number:
                return last.rows
            if last is not None and (rest_s := last.until - time.monotonic()) > 0:
                if not wait:
                    return last.rows
                await asyncio.sleep(rest_s)
            began = time.monotonic()
            rows = await self._runner.query(read_panels, panels)
            ended = time.monotonic()
            self._readings[name] = _Reading(number, ended + max(LEAST_REST_S, REST * (ended - began)), rows)
            return rows
