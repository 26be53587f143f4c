"""Arguments by value: data are copied all the way down, what is no data is passed as it is."""

from __future__ import annotations

import csv
import math
import re
import threading
from array import array
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from copy import deepcopy
from ctypes import c_uint16
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from io import BytesIO, StringIO
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from stepfold.values.same import difference
from stepfold.values.taken import by_value, is_fixed, taken


class Order(BaseModel):
    model_config = ConfigDict(extra="allow")
    lines: list[dict[str, int]]
    _seen: list[int] = PrivateAttr(default_factory=list[int])


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    tags: list[str]


@dataclass
class Cart:
    lines: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Slotted:
    lines: list[int]


class Pair(NamedTuple):
    name: str
    tags: list[str]


class Lines(list[Any]):
    note: list[str]


class Array:
    """As an array of numpy's: it says itself how it is copied."""

    def __init__(self) -> None:
        self.cells = [1, 2]

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        new = Array()
        new.cells = self.cells.copy()
        return new

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and other.cells == self.cells

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # what changes has none


def lines_of(*items: Any) -> Lines:
    lines = Lines(items)
    lines.note = ["a"]
    return lines


class NamedMap(ChainMap[str, Any]):
    """Its constructor does not take what ChainMap's takes."""

    __slots__ = ("seen",)

    def __init__(self, name: str, *maps: dict[str, Any]) -> None:
        super().__init__(*maps)
        self.name = name
        self.seen = [name]


def named_map(name: str, data: dict[str, Any]) -> NamedMap:
    return NamedMap(name, data)


CHANGES: list[tuple[Any, Callable[[Any], object]]] = [
    ([1, 2], lambda value: value.pop()),
    ([[1], {"a": [2]}], lambda value: value[1]["a"].append(3)),
    ({"a": 1}, lambda value: value.clear()),
    ({"a": [1]}, lambda value: value["a"].clear()),
    ({1, 2}, lambda value: value.clear()),
    (([1], 2), lambda value: value[0].clear()),
    (deque([[1]], 5), lambda value: value[0].clear()),
    (bytearray(b"ab"), lambda value: value.extend(b"c")),
    (array("d", [1.0]), lambda value: value.append(2.0)),
    (defaultdict(list, {"a": [1]}), lambda value: value["b"].append(1)),
    (OrderedDict({"a": [1]}), lambda value: value["a"].append(1)),
    (Counter("ab"), lambda value: value.update("a")),
    (Order.model_validate({"lines": [{"a": 1}]}), lambda value: value.lines[0].update(a=2)),
    (Order.model_validate({"lines": [], "more": [1]}), lambda value: value.more.append(2)),
    (Order(lines=[]), lambda value: value._seen.append(1)),
    (Frozen(tags=["a"]), lambda value: value.tags.append("b")),
    (Cart([1]), lambda value: value.lines.append(2)),
    (Cart([1]), lambda value: setattr(value, "lines", [])),
    (Slotted([1]), lambda value: value.lines.append(2)),
    (Pair("a", ["b"]), lambda value: value.tags.append("c")),
    (lines_of([1]), lambda value: value[0].append(2)),
    (lines_of(), lambda value: value.note.append("b")),
    (Array(), lambda value: value.cells.append(3)),
    (SimpleNamespace(a=[1]), lambda value: value.a.append(2)),
    (UserList([[1]]), lambda value: value[0].append(2)),
    (UserDict({"a": [1]}), lambda value: value.update(b=2)),
    (UserDict({"a": [1]}), lambda value: value["a"].append(2)),
    (ChainMap({"a": [1]}, {"b": [1]}), lambda value: value["b"].append(2)),
    (ChainMap({"a": [1]}, {"b": [1]}), lambda value: value.update(b=[2])),
    (named_map("a", {"b": [1]}), lambda value: value["b"].append(2)),
    ([Cart([1]), {"o": Order(lines=[])}], lambda value: value[1]["o"].lines.append({})),
]


