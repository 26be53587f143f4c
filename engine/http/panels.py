"""The dashboards that users give their projections: found by name, read off the event loop, one reading for all who look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from stepfold.projections import Panel, PanelRows, Projection, ProjectionRunner, read_panels

REST = 5
"""A dashboard that took a second to read is read again this many seconds later at the earliest."""
LEAST_REST_S = 0.25


@dataclass(slots=True)
class _Reading:
    """The last rows of a dashboard: of the tables after the change `number`. `until`: when it may be read again."""

    number: int
    until: float
    rows: list[PanelRows]


class Dashboards:
    """The dashboards of these projections. `named`: the panels of each, by the name of its projection."""

    def __init__(self, runner: ProjectionRunner, projections: Sequence[Projection]) -> None:
        self.named: dict[str, Sequence[Panel]] = {one.name: one.pages for one in projections if one.pages}
        self._runner = runner
        self._readings: dict[str, _Reading] = {}
        self._locks = {name: asyncio.Lock() for name in self.named}

    async def read(self, name: str, number: int, *, wait: bool) -> list[PanelRows]:
        """The rows of the dashboard's panels, from tables that hold the change `number`.

        While the dashboard rests, `wait` waits for the end of the rest; without it these are the rows of the last reading.
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
