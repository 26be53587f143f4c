"""Types and values of them, as strategies: what users annotate with, and what goes into it, fitting or not quite."""

from __future__ import annotations

import enum
import math
import struct
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, SecretBytes, SecretStr, computed_field, create_model
from typing_extensions import TypedDict

T = TypeVar("T")
Strategy = st.SearchStrategy[Any]


class Shape(NamedTuple):
    """An annotation, and values that its author may return for it."""

    annotation: Any
    values: Strategy
    hashable: bool = False


class Colour(enum.Enum):
    RED = "red"
    BLUE = 3
    GREEN = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(str, enum.Enum):  # noqa: UP042  # as it was written for a long time
    A = "a"
    B = "b"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Name(str):
    __slots__ = ()


class Tree(BaseModel):
    name: str
    children: list[Tree] = []
    parent: dict[str, Optional[Tree]] = {}  # noqa: UP045  # as it was written for a long time


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: list[str] = []


class Puppy(Dog):
    born: date


class Box(BaseModel, Generic[T]):
    content: T


class Area(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: float
    height: float

    @computed_field
    @property
    def area(self) -> float:
        return self.width * self.height


class Counted(BaseModel):
    n: int
    _seen: int = PrivateAttr(0)


def seen(n: int) -> Counted:
    counted = Counted(n=n)
    counted._seen = n  # pyright: ignore[reportPrivateUsage]  # as a method of its own would
    return counted


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int
    price: Decimal


ZONES = [
    UTC,
    timezone(timedelta(hours=5, minutes=30)),
    timezone(timedelta(seconds=-3661)),
    ZoneInfo("Europe/Paris"),
    ZoneInfo("UTC"),
]
NAMES = st.sampled_from(["a", "b", "key", "class_", "ä", "x1"])
TEXTS = st.text(max_size=8) | st.sampled_from(["NaN", "null", "1", "2026-01-01", "\ud800", "\x00", "Infinity", "true"])
INTEGERS = st.integers() | st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 2**100])
FLOATS = st.floats() | st.sampled_from([-0.0, 0.1, 1e308, 5e-324, 1e16, 1e22])
DECIMALS = st.decimals().filter(lambda number: not number.is_snan()) | st.sampled_from(
    [Decimal("1.10"), Decimal("1E+5"), Decimal("-0"), Decimal("1e-400"), Decimal("NaN")]
)
FOLDED = st.sampled_from([datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=fold) for fold in (0, 1)])
DATETIMES = (
    st.datetimes(timezones=st.none() | st.sampled_from(ZONES), allow_imaginary=True)
    | FOLDED
    | st.sampled_from([datetime.max, datetime.min, datetime(2026, 1, 1, fold=1)])  # noqa: DTZ001, DTZ901  # naive ones, too
)
TIMES = st.times() | st.times(timezones=st.just(UTC)) | st.just(time(1, 2, fold=1))
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ODD = st.recursive(
    PLAIN
    | DATETIMES
    | DECIMALS
    | st.uuids()
    | st.binary(max_size=4)
    | st.sampled_from([Colour.RED, Level.HIGH, Word.A, Name("n")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(TEXTS | st.integers(0, 3) | st.booleans() | st.none(), inner, max_size=3)
        | st.frozensets(st.integers() | TEXTS, max_size=3)
        | inner.map(lambda one: Box[Any](content=one))
    ),
    max_leaves=6,
)
"""What somebody returns who has annotated nothing."""

LEAVES: list[Shape] = [
    Shape(str, TEXTS, True),
    Shape(str, st.sampled_from([Name("n"), Word.A, "x"]), True),
    Shape(int, INTEGERS, True),
    Shape(int, st.booleans() | st.sampled_from([Level.LOW]), True),
    Shape(float, FLOATS, True),
    Shape(bool, st.booleans(), True),
    Shape(None, st.none(), True),
    Shape(bytes, st.binary(max_size=8), True),
    Shape(Decimal, DECIMALS, True),
    Shape(datetime, DATETIMES, True),
    Shape(date, st.dates() | DATETIMES, True),
    Shape(time, TIMES, True),
    Shape(timedelta, st.timedeltas(), True),
    Shape(UUID, st.uuids(), True),
    Shape(complex, st.complex_numbers(), True),
    Shape(Colour, st.sampled_from(Colour), True),
    Shape(Level, st.sampled_from(Level), True),
    Shape(Word, st.sampled_from(Word), True),
    Shape(Access, st.sampled_from([Access.READ, Access.READ | Access.WRITE]), True),
    Shape(Literal["a", 1, True] | None, st.sampled_from(["a", 1, True, None, 1.0]), True),
    Shape(PurePosixPath, TEXTS.map(PurePosixPath), True),
    Shape(IPv4Address, st.ip_addresses(v=4), True),
    Shape(SecretStr, TEXTS.map(SecretStr)),
    Shape(SecretBytes, st.binary(max_size=8).map(SecretBytes)),
    Shape(Any, PLAIN),
    Shape(Any, ODD),
    Shape(object, ODD),
    Shape(list, st.lists(ODD, max_size=3)),
    Shape(dict, st.dictionaries(TEXTS | st.integers(), ODD, max_size=3)),
    Shape(
        Tree,
        st.recursive(
            st.builds(Tree, name=TEXTS), lambda inner: st.builds(Tree, name=TEXTS, children=st.lists(inner, max_size=2))
        ),
    ),
    Shape(Animal, st.builds(Animal, name=TEXTS) | st.builds(Dog, name=TEXTS, tricks=st.lists(TEXTS, max_size=2))),
    Shape(Union[Animal, Dog], st.builds(Animal, name=TEXTS) | st.builds(Dog, name=TEXTS)),  # noqa: UP007  # as it was written for a long time
    Shape(Puppy, st.builds(Puppy, name=TEXTS, born=st.dates())),
    Shape(Area, st.builds(Area, width=FLOATS, height=FLOATS)),
    Shape(Counted, st.builds(Counted, n=INTEGERS) | INTEGERS.map(seen)),
    Shape(Point, st.builds(Point, x=INTEGERS, y=FLOATS)),
    Shape(Movie, st.fixed_dictionaries({}, optional={"title": TEXTS, "year": INTEGERS, "price": DECIMALS, "more": TEXTS})),
]


@st.composite
def shapes(draw: st.DrawFn, depth: int = 3) -> Shape:
    """Any annotation, nested up to `depth`."""
    kinds: list[Callable[[st.DrawFn, int], Shape]] = [_leaf] if depth == 0 else [_leaf, *_NESTED]
    return draw(st.sampled_from(kinds))(draw, depth - 1)


def _leaf(draw: st.DrawFn, depth: int) -> Shape:
    return draw(st.sampled_from(LEAVES))


def _hashable(draw: st.DrawFn) -> Shape:
    return draw(st.sampled_from([leaf for leaf in LEAVES if leaf.hashable]))


def _list(draw: st.DrawFn, depth: int) -> Shape:
    inner = draw(shapes(depth))
    return Shape(list[inner.annotation], st.lists(inner.values, max_size=5) | st.lists(inner.values, max_size=2).map(tuple))


def _set(draw: st.DrawFn, depth: int) -> Shape:
    inner = _hashable(draw)
    kind = draw(st.sampled_from([set, frozenset]))
    return Shape(kind[inner.annotation], st.lists(inner.values, max_size=4).map(kind))


def _tuple(draw: st.DrawFn, depth: int) -> Shape:
    first, second = draw(shapes(depth)), draw(shapes(depth))
    if draw(st.booleans()):
        return Shape(tuple[first.annotation, ...], st.lists(first.values, max_size=4).map(tuple))
    return Shape(tuple[first.annotation, second.annotation], st.tuples(first.values, second.values))


def _deque(draw: st.DrawFn, depth: int) -> Shape:
    inner = draw(shapes(depth))
    longest = draw(st.none() | st.just(9))
    return Shape(deque[inner.annotation], st.lists(inner.values, max_size=4).map(lambda items: deque(items, longest)))


def _dict(draw: st.DrawFn, depth: int) -> Shape:
    key, value = _hashable(draw), draw(shapes(depth))
    return Shape(dict[key.annotation, value.annotation], st.dictionaries(key.values, value.values, max_size=4))


def _optional(draw: st.DrawFn, depth: int) -> Shape:
    inner = draw(shapes(depth))
    return Shape(Optional[inner.annotation], st.none() | inner.values)  # noqa: UP045  # made at run time


def _union(draw: st.DrawFn, depth: int) -> Shape:
    one, other = draw(shapes(depth)), draw(shapes(depth))
    return Shape(Union[one.annotation, other.annotation], one.values | other.values)  # noqa: UP007  # made at run time


CONFIGS = [
    {},
    {"extra": "allow"},
    {"extra": "forbid"},
    {"ser_json_inf_nan": "strings"},
    {"ser_json_bytes": "base64", "val_json_bytes": "base64"},
    {"populate_by_name": True},
    {"frozen": True},
    {"use_enum_values": True},
    {"strict": True},
    {"str_strip_whitespace": True},
]


def _model(draw: st.DrawFn, depth: int) -> Shape:
    inner = {name: draw(shapes(depth)) for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))}
    definitions: dict[str, Any] = {}
    for name, shape in inner.items():
        options: list[dict[str, Any]] = [
            {},
            {},
            {"alias": f"the {name}"},
            {"validation_alias": f"in {name}", "serialization_alias": f"out {name}"},
            {"validation_alias": AliasChoices(f"in {name}", name)},
            {"default": draw(shape.values)},
            {"default": None, "exclude": True},
        ]
        definitions[name] = (shape.annotation, Field(**draw(st.sampled_from(options))))
    model = create_model("Made", __config__=ConfigDict(**cast(Any, draw(st.sampled_from(CONFIGS)))), **definitions)
    construct: Any = model.model_construct
    values = st.fixed_dictionaries({name: shape.values for name, shape in inner.items()})
    return Shape(model, values.map(lambda given: construct(**given)))


