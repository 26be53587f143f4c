"""How far the tables are behind, in time, and the trend of that."""

from __future__ import annotations

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
