"""Whether a value has come back as it was: what `==` does not see is seen, and what is no state is left out."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, PrivateAttr

from stepfold.values.same import difference, in_words, shown

T = TypeVar("T")
PARIS = ZoneInfo("Europe/Paris")


@dataclass
class Box(Generic[T]):
    content: T


@dataclass(eq=False)
class Shape:
    width: float

    @cached_property
    def area(self) -> float:
        return self.width**2


@dataclass(slots=True)
class Slotted:
    n: int


class Model(BaseModel):
    n: Any
    _seen: int = PrivateAttr(0)


class Pair(NamedTuple):
    name: str
    more: Any


class Plain:
    def __init__(self, n: int) -> None:
        self.n = n


class Strange:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as of anything that defines __eq__ alone

    def __repr__(self) -> str:
        raise RuntimeError("no")


def looked_at() -> Shape:
    shape = Shape(2.0)
    assert shape.area == 4
    return shape


SAME: list[tuple[Any, Any]] = [
    (float("nan"), float("nan")),
    ([1, 2, 3, 4, float("nan")], [1, 2, 3, 4, float("nan")]),
    (5, 5.0),
    (Box[int](1), Box(1)),
    (looked_at(), Shape(2.0)),
    (Plain(1), Plain(1)),
    (Slotted(1), Slotted(1)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (datetime(2026, 7, 1, tzinfo=PARIS), datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=2)))),
    (datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=timezone(timedelta(0)))),
    (OrderedDict(a=1), OrderedDict(a=1)),
    ({(1, 2), "a"}, {"a", (1, 2)}),
]


@pytest.mark.parametrize(("was", "came"), SAME, ids=range(len(SAME)))
def test_what_is_the_same(was: Any, came: Any) -> None:
    assert difference(was, came) is None


CHANGED: list[tuple[Any, Any, str]] = [
    (1, True, "1 (int) would come back as True (bool)"),
    (True, 1, "annotate bool"),
    (0.0, -0.0, "0.0 would come back as -0.0"),
    ({complex(-0.0, 0)}, {0j}, "(-0+0j) would come back as 0j"),
    ([0.0] * 5, [0.0, 0.0, -0.0, 0.0, 0.0], "[2]: 0.0"),
    ([1, 2, 3, 4], [1, 2, 3, True], "[3]: 4"),
    (2**53 + 1, float(2**53 + 1), "(float)"),
    (5.0, 5, "(int)"),
    ((1,), [1], "annotate tuple[…]"),
    (Decimal("1.0"), Decimal("1.00"), "Decimal('1.00')"),
    (datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 7, 1, 2, tzinfo=PARIS), "would come back as"),
    (datetime(2026, 10, 25, 2, tzinfo=PARIS, fold=1), datetime(2026, 10, 25, 2, tzinfo=timezone(timedelta(hours=1))), "fold"),
    ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a[1].b: 2 would come back as 3"),
    ({"a": 1}, {}, "a: 1 would be lost"),
    ({1: 2}, {True: 2}, "1"),
    ({1, 2}, {1, 3}, "would come back as"),
    ({1}, {True}, "1 (int)"),
    (deque([1], 3), deque([1]), "maxlen"),
    (Box(1), Box("1"), "content: 1 (int)"),
    (Slotted(1), Slotted(2), "n: 1"),
    (Plain(1), Plain(2), "n: 1"),
    (Pair("a", 1), Pair("a", 2), "more: 1"),
    (Model(n=1), Model(n=2), "n: 1"),
    (Model(n=(1,)), Model(n=[1]), "n: (1,)"),
    (object(), object(), "another object"),
]


@pytest.mark.parametrize(("was", "came", "told"), CHANGED, ids=range(len(CHANGED)))
def test_what_has_changed_is_named(was: Any, came: Any, told: str) -> None:
    change = difference(was, came)
    assert change is not None
    assert told in in_words(change) or told == "another object"


def test_a_private_attribute_is_part_of_a_value() -> None:
    one = Model(n=1)
    one._seen = 5  # pyright: ignore[reportPrivateUsage]  # as a method of its own would
    change = difference(one, Model(n=1))
    assert change is not None and change.place == "_seen"


def test_what_cannot_be_shown_is_named_by_its_class() -> None:
    assert shown(Strange()) == "<Strange>" and shown("x" * 100) == f"'{'x' * 59}…"
    with pytest.raises(RuntimeError):
        difference(Strange(), Strange())