@pytest.mark.parametrize(("value", "change"), CHANGES)
def test_who_changes_a_copy_changes_nothing_else(value: Any, change: Callable[[Any], object]) -> None:
    value = deepcopy(value)
    pristine = taken(value)
    copy = taken(pristine)
    for one in (pristine, copy):
        assert type(one) is type(value) and difference(value, one) is None
    change(copy)
    assert difference(pristine, copy) is not None, "this test can tell"
    assert difference(value, pristine) is None
    change(value)
    assert difference(value, copy) is None


class Plain(BaseModel):
    name: str
    tags: list[str] = []
    inside: Plain | None = None


class Line(BaseModel):
    sku: str
    tags: list[str] = []


@dataclass
class Parcel:
    lines: list[Line]
    counts: dict[str, int] = field(default_factory=dict[str, int])


GIVEN: list[tuple[Any, Callable[[Any], object]]] = [
    *CHANGES,
    ({"a": [{"b": [1.5, None, True, "é", math.nan]}]}, lambda value: value["a"][0].clear()),
    ((1, [2, (3, {"a": []})]), lambda value: value[1].append(4)),
    (Plain(name="a", inside=Plain(name="b", tags=["x"])), lambda value: value.inside.tags.append("y")),
    (Line(sku="a", tags=["x"]), lambda value: value.tags.append("y")),
    (Line(sku="a"), lambda value: value.tags.append("y")),
    (Line(sku="\ud800", tags=["x"]), lambda value: value.tags.append("y")),
    (Parcel([], {"\ud800": 1}), lambda value: value.counts.clear()),
    (Parcel([Line(sku="a", tags=["x"])]), lambda value: value.lines[0].tags.append("y")),
]


@pytest.mark.parametrize("more", [(), (1,), ([1],), (Line(sku="b", tags=["y"]),)])
@pytest.mark.parametrize(("value", "change"), GIVEN)
def test_each_attempt_is_given_what_was_there_at_the_call(value: Any, change: Callable[[Any], object], more: Any) -> None:
    value = deepcopy(value)
    before = taken(value)
    given = by_value(print, (value, *more))
    assert given is not None
    change(value)
    for _ in range(2):
        fn, (attempt, *rest) = given()
        assert fn is print and type(attempt) is type(before) and difference(before, attempt) is None
        assert getattr(attempt, "__pydantic_fields_set__", None) == getattr(before, "__pydantic_fields_set__", None)
        assert tuple(rest) == more
        change(attempt)
    assert difference(before, given()[1][0]) is None


def test_two_arguments_that_are_one_object_stay_one() -> None:
    for one in ([1], Line(sku="a", tags=["x"])):
        given = by_value(print, (one, one))
        assert given is not None
        first, second = given()[1]
        assert first is second is not one


def test_what_bytes_are_is_not_made_of_what_can_change() -> None:
    given = by_value(print, ([bytearray(b"a"), memoryview(b"b")],))
    assert given is not None and type(given()[1][0][0]) is bytearray


def test_a_buffer_is_read_from_where_it_stood() -> None:
    for buffer, rest in ((BytesIO(b"abc"), b"bc"), (StringIO("abc"), "bc")):
        buffer.read(1)
        pristine = taken(buffer)
        assert taken(pristine).read() == rest and taken(pristine).read() == rest and buffer.read() == rest


def test_a_view_of_a_buffer_shows_what_it_showed() -> None:
    source, numbers = bytearray(b"abcdefgh"), array("i", [1, 2, 3])
    views = [memoryview(source), memoryview(source)[::2], memoryview(source).toreadonly(), memoryview(numbers)]
    views += [memoryview(source).cast("B", (2, 4)), memoryview(b"fixed")]
    before = [(view.tolist(), view.format, view.readonly) for view in views]
    given = by_value(print, (views[0], views[1:]))
    assert given is not None
    source[0] = numbers[0] = 99
    for _ in range(2):
        first, others = given()[1]
        assert [(view.tolist(), view.format, view.readonly) for view in (first, *others)] == before
        first[1] = others[2][2] = 77
    assert source == b"cbcdefgh" and numbers.tolist() == [99, 2, 3]


