"""Attempts wait in the order of arrival, and runs take turns."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, cast

import pytest

from stepfold.core.state import RunState
from stepfold.worker.attempt import Attempt
from stepfold.worker.fair import FairQueue


class Waiting:
    """An attempt of a run."""

    def __init__(self, run: RunState, number: int) -> None:
        self.run = run
        self.number = number


def run(name: str) -> RunState:
    return RunState(name, "w", "1", None, 0, 0)


def attempts(one: RunState, count: int) -> list[Attempt]:
    return [cast(Attempt, Waiting(one, number)) for number in range(count)]


def queue(waiting: Iterable[Attempt]) -> FairQueue:
    made = FairQueue()
    for attempt in waiting:
        made.add(attempt)
    return made


def names(waiting: FairQueue) -> list[str]:
    taken: list[Any] = []
    while waiting.size:
        first = waiting.next[0]
        taken.append(waiting.take())
        assert taken[-1] is first
    return [f"{attempt.run.id}{attempt.number}" for attempt in taken]


def test_a_run_with_many_attempts_keeps_no_other_run_waiting() -> None:
    waiting = queue([*attempts(run("a"), 4), *attempts(run("b"), 2), *attempts(run("c"), 1)])
    assert waiting.size == 7
    assert names(waiting) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_run_that_comes_back_waits_at_the_end() -> None:
    first, second = run("a"), run("b")
    waiting = queue([*attempts(first, 2), *attempts(second, 1)])
    assert waiting.take().run is first
    waiting.add(attempts(first, 1)[0])
    assert names(waiting) == ["b0", "a1", "a0"]


@pytest.mark.parametrize(("number", "left"), [(0, ["b0", "a1", "a2"]), (1, ["a0", "b0", "a2"]), (2, ["a0", "b0", "a1"])])
def test_an_attempt_that_is_removed_leaves_the_others_in_order(number: int, left: list[str]) -> None:
    of_a = attempts(run("a"), 3)
    waiting = queue([*of_a, *attempts(run("b"), 1)])
    waiting.remove(of_a[number])
    waiting.remove(of_a[number])  # it is no longer there
    assert waiting.size == 3
    assert names(waiting) == left


@pytest.mark.parametrize("seed", range(20))
def test_every_attempt_is_taken_once_and_none_is_kept(seed: int) -> None:
    random = Random(seed)
    waiting = FairQueue()
    to_come = [attempt for name in "abc" for attempt in attempts(run(name), 20)]
    random.shuffle(to_come)
    there: set[Attempt] = set()
    while to_come or there:
        act = random.choice(["add", "take", "remove"])
        if act == "add" and to_come:
            there.add(attempt := to_come.pop())
            waiting.add(attempt)
        elif act == "take" and there:
            there.remove(waiting.take())
        elif there:
            there.remove(attempt := random.choice(sorted(there, key=id)))
            waiting.remove(attempt)
        assert waiting.size == len(there)
        assert bool(waiting.next) == bool(there)
    assert not any(getattr(waiting, name) for name in FairQueue.__slots__)
