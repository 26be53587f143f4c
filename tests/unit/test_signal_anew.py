"""Replay: the data of a signal that its schema completes with a value of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field
from stage import Note, Replay, Stage

from stepfold.authoring.step import Step
from stepfold.errors import NonDeterminism


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    Replay.close_all()


class Mark(BaseModel):
    id: UUID = Field(default_factory=uuid4)


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
