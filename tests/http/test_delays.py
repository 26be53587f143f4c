"""How far the tables are behind, in time, and the trend of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eventually import eventually
from http_served import served

from stepfold import Client
from stepfold.client.requests import started
from stepfold.drivers import MemoryDriver
from stepfold.http.delays import Delay, Delays
from stepfold.projections import Lag


class Time:
    now_ms = 1_000_000
    passed_s = 0.0


async def test_the_delay_is_that_of_the_first_record_that_is_lacking() -> None:
    time = Time()
    log = MemoryDriver(clock=lambda: time.now_ms)
    delays = Delays(log, lambda: time.passed_s)
    await log.open()
    for number in range(4):
        await log.append(0, [started(f"run-{number}", "any", None, b"1", request=f"{number}", at=0)])
        time.now_ms += 10_000

    async def at(position: int, passed_s: float) -> Delay:
        time.passed_s = passed_s
        lags = [Lag("fast", 0, 4, 4), Lag("slow", 0, position, 4)]
        return (await delays.of(lags))[0]

    assert await at(1, 0) == Delay(1, 3, 30.0, None)
    assert await at(2, 5) == Delay(2, 2, 20.0, "shrinking")
    time.now_ms += 15_000
    grown = await at(2, 10)
    assert grown == Delay(2, 2, 35.0, "growing")
    assert grown.words == "35 s behind, growing"
    assert (await at(4, 12)).words == "up to date"
    assert (await at(4, 60)).trend is None  # what was seen half a minute ago is forgotten
    assert (await at(4, 61)).trend == "steady"
    assert Delay(0, 1200, None, None).words == "1,200 records behind"


async def test_partitions_say_how_far_the_tables_are(tmp_path: Path) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db")
    async with served(client) as browser:
        await client.start_workflow("any", 1, run_id="a")

        async def caught_up() -> list[dict[str, Any]]:
            found = (await browser.get("/v1/partitions")).json()["partitions"]
            return found if any(one["position"] for one in found) and not any(one["behind"] for one in found) else []

        found = await eventually(caught_up)
        assert sum(one["position"] for one in found) == 1
        assert {one["behind_s"] for one in found} == {0}
        assert "up to date" in (await browser.get("/workers")).text
