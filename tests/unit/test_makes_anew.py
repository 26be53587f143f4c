"""Whether decoding the same JSON twice may give different values, and the input of a run as its model has completed it."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import orjson
import pytest
from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, PrivateAttr, model_serializer
from pydantic.dataclasses import dataclass as pydantic_dataclass

from stepfold.authoring.context import Context
from stepfold.authoring.workflow import Workflow
from stepfold.errors import InputInvalid, ValueInvalid
from stepfold.values.codec import Codec


class Plain(BaseModel):
    amount: Decimal
    tags: list[str] = Field(default_factory=list)
    note: Annotated[str, PlainSerializer(str.upper)] = ""


class Anew(BaseModel):
    amount: int
    reference: UUID = Field(default_factory=uuid4)


class Nested(BaseModel):
    inner: dict[str, list[Anew | None]]


class Tree(BaseModel):
    children: list[Tree] = []


@dataclass
class Posted:
    total: int

    def __post_init__(self) -> None:
        self.total += 1


@dataclass
class Defaulted:
    tags: list[str] = field(default_factory=lambda: ["a"])


class Initialised(BaseModel):
    number: int

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)


class Started(BaseModel):
    def model_post_init(self, context: Any, /) -> None: ...


@pytest.mark.parametrize("annotation", [Any, str, int, Plain, Tree, list[datetime], Path, IPv4Address, re.Pattern, UUID])
def test_a_type_that_gives_the_same_each_time(annotation: Any) -> None:
    assert not Codec(annotation, "x").makes_anew


@pytest.mark.parametrize(
    "annotation", [Anew, Nested, Posted, Defaulted, Initialised, Started, Annotated[int, AfterValidator(lambda value: value + 1)]]
)
def test_a_type_that_may_not(annotation: Any) -> None:
    assert Codec(annotation, "x").makes_anew


class Excluding(BaseModel):
    amount: int = 1
    made: int = Field(default_factory=lambda: 5, exclude=True)


class ExcludingSome(BaseModel):
    made: int = Field(default_factory=lambda: 5, exclude_if=lambda number: number == 5)


class Omitting(BaseModel):
    amount: int = 1
    made: int = Field(default_factory=lambda: 5)

    @model_serializer
    def write(self) -> dict[str, int]:
        return {"amount": self.amount}


class Private(BaseModel):
    amount: int = 1
    _made: int = PrivateAttr(default_factory=lambda: 5)


@dataclass
class Unread:
    amount: int = 1
    made: int = field(default_factory=lambda: 5, init=False)


@dataclass
class Noted:
    amount: int = 1
    made: Annotated[int, Field(exclude=True)] = field(default_factory=lambda: 5)


@pydantic_dataclass
class Checked:
    amount: int = 1
    made: int = Field(default_factory=lambda: 5, exclude=True)


class Emptied(BaseModel):
    tags: list[str] = Field(default_factory=list, exclude=True)
    _seen: dict[str, int] = PrivateAttr(default_factory=dict[str, int])
    _last: deque[int] = PrivateAttr(default_factory=deque[int])


@pytest.mark.parametrize(
    ("value", "place", "advice"),
    [
        (Excluding(), "made", "let it be written"),
        (ExcludingSome(), "made", "let it be written"),
        (Omitting(), "made", "let it be written"),
        (Private(), "_made", "make it a field"),
        (Unread(), "made", "let it be written"),
        (Noted(), "made", "let it be written"),
        (Checked(), "made", "let it be written"),
    ],
)
def test_a_field_that_would_be_made_anew_is_refused_even_if_it_is_the_same_now(value: Any, place: str, advice: str) -> None:
    codec = Codec(list[type(value)], "x")
    with pytest.raises(ValueInvalid) as caught:
        codec.encode([value])
    assert str(caught.value).startswith(f"[0].{place}: 5 is not written") and advice in str(caught.value)


@pytest.mark.parametrize("value", [ExcludingSome(made=6), Emptied(), Anew(amount=1), Defaulted()])
def test_a_field_that_is_written_or_always_empty_is_not_refused(value: Any) -> None:
    codec = Codec(type(value), "x")
    assert codec.decode(orjson.loads(codec.encode(value))) == value


def workflow_of(annotation: Any) -> Workflow[Any, Any]:
    async def handler(ctx: Context, step: Any) -> None: ...

    return Workflow(handler, "w", "1", annotation)


def test_an_input_is_completed_once() -> None:
    workflow = workflow_of(Anew)
    completed = workflow.completed_input({"amount": 1})
    assert completed is not None
    record = orjson.loads(completed)
    assert record["amount"] == 1
    assert workflow.completed_input(record) is None
    assert str(workflow.decode_input(record).reference) == record["reference"]


def test_an_input_that_is_complete_is_left_alone() -> None:
    assert workflow_of(Plain).completed_input({"amount": "1.10"}) is None
    assert workflow_of(Any).completed_input({"amount": 1}) is None


@pytest.mark.parametrize("value", [{}, {"amount": "x"}, None])
def test_an_input_that_does_not_fit_is_refused(value: Any) -> None:
    with pytest.raises(InputInvalid):
        workflow_of(Anew).completed_input(value)
