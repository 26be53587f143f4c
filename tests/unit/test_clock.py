"""The clock that timers go by: what lasts so long lasts so long, whatever the machine's clock does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from random import Random

import pytest

from stepfold.testing.virtual import run_virtual
from stepfold.values.times import NEVER_MS
from stepfold.worker.clock import DOUBT_MS, Clock, passing
from stepfold.worker.owner.timers import TimerQueue

HOUR = 3_600_000
START = 1_900_000_000_000


class Machine:
    """`passed_ms` since it began; `off_ms`: how far its clock is off."""

    def __init__(self) -> None:
        self.passed_ms = 0
        self.off_ms = 0
        self.clock = Clock(self.wall, lambda: self.passed_ms / 1000)
        self.timers = TimerQueue(self.clock, lambda run_id: True)

    def wall(self) -> int:
        return START + self.passed_ms + self.off_ms

    def last(self, ms: int, step_id: str) -> None:
        """As an owner does what is asked to last so long."""
        self.timers.set(self.clock.now() + ms, "r", step_id, self.clock.elapsed() + ms)

    def ring(self, limit: int = 100) -> list[str]:
        return [step_id for _, _, step_id in self.timers.due(limit)]


def test_what_lasts_so_long_lasts_so_long() -> None:
    for jump in (-HOUR, HOUR, -1_000_000 * HOUR, 1_000_000 * HOUR):
        machine = Machine()
        machine.last(5_000, "before")
        machine.off_ms = jump
        machine.last(300, "after")
        assert machine.timers.left_s() == 0.3
        for passed_ms, rings in ((299, []), (1, ["after"]), (4_699, []), (1, ["before"]), (HOUR, [])):
            machine.passed_ms += passed_ms
            assert machine.ring() == rings


def test_a_date_waits_for_the_clock() -> None:
    machine = Machine()
    machine.timers.set(START + 10_000, "r", "date")
    machine.passed_ms = 9_999
    machine.off_ms = -5_000
    assert machine.ring() == [] and machine.timers.left_s() == 5.001
    machine.passed_ms += 5_001
    assert machine.ring() == ["date"]


def test_a_clock_that_was_ahead_for_a_moment_brings_no_date() -> None:
    machine = Machine()
    machine.timers.set(START + HOUR, "r", "date")
    for _ in range(10):
        machine.off_ms = 2 * HOUR
        assert machine.ring() == []
        machine.passed_ms += DOUBT_MS - 1
        assert machine.ring() == [] and machine.clock.now() == START + machine.passed_ms
        machine.off_ms = 0
        assert machine.ring() == []


def test_a_clock_that_stays_ahead_is_believed() -> None:
    machine = Machine()
    machine.timers.set(START + HOUR, "r", "date")
    machine.off_ms = 2 * HOUR
    assert machine.ring() == []
    machine.passed_ms += DOUBT_MS
    assert machine.ring() == ["date"] and machine.clock.now() == machine.wall()


def test_a_clock_that_is_corrected_a_little_is_believed_at_once() -> None:
    machine, random = Machine(), Random(1)
    for _ in range(1000):
        machine.passed_ms += random.randrange(100_000)
        machine.off_ms += random.randrange(-2_000, 2_001)
        assert machine.clock.now() == machine.wall()


def test_timers_of_both_clocks_are_due_in_portions_and_are_known_for_what_they_were_set_for() -> None:
    machine = Machine()
    assert machine.timers.left_s() is None
    machine.last(1_000, "a")
    machine.timers.set(START + 1_000, "r", "b")
    machine.last(2_000, "c")
    machine.off_ms = -500
    machine.passed_ms = 3_000
    assert machine.ring(1) == ["a"] and machine.timers.left_s() == 0.0
    assert list(machine.timers.due(9)) == [(START + 2_000, "r", "c"), (START + 1_000, "r", "b")]
    machine.last(1, "d")
    machine.timers.clear()
    assert machine.timers.left_s() is None


def test_a_timer_may_be_for_any_time() -> None:
    machine = Machine()
    for at in (2**64, NEVER_MS, NEVER_MS + 1):
        assert not machine.timers.set(at, "r", "never")
    assert machine.timers.left_s() is None
    assert machine.timers.set(-(2**64), "r", "at once")
    assert machine.ring() == ["at once"]


def test_time_passes_by_the_loop_where_it_has_a_time_of_its_own() -> None:
    async def main() -> float:
        passed = passing(asyncio.get_running_loop())
        await asyncio.sleep(1e6)
        return passed()

    assert run_virtual(main()) == 1e6


class CoarseLoop(asyncio.SelectorEventLoop):
    """As uvloop's, whose time is its own and not virtual."""

    def time(self) -> float:
        return super().time() // 1


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, CoarseLoop])
def test_time_passes_for_a_machine_that_is_suspended(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with contextlib.closing(new_loop()) as loop:
        passed = passing(loop)
    assert passed != loop.time or not hasattr(time, "CLOCK_BOOTTIME")
    since, by_hand = passed(), time.monotonic()
    assert passed() - since <= time.monotonic() - by_hand + 1
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(passed() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
