"""The cancellation of a run reaches the task that awaits the others, not only those that ask for a step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from stage import Note, Program, Replay, Stage

from stepfold.authoring.step import Step


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


async def word() -> str:
    return "word"


async def in_a_group(step: Step, note: Note) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(step.run("work", word))
        group.create_task(step.sleep("nap", 1))


async def in_a_group_of_a_branch(step: Step, note: Note) -> None:
    await asyncio.gather(in_a_group(step, note), step.sleep("beside", 1))


async def by_wait(step: Step, note: Note) -> None:
    await asyncio.wait([asyncio.ensure_future(step.run("work", word))])


async def in_a_group_that_cleans_up(step: Step, note: Note) -> None:
    async def careful() -> None:
        try:
            await step.run("work", word)
        finally:
            with step.shield():
                note(await step.run("clean", word))

    async with asyncio.TaskGroup() as group:
        group.create_task(careful())


def cancelled_in_a_shield(body: Callable[[Step, Note], Awaitable[None]]) -> Program:
    async def program(step: Step, note: Note) -> Any:
        with step.shield():
            await step.run("first", word)
        await body(step, note)
        note("went on")

    return program


@pytest.mark.parametrize("body", [in_a_group, in_a_group_of_a_branch, by_wait])
def test_code_does_not_go_on_as_if_cancelled_branches_had_done_their_work(body: Callable[[Step, Note], Awaitable[None]]) -> None:
    stage = Stage(cancelled_in_a_shield(body))
    stage.cancel()
    stage.step_gives("first", "done")
    assert stage.live.notes == [] and stage.live.ended[0] == "cancelled"
    stage.check()


def test_a_branch_cleans_up_before_the_run_is_cancelled() -> None:
    stage = Stage(cancelled_in_a_shield(in_a_group_that_cleans_up))
    stage.cancel()
    stage.step_gives("first", "done")
    assert stage.waits_for == ["step clean"] and stage.live.outcome is None
    stage.check()
    stage.step_gives("clean", "cleaned")
    assert stage.live.notes == ["cleaned"] and stage.live.ended[0] == "cancelled"
    stage.check()
