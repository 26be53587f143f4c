"""A value that cannot be written is refused with the path to the part at fault, however deep it is and whatever holds it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_serializer, model_serializer

from stepfold.errors import ValueInvalid
from stepfold.values.codec import codec_for


class File(BaseModel):
    name: str = "a"
    content: bytes = b""


class Files(RootModel[list[File]]):
    pass


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")
    first: str = "x" * 100
    files: Files = Files([])
    path: Path = Path()
    data: Any = None
    renamed: Any = Field(default=None, serialization_alias="other")


@dataclass
class Holder:
    one: int
    more: Any


class Refusing(BaseModel):
    good: int = 1
    bad: int = 2

    @field_serializer("bad")
    def write(self, value: int) -> int:
        raise KeyError(value)


class Silent(BaseModel):
    @model_serializer
    def write(self) -> dict[str, int]:
        raise KeyError


BAD = File(content=b"\xff")
DEEP: list[Any] = []
DEEP.append(DEEP)

CASES: list[tuple[Any, Any, str]] = [
    (File, BAD, "content: b'\\xff': bytes that are not text; give the model ConfigDict"),
    (list[File], [File()] * 5000 + [BAD] + [File()] * 5000, "[5000].content: b'\\xff'"),
    (tuple[File, ...], (File(), BAD), "[1].content: "),
    (deque[File], deque([BAD]), "[0].content: "),
    (dict[int, File], {1: File(), 2: BAD}, "[2].content: "),
    (dict[str, Anything], {"k": Anything(files=Files([File(), BAD]))}, "k.files[1].content: "),
    (Anything, Anything(data={"a": [1, 2**64]}), "data.a[1]: 18446744073709551616: an integer of more than 64 bits"),
    (Anything, Anything(renamed=BAD), "renamed.content: "),
    (Anything, Anything.model_validate({"extra": BAD}), "extra.content: "),
    (Anything, Anything(path=Path("a\udcff")), "path: PosixPath('a\\udcff') is not valid text"),
    (Anything, Anything(data=len), "data: <built-in function len>: Unable to serialize"),
    (Anything, Anything(data=DEEP), "data[0]: [[...]]: "),
    (Holder, Holder(1, [BAD]), "more[0].content: "),
    (list[Refusing], [Refusing()], "[0].bad: 2: "),
    (list[Silent], [Silent()], "[0]: Silent(): "),
    (set[int], {2**64}, "{18446744073709551616}: an integer of more than 64 bits"),
]


@pytest.mark.parametrize(("annotation", "value", "told"), CASES, ids=range(len(CASES)))
def test_the_part_at_fault_is_named(annotation: Any, value: Any, told: str) -> None:
    with pytest.raises(ValueInvalid) as refused:
        codec_for(annotation).encode(value)
    assert str(refused.value).startswith(told)