class Rows(UserDict[str, Any], ValueError):
    """No object of Python alone."""


def test_a_view_that_cannot_be_copied_or_cannot_change_is_passed_as_it_is() -> None:
    released = memoryview(b"a")
    released.release()
    odd = memoryview((c_uint16.__ctype_be__ * 2)(1, 2))
    for view in (released, odd, memoryview(b"a"), Rows({"a": 1})):
        assert taken(view) is view


def test_views_show_what_they_showed() -> None:
    source = {"a": [1]}
    views = taken((source.keys(), source.values(), source.items(), MappingProxyType(source)))
    source["b"] = [2]
    source["a"].append(3)
    assert [list(views[0]), list(views[1]), list(views[2]), dict(views[3])] == [["a"], [[1]], [("a", [1])], {"a": [1]}]


def test_what_is_one_object_stays_one_also_where_it_holds_itself() -> None:
    shared = [1]
    loop: list[Any] = [shared, shared]
    loop.append(loop)
    copy = taken(loop)
    assert copy is not loop and copy[0] is copy[1] and copy[0] is not shared and copy[2] is copy


class Client:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def charge(self, amount: int) -> None: ...


class Undecided:
    def __deepcopy__(self, memo: dict[int, Any]) -> Undecided:
        raise RuntimeError("not me")


@pytest.mark.parametrize(
    "thing", [Client(), Client().charge, threading.Lock(), Undecided(), lambda: 1, len, Client, object(), ValueError("x")]
)
def test_what_is_no_data_is_passed_as_it_is_also_inside_of_data(thing: Any) -> None:
    assert taken(thing) is thing
    things, cart = taken(([thing], Cart([thing])))
    assert things[0] is thing and cart.lines[0] is thing


@pytest.mark.parametrize(
    "args", [(), (1, "a", None, 1.5, b"x", Decimal(1), datetime(2026, 1, 1, tzinfo=UTC)), (frozenset({1}), len, range(3))]
)
def test_what_cannot_change_costs_nothing(args: tuple[Any, ...]) -> None:
    assert is_fixed(args) and taken(args) is args and by_value(print, (threading.Lock(),)) is None
    nested = (args, (1, args))
    assert taken(nested) is nested


def test_what_a_partial_holds_is_taken_too() -> None:
    items = [1]
    plain = partial(print, 1, sep="")
    assert taken(plain) is plain
    pristine = taken(partial(sorted, items, key=partial(Pair, tags=items)))
    items.append(2)
    assert pristine.args == ([1],) and pristine.keywords["key"].keywords == {"tags": [1]} and pristine.func is sorted


ONCE: list[Any] = [
    *((n for n in [1]), map(str, [1]), zip([1], [2], strict=True), iter([1]), iter({1: 2}.items())),
    *(reversed([1]), reversed({1: 2}), reversed({1: 2}.values()), iter(deque([1])), reversed(deque([1])), iter("é")),
    *(
        csv.reader(["a"]),
        csv.DictReader(["a", "b"]),
        iter(bytearray(b"a")),
        iter(array("b", [1])),
        iter(cast(Any, memoryview(b"a"))),
    ),
    *(iter(cast(Any, OrderedDict(a=1).items())), iter(range(2**70)), iter(int, 1), re.finditer("a", "a")),
]


@pytest.mark.parametrize("once", ONCE)
def test_what_can_be_gone_through_once_is_refused(once: Any) -> None:
    for value in (once, [once], {"a": (once,)}):
        with pytest.raises(TypeError, match=r"iterated once.*pass a list"):
            taken(value)
