"""Code that swallows its end, waits for what never comes, or shares what it may not: found and named, whatever else it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Annotated, Any, cast

import pytest
from pydantic import AfterValidator
from stage import Note, Program, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.errors import NonDeterminism
from stepfold.replay.execution import MAX_SWALLOWED_CANCELS


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


def word() -> str:
    return "word"


async def swallows_everything(step: Step, note: Note) -> Any:
    while True:
        try:
            await step.sleep("x", "1h")
        except BaseException:  # noqa: BLE001  # the worst that can be done
            note("swallowed")


async def swallows_in_branches(step: Step, note: Note) -> Any:
    async def branch(name: str) -> None:
        async with step.scope(name) as scoped:
            await swallows_everything(scoped, note)

    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(branch(name))


async def swallows_in_a_generator(step: Step, note: Note) -> Any:
    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await swallows_everything(step, note)

    async for _ in numbers():
        await step.run("a", word)


async def swallows_at_a_lock(step: Step, note: Note) -> Any:
    lock = asyncio.Lock()
    held = asyncio.create_task(step.run("holds", word))
    await lock.acquire()
    while not held.done():
        with contextlib.suppress(BaseException):
            await lock.acquire()
        note("swallowed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python's word for code that ignores its end
@pytest.mark.parametrize(
    "program", [swallows_everything, swallows_in_branches, swallows_in_a_generator, swallows_at_a_lock], ids=lambda p: p.__name__
)
def test_however_its_cancellation_is_swallowed_the_run_ends(program: Program) -> None:
    stage = Stage(program)
    stage.cancel()
    assert stage.live.ended[0] == "cancelled" and stage.waits_for == []
    stage.check()
    count = len(stage.live.notes)
    stage.live.execution.close()  # which asks it to end for the last time, a bounded number of times
    assert len(stage.live.notes) <= count + 2 * MAX_SWALLOWED_CANCELS


async def waits_for_an_event(step: Step, note: Note) -> Any:
    await step.run("a", word)
    await asyncio.Event().wait()


async def waits_for_itself(step: Step, note: Note) -> Any:
    await step.run("a", word)
    lock = asyncio.Lock()
    async with lock, lock:
        pass


@pytest.mark.parametrize("program", [waits_for_an_event, waits_for_itself], ids=lambda p: p.__name__)
def test_code_that_can_never_go_on_is_found(program: Program) -> None:
    stage = Stage(program)
    with pytest.raises(NonDeterminism, match=r"can never continue.*`await step\.run\(.*\(at .*test_contained\.py:") as caught:
        stage.step_gives("a", "word")
    assert len(caught.value.source) == 1


def test_an_object_of_another_loop_is_told_by_its_name() -> None:
    shared = asyncio.Lock()

    async def waits(step: Step, note: Note) -> Any:
        other = asyncio.create_task(step.run("a", word))
        if not shared.locked():
            await shared.acquire()
        async with asyncio.TaskGroup() as group:
            group.create_task(cast("Coroutine[Any, Any, bool]", shared.acquire()))
        await other

    Stage(waits)
    with pytest.raises(NonDeterminism, match=r"belongs to another run .*create it inside the workflow"):
        Stage(waits)


def test_who_catches_a_violation_in_a_group_is_stopped_all_the_same() -> None:
    async def program(step: Step, note: Note) -> Any:
        raise ExceptionGroup("several", [NonDeterminism("made by hand"), ValueError("other")])

    with pytest.raises(NonDeterminism, match="made by hand"):
        Stage(program)


def test_what_a_thread_has_brought_is_found_when_the_owner_looks() -> None:
    async def program(step: Step, note: Note) -> Any:
        await step.run("a", word)

    stage = Stage(program)
    stage.live.execution.loop.call_soon_threadsafe(print, "from outside")
    with pytest.raises(NonDeterminism, match="by another thread"):
        stage.live.advance()
    stage.live.execution.interrupted()  # it was not: nothing is put back that was not changed
    assert asyncio._get_running_loop() is None


def test_ctrl_c_while_a_value_is_read_is_nothing_that_the_run_did() -> None:
    def press(value: str) -> str:
        raise KeyboardInterrupt

    async def program(step: Step, note: Note) -> Any:
        await step.run("a", pressed)

    def pressed() -> Any: ...

    pressed.__annotations__["return"] = Annotated[str, AfterValidator(press)]
    stage = Stage(program)
    with pytest.raises(KeyboardInterrupt):
        stage.step_gives("a", "word")
