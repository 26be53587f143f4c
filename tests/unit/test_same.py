"""Whether a value has come back as it was: what `==` does not see is seen, and what is no state is left out."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from functools import cached_property, lru_cache
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID
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


class Reified:
    """Keeps what its function says in the object, as cached properties of web frameworks do."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        found = instance.__dict__[self.name] = self.function(instance)
        return found


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


class Sloppy:
    """Equal to all of its class."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    __hash__ = None  # type: ignore[assignment]  # as of anything that defines __eq__ alone


def sloppy(base: type[Any], *given: Any, **more: Any) -> Any:
    """An instance of a subclass of `base` that calls all of its instances equal and the same in number."""
    kind = _sloppy(base)
    made = kind(*given)
    for name, value in more.items():
        setattr(made, name, value)
    return made


@lru_cache
def _sloppy(base: type[Any]) -> type[Any]:
    def never_hashed(self: object) -> int:
        return 1

    return type(f"Sloppy{base.__name__}", (Sloppy, base), {"__hash__": never_hashed})


class Marked(str):
    __slots__ = ("mark",)
    mark: int


class Empty(list[Any]):
    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def one_more() -> int:
    return 1


class Hidden:
    __slots__ = ("__n",)

    def __init__(self, n: int) -> None:
        self.__n = n


class Entity:
    """Equal by its number alone."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self._cache = object()
        self.itself = self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entity) and self.number == other.number

    __hash__ = None  # type: ignore[assignment]  # as of anything that defines __eq__ alone

    @cached_property
    def size(self) -> int:
        return len(self.name)

    @Reified
    def width(self) -> int:
        return len(self.name)


class Loud(StrEnum):
    UP = "A"
    DOWN = "a"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loud)

    __hash__ = str.__hash__


def used() -> Entity:
    entity = Entity(1, "a")
    assert entity.size == entity.width == 1
    assert {"size", "width"} <= vars(entity).keys()
    return entity


def marked(text: str, mark: int) -> Marked:
    made = Marked(text)
    made.mark = mark
    return made


OF_BASES: list[tuple[type[Any], tuple[Any, ...], tuple[Any, ...]]] = [
    (str, ("ABC",), ("abc",)),
    (int, (1,), (2,)),
    (float, (1.0,), (2.0,)),
    (complex, (1j,), (2j,)),
    (bytes, (b"A",), (b"a",)),
    (bytearray, (b"A",), (b"a",)),
    (UUID, ("0" * 32,), ("1" * 32,)),
    (date, (2026, 1, 1), (2026, 1, 2)),
    (datetime, (2026, 1, 1), (2026, 1, 1, 1)),
    (time, (1, 0), (1, 1)),
    (timedelta, (1,), (2,)),
    (Decimal, ("1.0",), ("1.00",)),
    (list, ([1, 2, 3, 4],), ([1, 2, 3, 5],)),
    (tuple, ([1, 2, 3, 4],), ([1, 2, 3, 5],)),
    (dict, ({"a": 1, "b": 2, "c": 3, "d": 4},), ({"a": 1, "b": 2, "c": 3, "d": 5},)),
    (set, ({1, 2, 3, 4},), ({1, 2, 3, 5},)),
    (frozenset, ({1, 2, 3, 4},), ({1, 2, 3, 5},)),
    (deque, ([1, 2, 3, 4], 5), ([1, 2, 3, 5], 5)),
]

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
    *((sloppy(base, *given), sloppy(base, *given)) for base, given, _ in OF_BASES),
    (sloppy(float, "nan"), sloppy(float, "nan")),
    (Counter("abcd"), Counter("abcd")),
    (defaultdict(list, a=[1]), defaultdict(list, a=[1])),
    (defaultdict(one_more, a=1), defaultdict(one_more, a=1)),
    (time(9, tzinfo=UTC), time(9, tzinfo=timezone(timedelta(0)))),
    (time(9, tzinfo=PARIS), time(9, tzinfo=PARIS)),
    (marked("a", 1), marked("a", 1)),
    (used(), Entity(1, "a")),
    (Path("a") / "b", Path("a/b")),
    (IPv4Network("10.0.0.0/8"), IPv4Network("10.0.0.0/8")),
    (Loud.UP, Loud.UP),
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
    (time(9, tzinfo=PARIS), time(9), "would come back as"),
    (defaultdict(one_more, a=1), defaultdict(int, a=1), "Field(default_factory=…)"),
    (sloppy(defaultdict, int, {"a": 1}), sloppy(defaultdict, list, {"a": 1}), "default_factory"),
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
    *((sloppy(base, *given), sloppy(base, *others), "would come back as") for base, given, others in OF_BASES),
    (sloppy(float, 0.0), sloppy(float, -0.0), "0.0 would come back as -0.0"),
    (sloppy(str, "a", more=1), sloppy(str, "a", more=2), "more: 1"),
    (Counter(a=0, b=0, c=0, d=0), Counter(e=0, f=0, g=0, h=0), "a"),
    (marked("a", 1), marked("a", 2), "mark: 1"),
    (Empty([1]), Empty([2]), "[0]: 1 would come back as 2"),
    ({sloppy(str, "A"): 1}, {sloppy(str, "a"): 1}, "'A'"),
    ({sloppy(str, "A")}, {sloppy(str, "a")}, "'A'"),
    (Hidden(1), Hidden(2), "_Hidden__n: 1"),
    (Entity(1, "a"), Entity(1, "b"), "name: 'a' would come back as 'b'"),
    (Entity(1, "a"), Entity(2, "a"), "would come back as"),
    (Loud.UP, Loud.DOWN, "would come back as"),
    (SimpleNamespace(n=1), SimpleNamespace(n=True), "n: 1 (int)"),
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
    assert change is not None and change.where == "_seen"


def test_what_cannot_be_shown_is_named_by_its_class() -> None:
    assert shown(Strange()) == "<Strange>" and shown("x" * 100) == f"'{'x' * 59}…"
    with pytest.raises(RuntimeError):
        difference(Strange(), Strange())
