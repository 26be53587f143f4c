"""Types of which a look is enough: what is found exact comes back the same, and whatever stands in between is no such type."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    StringConstraints,
    TypeAdapter,
    computed_field,
    field_serializer,
)

from stepfold.values.codec import Codec
from stepfold.values.exact import exact, json_copy
from stepfold.values.same import difference

T = TypeVar("T")


class Item(BaseModel):
    name: str
    price: float = 1.0
    tags: list[str] = []
    more: dict[str, int | None] = Field(default_factory=dict[str, int | None])


class Basket(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: UUID
    items: list[Item]
    note: str | None = None
    anything: Any = None


@dataclass
class Point:
    x: int
    y: int = 0
    near: list[int] = field(default_factory=list[int])


class Box(BaseModel, Generic[T]):
    inside: T


class Express(Item):
    hours: int = 1


BASKET = Basket(
    id=UUID(int=7), items=[Item(name="é", more={"a": 1, "b": None}), Item(name="b", tags=["x"])], anything=[{"a": 1.5}]
)


def bare() -> Item:
    """One that has lost a field."""
    item = Item(name="a")
    delattr(item, "more")
    return item


def looks(annotation: Any, value: Any) -> bool | None:
    look = exact(TypeAdapter(annotation).core_schema)
    return None if look is None else look(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Basket, BASKET),
        (list[Basket], [BASKET, BASKET]),
        (Basket | None, None),
        (Box[Point], Box[Point](inside=Point(1))),
        (Point, Point(1, 2, [3])),
        (dict[str, list[float]], {"a": [1.5, -0.0]}),
        (dict[str, Any], {"a": [None, {"b": [1, "c"]}]}),
        (list[bool], [True, False]),
        (list, [1, ["a", {"b": None}]]),
    ],
)
def test_what_a_look_is_enough_for_comes_back(annotation: Any, value: Any) -> None:
    assert looks(annotation, value)
    adapter = TypeAdapter[Any](annotation)
    assert difference(value, adapter.validate_json(adapter.dump_json(value))) is None
    codec = Codec(annotation, "it")
    assert codec.encode(value) == adapter.dump_json(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Item, Express(name="a")),
        (Item, Item.model_construct(name=5, price=1.0, tags=[], more={})),
        (Item, bare()),
        (Item, {"name": "a"}),
        (Item, Item(name="a", price=math.inf)),
        (Item, Item.model_construct(name="a", price=1.0, tags=[], more={"b": True})),
        (float, 1),
        (float, math.nan),
        (int, True),
        (list[int], [1, 2.0]),
        (list[int], (1, 2)),
        (list[Item], [Item(name="a"), Express(name="b")]),
        (dict[str, int], {1: 1}),
        (dict[str, int], [1]),
        (Point, Point(1, "2")),  # pyright: ignore[reportArgumentType]  # what callers without types do
        (Any, (1, 2)),
        (Any, math.nan),
        (Any, {"a": UUID(int=1)}),
    ],
)
def test_what_is_not_what_its_type_says_needs_a_proof(annotation: Any, value: Any) -> None:
    assert looks(annotation, value) is False


class Aliased(BaseModel):
    a: int = Field(alias="b")


class Excluded(BaseModel):
    a: int = Field(exclude=True)


class Constrained(BaseModel):
    a: int = Field(gt=0)


class Stripping(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    a: str


class Computing(BaseModel):
    a: int

    @computed_field
    @property
    def b(self) -> int:
        return self.a


class Serializing(BaseModel):
    a: int

    @field_serializer("a")
    def _shown(self, a: int) -> int:
        return a + 1


class Growing(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Calling(BaseModel):
    a: int

    def model_post_init(self, context: Any, /) -> None:
        self.a += 1


class Tree(BaseModel):
    children: list[Tree] = []


@dataclass
class Posting:
    a: int

    def __post_init__(self) -> None:
        self.a += 1


@dataclass(slots=True)
class Slotted:
    a: int


@dataclass
class Partly:
    a: int = field(init=False, default=1)


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "annotation",
    [
        *(Aliased, Excluded, Constrained, Stripping, Computing, Serializing, Growing, Tree, Posting, Slotted, Partly, Colour),
        *(RootModel[int], Annotated[int, AfterValidator(abs)], Annotated[str, StringConstraints(to_upper=True)]),
        *(int | str, tuple[int, ...], set[int], bytes, dict[int, str], list[Annotated[int, Field(gt=1)]], list[bytes]),
        *(
            Annotated[list[int], Field(max_length=2)],
            Annotated[dict[str, int], Field(min_length=1)],
            dict[str, bytes],
            dict,
        ),
        *(Annotated[float, Field(lt=1)], bytes | None, Annotated[Any, AfterValidator(str)]),
    ],
    ids=str,
)
def test_types_with_something_in_between_need_a_proof(annotation: Any) -> None:
    assert exact(TypeAdapter(annotation).core_schema) is None


def test_what_calls_after_validation_needs_a_proof_or_says_no() -> None:
    assert not looks(Calling, Calling(a=1))


def test_private_attributes_are_no_part_of_what_is_written() -> None:
    class Secretive(BaseModel):
        a: int
        _hidden: int = PrivateAttr(default=1)

    assert not looks(Secretive, Secretive(a=1))


class Name(str):
    """A text of a class of its own."""

    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "value",
    [
        *([(1,)], {"a": UUID(int=1)}, [math.nan], [Colour.RED], [Level.LOW], {"a": Name("b")}, {Name("a"): 1}, {1: 2}, [2**64]),
        *([b"a"], [bytearray(b"a")], [{1}], ["\ud800"], [object()]),
    ],
    ids=lambda value: str(value)[:12],
)
def test_only_what_is_json_to_the_class_is_copied_as_json(value: Any) -> None:
    assert json_copy(value) is None


def test_a_copy_of_json_shares_nothing() -> None:
    value = {"a": [1, -0.0, None, {"b": "é"}], "c": True}
    copy = json_copy(value)
    assert difference(value, copy) is None
    copy["a"][3]["b"] = "changed"
    assert value["a"] == [1, -0.0, None, {"b": "é"}]
