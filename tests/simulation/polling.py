"""Conditions in the simulated worlds: the node of a program, the check that it runs, and what may come of it.

    ["poll", id, {polls, every_ms, timeout_ms or null, most or null, fails, ms, plain}]

The check counts in its state; it holds after `polls` polls. Its first `fails` attempts fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from stepfold import Backoff, ConditionTimedOut, Done, Retry, Step, StepFailed, current_step

Node = list[Any]
INITIAL: list[int] = [0]
MAX = 3
PAUSE_MS = 50


def node(random: Random, name: str) -> Node:
    """A condition that ends by itself."""
    polls = random.choice((0, 1, 2, 3, 8))
    return [
        "poll",
        name,
        {
            "polls": polls,
            "every_ms": random.choice((1, 20, 500, 5_000)),
            "timeout_ms": random.choice((None, None, None, 30, 2_000, 20_000)),
            "most": random.choice((None, None, None, 1, 3)),
            "fails": random.choice((0, 0, 0, 1, 2, 3)),
            "ms": random.choice((0, 0, 1, 300)),
            "plain": random.random() < 0.2,
        },
    ]


def allowed(how: dict[str, Any], name: str, value: Any) -> bool:
    """Whether such a condition may have given this value."""
    polls, most = how["polls"], how["most"]
    if value[0] == "held":
        return value[1:] == [name, polls] and (most is None or polls < most)
    if value[0] == "gone" and value[2] == "attempts":
        return most is not None and value[3:] == [most, [most]] and polls >= most
    if value[0] == "gone":
        return how["timeout_ms"] is not None and value[3] <= polls and value[4] == [value[3]]
    return value == ["failed", name] and how["fails"] >= MAX


async def wait(step: Step, node: Node, checks: Checks, got: Callable[[Any], None]) -> Node:
    """Run the node; `got` hears what the code gets."""
    _, name, how = node
    every = Backoff(how["every_ms"] / 1000, factor=1.5, max="1m", jitter=how["every_ms"] == 500)
    check = checks.plain(how) if how["plain"] else checks.check(how)
    options = {"timeout": None if how["timeout_ms"] is None else how["timeout_ms"] / 1000, "max_attempts": how["most"]}
    retry = Retry(MAX, backoff=PAUSE_MS / 1000)
    try:
        value = await step.wait_for_condition(name, check, initial=INITIAL, every=every, retry=retry, **options)
    except ConditionTimedOut as error:
        got(error)
        return ["gone", name, error.kind, error.polls, error.state]
    except StepFailed as error:
        got(error)
        return ["failed", name]
    got(value)
    return ["held", name, value]


class Checks:
    """The checks of one process, which tell `host` what they do."""

    def __init__(self, host: Any) -> None:
        self._host = host

    def check(self, how: dict[str, Any]) -> Any:
        """An async check."""

        async def check(state: list[int]) -> list[int] | Done[int]:
            taken = self._begin(state)
            try:
                if how["ms"]:
                    await asyncio.sleep(how["ms"] / 1000)
            except BaseException as error:
                self._ended(error)
                raise
            return self._end(how, taken)

        return check

    def plain(self, how: dict[str, Any]) -> Any:
        """A plain one."""

        def check(state: list[int]) -> list[int] | Done[int]:
            return self._end(how, self._begin(state))

        return check

    def _begin(self, state: list[int]) -> list[int]:
        now = current_step()
        taken = list(state)
        state.append(99)  # which no other attempt may see
        self._host.step_started(now.run_id, now.step_id, now.attempt, taken, now.last_heartbeat)
        return taken

    def _end(self, how: dict[str, Any], taken: list[int]) -> list[int] | Done[int]:
        if current_step().attempt <= how["fails"]:
            error = ValueError("this attempt fails")
            self._ended(error)
            raise error
        [count] = taken
        outcome = count if count == how["polls"] else [count + 1]
        self._ended(outcome)
        return Done(count) if outcome is count else [count + 1]

    def _ended(self, outcome: Any) -> None:
        now = current_step()
        self._host.step_ended(now.run_id, now.step_id, now.attempt, outcome)
