"""Values of the usual types are certain to come back: that they do, and that what is not certain is proved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Optional
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PrivateAttr, TypeAdapter, computed_field

from stepfold.errors import ValueInvalid
from stepfold.values.codec import Codec
from stepfold.values.exact import exact
from stepfold.values.same import difference


@dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = field(default_factory=list[str])


class Order(BaseModel):
    id: UUID
    at: datetime
    price: Decimal
    name: str
    note: Optional[str] = None  # noqa: UP045  # as it was written for a long time
    points: list[Point] = []
    rates: dict[str, float] = {}
    paid: bool = False
    nothing: None = None


TEXTS = st.text()
POINTS = st.builds(Point, st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), st.lists(TEXTS))
ORDERS = st.builds(
    Order,
    id=st.uuids(),
    at=st.datetimes(timezones=st.none() | st.just(UTC)).map(lambda when: when.replace(fold=0)),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    name=TEXTS,
    note=st.none() | TEXTS,
    points=st.lists(POINTS, max_size=3),
    rates=st.dictionaries(TEXTS, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    paid=st.booleans(),
)


@settings(max_examples=50)
@given(ORDERS)
def test_what_is_certain_comes_back(order: Order) -> None:
    check = exact(TypeAdapter(Order).core_schema)
    assert check is not None and check(order)
    codec = Codec(Order, "x")
    assert difference(order, codec.decode(orjson.loads(codec.encode(order)))) is None


def changed(**fields: Any) -> Order:
    order = Order.model_validate({"id": UUID(int=1), "at": datetime(2026, 1, 1, tzinfo=UTC), "price": "1", "name": "a"})
    vars(order).update(fields)
    return order


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "text"},
        {"at": datetime(2026, 1, 1, tzinfo=UTC, fold=1)},
        {"price": Decimal("NaN")},
        {"name": 5},
        {"name": "\ud800"},
        {"points": [Point(2**64)]},
        {"points": [Point(True)]},
        {"points": [Point(1, math.nan)]},
        {"points": (Point(1),)},
        {"rates": {1: 1.0}},
        {"rates": {"a": math.inf}},
        {"paid": 1},
        {"nothing": 0},
        {"more": 1},
    ],
)
def test_what_is_not_certain_is_proved_and_refused(fields: dict[str, Any]) -> None:
    order = changed(**fields)
    check = exact(TypeAdapter(Order).core_schema)
    assert check is not None and (not check(order) or fields in ({"name": "\ud800"}, {"points": [Point(2**64)]}))
    if "more" in fields:  # what a cached_property has remembered stands there as well
        return
    with pytest.raises(ValueInvalid):
        Codec(Order, "x").encode(order)


class Private(BaseModel):
    n: int
    _seen: int = PrivateAttr(0)


class Computed(BaseModel):
    n: int

    @computed_field
    @property
    def double(self) -> int:
        return self.n * 2


class Configured(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    text: str


class Excluded(BaseModel):
    n: int = Field(exclude=True)


class OneName(BaseModel):
    a: int = Field(alias="b")
    b: int = 0


class TwoNames(BaseModel):
    a: int = Field(validation_alias="b", serialization_alias="c")


@dataclass
class Posted:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


@dataclass
class Kept:
    n: int
    left: int = field(default=0, init=False)


class Tree(BaseModel):
    children: list[Tree] = []


UNCERTAIN: list[Any] = [
    *(Computed, Configured, Excluded, OneName, TwoNames, Posted, Kept, Tree, bytes, set[int], int | str, tuple[int, ...]),
    *(dict[int, int], list[bytes], dict[str, bytes], bytes | None, Annotated[int, Field(gt=0)]),
    *(Annotated[str, AfterValidator(str.strip)], Annotated[int, PlainSerializer(str)]),
]


@pytest.mark.parametrize("annotation", UNCERTAIN, ids=str)
def test_of_other_types_nothing_is_certain(annotation: Any) -> None:
    assert exact(TypeAdapter(annotation).core_schema) is None


def test_a_private_attribute_is_looked_at() -> None:
    check = exact(TypeAdapter(Private).core_schema)
    assert check is None or not check(Private(n=1))