def _dataclass(draw: st.DrawFn, depth: int) -> Shape:
    inner = {name: draw(shapes(depth)) for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))}
    made = make_dataclass(
        "MadeToo",
        [(name, shape.annotation, dataclass_field(kw_only=True)) for name, shape in inner.items()],
        frozen=draw(st.booleans()),
        slots=draw(st.booleans()),
        eq=draw(st.booleans()),
    )
    values = st.fixed_dictionaries({name: shape.values for name, shape in inner.items()})
    return Shape(made, values.map(lambda given: made(**given)))


def _typed_dict(draw: st.DrawFn, depth: int) -> Shape:
    inner = {name: draw(shapes(depth)) for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))}
    made = cast(Any, TypedDict)("MadeDict", {name: shape.annotation for name, shape in inner.items()})
    return Shape(made, st.fixed_dictionaries({name: shape.values for name, shape in inner.items()}))


def _generic(draw: st.DrawFn, depth: int) -> Shape:
    inner = draw(shapes(depth))
    construct: Any = Box[inner.annotation].model_construct
    return Shape(Box[inner.annotation], inner.values.map(lambda one: construct(content=one)))


_NESTED: list[Callable[[st.DrawFn, int], Shape]] = [
    _list, _set, _tuple, _deque, _dict, _optional, _union, _model, _dataclass, _typed_dict, _generic,
]  # fmt: skip


