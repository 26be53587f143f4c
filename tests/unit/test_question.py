"""A question to the code of a run, where its code stands: it reads, and gets nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from stage import Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.errors import NonDeterminism
from stepfold.replay.question import ask

Question = Callable[[], Coroutine[Any, Any, Any]]
variable: ContextVar[str] = ContextVar("variable", default="of nobody")
held: dict[str, Any] = {}


async def program(step: Step, note: Note) -> str:
    variable.set("of the run")
    held.update(step=step, woken=asyncio.Event(), seen=[], left=0)

    async def branch() -> None:
        await held["woken"].wait()
        await step.run("woken", str)

    task = asyncio.create_task(branch())
    try:
        held["seen"].append((await step.wait_for_signal("a", signal="go")).data)
        held["seen"].append((await step.wait_for_signal("b", signal="go")).data)
    finally:
        task.cancel()
        held["left"] += 1
        with contextlib.suppress(asyncio.CancelledError):
            await step.sleep("late", 1)
    return "done"


def replayed(*data: int) -> Replay:
    """A replay of a run that has got these signals."""
    stage = Stage(program)
    for number in data:
        stage.signal("go", number)
    return stage.replayed()


def refusal(question: Question) -> NonDeterminism:
    with pytest.raises(NonDeterminism) as raised:
        ask(replayed().execution, question)
    return raised.value


def test_it_sees_what_the_code_has_made_of_the_journal_and_its_context() -> None:
    async def question() -> Any:
        await asyncio.sleep(0)
        return [*held["seen"]], variable.get()

    assert ask(replayed().execution, question) == ([], "of the run")
    assert ask(replayed(1).execution, question) == ([1], "of the run")
    assert variable.get() == "of nobody"


def test_an_error_is_raised_as_it_is() -> None:
    async def question() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ask(replayed().execution, question)


def test_it_may_not_wait() -> None:
    async def question() -> None:
        await held["woken"].wait()

    error = refusal(question)
    assert "waits" in error.found and "test_question.py" in error.source[0]

    async def on_its_loop() -> None:
        await asyncio.get_running_loop().create_future()

    assert "return what is there now (at " in str(refusal(on_its_loop))


def test_it_may_ask_for_nothing() -> None:
    async def asks() -> None:
        await held["step"].run("more", str)

    async def tells() -> None:
        await held["step"].publish("key", 1)

    async def swallows() -> int:
        with contextlib.suppress(BaseException):
            await held["step"].sleep("more", 1)
        return 1

    async def wakes() -> None:
        held["woken"].set()

    assert [refusal(question).found for question in (asks, tells, swallows, wakes)] == [
        "step 'more'",
        "published 'key'",
        "step 'more'",
        "step 'woken'",
    ]


def test_closing_goes_on_as_ever_after_a_question() -> None:
    async def question() -> int:
        return 1

    replay = replayed()
    assert ask(replay.execution, question) == 1
    replay.execution.close()
    assert held["left"] == 1 and replay.execution.loop.violations == []


def test_a_line_that_nobody_can_name_is_left_out() -> None:
    replay = replayed()
    made: dict[str, Any] = {"future": replay.execution.loop.create_future()}
    exec("async def question():\n    await future", made)  # code without a file
    with pytest.raises(NonDeterminism) as raised:
        ask(replay.execution, made["question"])
    assert raised.value.source == () and "(at" not in str(raised.value)
