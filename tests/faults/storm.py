"""Workers killed, paused and sent home at random moments under load, with rogues among the runs.

The verdict is that of an independent reader of the log.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from fleet import Fleet, until
from rawlog import Audit, Counts, History, Raw

WORKERS = 3
KILLS_TO_RESTART = 50
KILLS_TO_OWNER = 5
"""Every fifth kill hits a worker that owns partitions. On a slow machine most of the others die before they own any."""


class Weather(NamedTuple):
    """`rate`: runs started a second; `gaps_s`: between two kills; `pauses_s`: how long a worker is stopped."""

    rate: float
    gaps_s: tuple[float, float]
    pauses_s: float


ON_SQLITE = Weather(rate=12, gaps_s=(0.15, 0.8), pauses_s=1)
ON_KAFKA = Weather(rate=6, gaps_s=(0.3, 1.1), pauses_s=3)
"""With a session timeout of 1 s: who is paused comes back as a zombie."""


async def storm(
    fleet: Fleet,
    history: History,
    weather: Weather,
    is_over: Callable[[], bool],
    tell: Callable[[Audit], None] = lambda audit: None,
    restart: Callable[[], Awaitable[object]] | None = None,
) -> Counts:
    """Kill and replace random workers while runs are started, until `is_over`; wait for all runs; judge what the log holds.

    Some are paused instead, and some told to leave. With `restart` the log itself dies too, at every fiftieth kill, and is back
    when that returns. `tell` hears of the audit all the while. What was read of the log stays in `fleet.folder`, as lines of
    JSON. Raises AssertionError with what was broken, as soon as it is seen.
    """
    audit = Audit()
    history = Kept(history, fleet)
    client = fleet.client(weather.rate, rogues=True)
    for _ in range(WORKERS):
        fleet.worker()
    await until(lambda: audit.counts.ends.total() > 0, history, audit)
    pausing = asyncio.create_task(asyncio.sleep(0))

    def owners() -> list[subprocess.Popen[bytes]]:
        fleet.replace_the_dead()
        pids = audit.owners()
        return [worker for worker in fleet.workers() if worker.pid in pids]

    while not is_over():
        await asyncio.sleep(fleet.random.uniform(*weather.gaps_s))
        audit.follow(await history.news(), history.partitions)
        audit.conclude()
        tell(audit)
        fleet.replace_the_dead()
        if fleet.kills % 10 == 5 and pausing.done():
            pausing = asyncio.create_task(fleet.pause(weather.pauses_s))
        if fleet.kills % 10 == 9:
            fleet.send_home()
            fleet.worker()
        if restart is not None and fleet.kills % KILLS_TO_RESTART == KILLS_TO_RESTART - 1:
            await pausing
            await until(lambda: owners() == fleet.workers(), history, audit)  # a worker does not start where no log is
            fleet.kill()
            await restart()
            fleet.worker()
        if fleet.kills % KILLS_TO_OWNER == 0:
            await until(lambda: bool(owners()), history, audit)
            fleet.kill(fleet.random.choice(owners() or fleet.workers()))
        else:
            fleet.kill()
        fleet.worker()
    await pausing
    counts = await fleet.finish(client, history, audit)
    tell(audit)
    return counts


class Kept:
    """A history whose records stay in the folder of the fleet: a broker's do not outlive the broker."""

    def __init__(self, history: History, fleet: Fleet) -> None:
        self._history = history
        self._path = fleet.folder / "history"
        self.partitions = history.partitions

    async def news(self) -> Sequence[Raw]:
        news = await self._history.news()
        self.partitions = self._history.partitions
        with self._path.open("a") as file:
            for *place, value in news:
                file.write(json.dumps([*place, value.decode(errors="backslashreplace")]) + "\n")
        return news