def canonical(value: Any) -> Hashable:
    """The whole of a value, type and content, as something that `==` compares. Written without a look at the engine's own."""
    kind: Any = cast(Any, type(value))
    if isinstance(value, enum.Enum):
        return (kind, value.name or repr(value))
    if isinstance(value, float):
        return (kind, "nan" if math.isnan(value) else struct.pack("d", value))
    if isinstance(value, complex):
        return (kind, canonical(value.real), canonical(value.imag))
    if isinstance(value, Decimal):
        return (kind, value.as_tuple())
    if isinstance(value, datetime | time):
        return (kind, value.replace(tzinfo=None).isoformat(), value.fold, value.utcoffset())
    if isinstance(value, SecretStr | SecretBytes):
        return (kind, value.get_secret_value())
    if isinstance(value, BaseModel):
        more = (value.__pydantic_extra__, value.__pydantic_private__)
        own = {name: one for name, one in value.__dict__.items() if name in kind.model_fields}
        return (kind, canonical(own), *(canonical(one or {}) for one in more))
    if is_dataclass(value):
        return (kind, tuple((one.name, canonical(getattr(value, one.name, "nothing"))) for one in fields(value)))
    if isinstance(value, dict):
        return (kind, frozenset((canonical(key), canonical(one)) for key, one in cast(dict[Any, Any], value).items()))
    if isinstance(value, set | frozenset):
        return (kind, frozenset(canonical(one) for one in cast(set[Any], value)))
    if isinstance(value, deque):
        return (kind, cast(deque[Any], value).maxlen, tuple(canonical(one) for one in cast(deque[Any], value)))
    if isinstance(value, list | tuple):
        return (kind, tuple(canonical(one) for one in cast(list[Any], value)))
    return (kind, bytes(value) if isinstance(value, bytearray) else value)
