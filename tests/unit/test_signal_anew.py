"""Replay: the data of a signal that its schema completes with a value of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, PrivateAttr
from stage import Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.errors import NonDeterminism


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


class Mark(BaseModel):
    id: UUID = Field(default_factory=uuid4)


class Private(BaseModel):
    n: int
    _id: UUID = PrivateAttr(default_factory=uuid4)


class Kept(BaseModel):
    n: int
    _lock: Any = PrivateAttr(default_factory=object)
    _notes: list[int] = PrivateAttr(default_factory=list[int])


async def marks(step: Step, note: Note) -> Any:
    note(await step.wait_for_signal("m", signal="m", schema=Mark))


def test_a_value_that_the_schema_makes_anew_quarantines_the_run() -> None:
    stage = Stage(marks)
    with pytest.raises(NonDeterminism, match="do not fix `id`: the schema makes it itself, another one at each replay") as found:
        stage.signal("m", {})
    assert "'m'" in found.value.expected


def test_a_value_that_the_sender_gives_is_the_same_at_each_replay() -> None:
    stage = Stage(marks)
    stage.signal("m", {"id": str(UUID(int=1))})
    stage.check()


async def hidden(step: Step, note: Note) -> Any:
    note(await step.wait_for_signal("m", signal="m", schema=list[Private]))


def test_a_private_attribute_that_the_schema_makes_anew_quarantines_the_run() -> None:
    stage = Stage(hidden)
    with pytest.raises(NonDeterminism, match=r"do not fix `\[0\]\._id`") as found:
        stage.signal("m", [{"n": 1}, {"n": 2}])
    assert "'m'" in found.value.expected


async def kept(step: Step, note: Note) -> Any:
    note((await step.wait_for_signal("m", signal="m", schema=Kept)).data.n)


def test_private_attributes_that_are_equal_or_cannot_be_compared_are_the_same_at_each_replay() -> None:
    stage = Stage(kept)
    stage.signal("m", {"n": 1})
    stage.check()
