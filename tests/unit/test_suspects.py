"""Whose code is announced when, after workers have died."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from stepfold.core.state import RunState
from stepfold.worker.suspects import GROUP, Suspects


class Turns:
    """One at a time, as a worker does it."""

    def __init__(self) -> None:
        self.queue: deque[Suspects] = deque()

    def wait(self, one: Suspects) -> None:
        self.queue.append(one)
        if len(self.queue) == 1:
            one.announce()

    def settled(self, one: Suspects) -> None:
        first = self.queue[0] is one
        self.queue.remove(one)
        if first and self.queue:
            self.queue[0].announce()


class Partition:
    """The owner of one partition: what it was to announce, and its runs."""

    def __init__(self, turns: Turns) -> None:
        self.announced: list[str] = []
        self.suspects = Suspects(turns, self.announce)
        self.runs: dict[str, RunState] = {}

    def announce(self, run_id: str) -> bool:
        if run_id in self.runs:
            self.announced.append(run_id)
        return run_id in self.runs

    def holds(self, run_id: str, suspected: int = 0) -> bool:
        run = self.runs[run_id] = RunState(run_id, "w", "1", None, 0, 0)
        run.suspected = suspected
        return self.suspects.holds(run)

    def decides(self, run_id: str, *, ends: bool = False) -> None:
        """A decision of the run comes back."""
        run = self.runs[run_id]
        run.suspected = 0
        run.ended_at = 1 if ends else None
        self.suspects.seen(run)

    def told(self) -> list[str]:
        found, self.announced[:] = list(self.announced), []
        for run_id in found:  # as the fold does when the announcement comes back
            self.runs[run_id].suspected += 1
            self.suspects.seen(self.runs[run_id])
            assert self.suspects.turn(run_id) and not self.suspects.turn(run_id), "one turn for one announcement"
        return found


@pytest.fixture
async def turns() -> Turns:
    return Turns()


def test_after_a_single_death_nobody_waits() -> None:
    partition = Partition(Turns())
    partition.suspects.begin(1)
    assert not partition.holds("a") and not partition.suspects.waiting


async def test_the_unsuspected_go_together_and_first_then_the_others_one_by_one(turns: Turns) -> None:
    one = Partition(turns)
    one.suspects.begin(2)
    assert all(one.holds(run_id, suspected) for run_id, suspected in (("x", 1), ("a", 0), ("b", 0), ("y", 1)))
    assert one.told() == [], "not before all is known"
    one.suspects.open()
    assert one.told() == ["a", "b"]
    assert not one.suspects.turn("x")
    one.decides("a")
    assert one.told() == []
    one.decides("b", ends=True)
    assert one.told() == ["x"]
    assert not one.holds("x", 3), "its turn is under way"
    one.decides("x")
    assert one.told() == ["y"] and one.suspects.careful
    one.decides("y")
    assert not one.suspects.waiting and not one.suspects.careful and not turns.queue


async def test_who_is_suspected_least_goes_first(turns: Turns) -> None:
    """So those who are innocent go on before their worker dies again."""
    one = Partition(turns)
    one.suspects.begin(3)
    for run_id, suspected in (("x", 3), ("a", 1), ("y", 2), ("b", 1)):
        one.holds(run_id, suspected)
    one.suspects.open()
    for run_id in ("a", "b", "y", "x"):
        assert one.told() == [run_id]
        one.decides(run_id)


async def test_large_groups_are_cut(turns: Turns) -> None:
    one = Partition(turns)
    one.suspects.begin(3)
    for number in range(GROUP + 1):
        one.holds(str(number))
    one.suspects.open()
    first = one.told()
    assert len(first) == GROUP
    for run_id in first:
        one.decides(run_id)
    assert one.told() == [str(GROUP)]


async def test_a_record_before_the_announcement_is_no_turn(turns: Turns) -> None:
    one = Partition(turns)
    one.suspects.begin(2)
    one.holds("a")
    one.suspects.open()
    one.suspects.seen(one.runs["a"])  # a signal, while the announcement is on its way
    assert one.suspects.holds(one.runs["a"]), "it has its turn yet"
    assert one.told() == ["a"] and not one.suspects.holds(one.runs["a"])
    one.decides("a")
    assert not one.announced and not one.suspects.waiting


async def test_who_is_cleared_while_it_waits_has_one_turn(turns: Turns) -> None:
    one = Partition(turns)
    one.suspects.begin(2)
    one.holds("a", 1)
    one.decides("a")  # a sleep of it is over, say
    assert one.suspects.holds(one.runs["a"])
    one.suspects.open()
    assert one.told() == ["a"]
    one.decides("a")
    assert one.told() == [] and not one.suspects.waiting


async def test_partitions_of_one_worker_take_turns(turns: Turns) -> None:
    one, other = Partition(turns), Partition(turns)
    for each in (one, other):
        each.suspects.begin(2)
        each.holds("a", 1)
        each.suspects.open()
    assert one.told() == ["a"] and other.told() == []
    one.suspects.end()
    assert other.told() == ["a"], "who lost its partition keeps nobody waiting"


async def test_who_ends_meanwhile_needs_no_turn(turns: Turns) -> None:
    one, other = Partition(turns), Partition(turns)
    for each, runs in ((one, ("a",)), (other, ("b", "c"))):
        each.suspects.begin(2)
        for run_id in runs:
            each.holds(run_id, 1)
        each.suspects.open()
    other.decides("b", ends=True)
    other.decides("c", ends=True)
    assert one.told() == ["a"]
    one.decides("a")
    assert other.told() == [] and not other.suspects.careful and not turns.queue


async def test_who_is_gone_when_its_turn_comes_is_passed_over(turns: Turns) -> None:
    one = Partition(turns)
    one.suspects.begin(2)
    assert one.holds("a", 1) and one.holds("b", 1)
    del one.runs["a"]
    one.suspects.open()
    assert one.told() == ["b"]


async def test_a_turn_that_does_not_come_is_taken(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepfold.worker.suspects.PATIENCE_S", 0.0)
    one = Partition(turns)
    turns.queue.append(blocking := Suspects(turns, one.announce))
    one.suspects.begin(2)
    one.holds("a", 1)
    one.suspects.open()
    assert one.told() == []
    while not one.announced:
        await asyncio.sleep(0)
    assert one.told() == ["a"]
    turns.settled(blocking)
    assert one.told() == [], "and not taken twice"
    one.decides("a")
    assert not turns.queue
