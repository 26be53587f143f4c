"""Compares a value with what came back from its JSON: both must be equal by type and value at every level.

Pure, except for the user's `__eq__`. `==` is not enough: for it, 1 equals True, `Decimal("1.0")` equals `Decimal("1.00")`, one
time zone equals another, and NaN differs from itself. These differences do not count: a `float` that came back for an `int`
of exactly that number (type checkers allow an `int` for a `float`); the name of a time zone, if instant, offset and fold are
the same; which fields of a model were set explicitly; the order of a dict.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from uuid import UUID

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

ATOMS: frozenset[type] = frozenset({str, int, bool, type(None), bytes, UUID, date, timedelta})
"""Types for which `==` between instances of the same type is enough."""
_QUICK = ATOMS | {float}
_MANY = 3
MISSING: Any = object()
ANEW: Any = object()
"""Stands for a value that did not come back, but was made again."""


class Difference:
    """The first difference between two values. `path` leads to it, from the inside out."""

    __slots__ = ("came", "path", "was")

    def __init__(self, was: Any, came: Any, *path: Any) -> None:
        self.was = was
        self.came = came
        self.path: list[Any] = list(path)

    def below(self, key: Any) -> Difference:
        """Add `key`, under which the container holds the value, to the path."""
        self.path.append(key)
        return self

    @property
    def where(self) -> str:
        """The path as people write it: `orders[0].price`."""
        return path_text(reversed(self.path))


def path_text(path: Iterable[Any]) -> str:
    """`orders[0].price` for ("orders", 0, "price")."""
    text = ""
    for step in path:
        if isinstance(step, str) and step.isidentifier():
            text += f".{step}" if text else step
        else:
            text += f"[{shown(step, 30)}]"
    return text


def shown(value: object, most: int = 60) -> str:
    """The beginning of a value's repr. Total."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # a user's __repr__ may raise anything
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[:most]}…"


def difference(was: object, came: object) -> Difference | None:
    """The first difference between `was` and `came`; None if they are the same. Raises any error that an `__eq__` raises."""
    kind = type(was)
    if kind is not type(came):
        return None if kind is int and type(came) is float and was == came else Difference(was, came)
    if kind in ATOMS:
        return None if was == came else Difference(was, came)
    return _comparer(kind)(was, came)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values of parsed JSON are the same JSON. For `==`, true equals 1, 1 equals 1.0, and 0.0 equals -0.0."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


Comparer = Callable[[Any, Any], Difference | None]


def _floats(was: float, came: float) -> Difference | None:
    if was == came:
        return None if was or math.copysign(1, was) == math.copysign(1, came) else Difference(was, came)
    return None if math.isnan(was) and math.isnan(came) else Difference(was, came)


def _complexes(was: complex, came: complex) -> Difference | None:
    same = _floats(was.real, came.real) is None and _floats(was.imag, came.imag) is None
    return None if same else Difference(was, came)


def _datetimes(was: datetime, came: datetime) -> Difference | None:
    same = was == came and was.fold == came.fold and was.utcoffset() == came.utcoffset()
    return None if same else Difference(was, came)


def _times(was: time, came: time) -> Difference | None:
    same = was.replace(tzinfo=None) == came.replace(tzinfo=None) and was.fold == came.fold and was.utcoffset() == came.utcoffset()
    # without a date a zone such as Europe/Paris has no offset: only the zone itself tells such times apart
    return None if same and (was.utcoffset() is not None or was.tzinfo == came.tzinfo) else Difference(was, came)


def _decimals(was: Decimal, came: Decimal) -> Difference | None:
    return None if str(was) == str(came) else Difference(was, came)  # with all their digits


def _sequences(was: Any, came: Any) -> Difference | None:
    if len(was) != len(came):
        return Difference(was, came)
    if len(was) > _MANY:
        kinds = set(map(type, was))
        if len(kinds) == 1 and kinds <= _QUICK and kinds == set(map(type, came)) and was == came:
            return None if kinds != {float} or 0.0 not in was else _zeros(was, came)
    for index, (one, other) in enumerate(zip(was, came, strict=True)):
        change = difference(one, other)
        if change is not None:
            return change.below(index)
    return None


def _zeros(was: Iterable[float], came: Iterable[float]) -> Difference | None:
    for index, (one, other) in enumerate(zip(was, came, strict=True)):
        if not one and _floats(one, other) is not None:
            return Difference(one, other, index)
    return None


def _mappings(was: dict[Any, Any], came: dict[Any, Any]) -> Difference | None:
    if len(was) != len(came):
        lost = next((key for key in was if key not in came), MISSING)
        return Difference(was, came) if lost is MISSING else Difference(was[lost], MISSING, lost)
    if len(was) > _MANY and was == came:
        kinds = set(map(type, was.values()))
        if len(kinds) == 1 and kinds <= ATOMS and kinds == set(map(type, came.values())) and set(map(type, was)) == {str}:
            return None
    keys = None
    for key, one in was.items():
        other = came.get(key, MISSING)
        if other is MISSING:
            return Difference(key, next((other for other in came if other not in was), MISSING), key)
        if type(key) is not str:
            if keys is None:
                keys = {key: key for key in came}
            change = difference(key, keys[key])
            if change is not None:
                return change.below(key)
        change = difference(one, other)
        if change is not None:
            return change.below(key)
    return None


def _sets(was: Any, came: Any) -> Difference | None:
    if len(was) != len(came):
        return Difference(was, came)
    others = {other: other for other in came}
    for one in was:
        other = others.get(one, MISSING)
        if other is MISSING:
            return Difference(was, came)
        change = difference(one, other)
        if change is not None:
            return change
    return None


def _deques(was: deque[Any], came: deque[Any]) -> Difference | None:
    return Difference(was, came) if was.maxlen != came.maxlen else _sequences(list(was), list(came))


def _with_defaults(was: defaultdict[Any, Any], came: defaultdict[Any, Any]) -> Difference | None:
    if was.default_factory is not came.default_factory:
        return Difference(was, came)
    return _mappings(was, came)


def _equals(was: Any, came: Any) -> Difference | None:
    return None if was is came or bool(was == came) else Difference(was, came)


def _enums(was: Any, came: Any) -> Difference | None:
    if was is came or (was._name_ == came._name_ and difference(was._value_, came._value_) is None):
        return None
    return Difference(was, came)


_BASES: dict[type, Comparer] = {
    float: _floats,
    complex: _complexes,
    datetime: _datetimes,
    time: _times,
    Decimal: _decimals,
    list: _sequences,
    tuple: _sequences,
    dict: _mappings,
    defaultdict: _with_defaults,
    set: _sets,
    frozenset: _sets,
    deque: _deques,
    **dict.fromkeys(ATOMS | {bytearray}, _equals),
}

_AS_BASE: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__pos__,
    complex: complex.__pos__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: lambda value: bytearray.__getitem__(value, slice(None)),
    UUID: lambda value: UUID(int=vars(UUID)["int"].__get__(value)),
    date: lambda value: date.fromordinal(date.toordinal(value)),
    datetime: lambda value: datetime.combine(datetime.date(value), datetime.timetz(value)),
    time: lambda value: datetime.combine(date.min, value).timetz(),
    timedelta: timedelta.__pos__,
    Decimal: Decimal,
    list: lambda value: [*list[Any].__iter__(value)],
    tuple: lambda value: (*tuple[Any, ...].__iter__(value),),
    dict: lambda value: dict(iter(dict[Any, Any].items(value))),
    defaultdict: lambda value: defaultdict(vars(defaultdict)["default_factory"].__get__(value), dict[Any, Any].items(value)),
    set: lambda value: {*set[Any].__iter__(value)},
    frozenset: lambda value: frozenset(frozenset[Any].__iter__(value)),
    deque: lambda value: deque(deque[Any].__iter__(value), vars(deque)["maxlen"].__get__(value)),
}
"""Make a value of exactly this type from an instance of a subclass, by what it holds. Call no overridden method."""
_CONTAINERS: frozenset[type] = frozenset({list, tuple, dict, set, frozenset, deque})
_ASKED = frozenset({"__eq__", "__len__", "__iter__", "__contains__", "__getitem__", "__getattribute__", "get", "items", "maxlen"})
"""The methods by which containers are compared."""


@lru_cache(maxsize=1000)
def _comparer(kind: type[Any]) -> Comparer:
    if kind in _BASES:
        return _BASES[kind]
    if issubclass(kind, Enum):
        return _enums
    if issubclass(kind, BaseModel):
        return _of_models(kind)
    if dataclasses.is_dataclass(kind):
        names = tuple(field.name for field in dataclasses.fields(kind))
        return _of_fields(names, _leaving_out(kind), _made_anew(kind))
    for base in kind.__mro__:
        if base in _BASES:  # a NamedTuple, an OrderedDict, a user's class
            return _of_a_subclass(kind, base)
    if kind.__eq__ is not object.__eq__:
        return _of_an_equality(_leaving_out(kind))
    slots = tuple(name for base in kind.__mro__ for name in _slots(base))
    return _of_fields(slots, _leaving_out(kind)) if slots or kind.__dictoffset__ else _equals


def _slots(kind: type[Any]) -> tuple[str, ...]:
    found: Any = kind.__dict__.get("__slots__", ())
    names: tuple[str, ...] = (found,) if isinstance(found, str) else tuple(found)
    return tuple(_mangled(name, kind) for name in names if name not in ("__dict__", "__weakref__"))


def _mangled(name: str, kind: type[Any]) -> str:
    return f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name


def _leaving_out(kind: type[Any]) -> frozenset[str]:
    """Attributes that are not state: values that a cached_property or its like keeps, and the parameters of a generic class."""
    remembered = [name for base in kind.__mro__ for name, value in vars(base).items() if _remembers(value)]
    return frozenset([*remembered, "__orig_class__"])


def _remembers(value: object) -> bool:
    """Whether it is a descriptor that Python asks only while the object has no attribute of its name, and is not a method."""
    kind = type(value)
    if issubclass(kind, cached_property):
        return True
    is_descriptor = hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not hasattr(kind, "__delete__")
    return is_descriptor and not isinstance(value, FunctionType | classmethod | staticmethod)


def _attributes(was: Any, came: Any, left_out: frozenset[str]) -> Difference | None:
    ours: dict[str, Any] | None = getattr(was, "__dict__", None)
    theirs: dict[str, Any] | None = getattr(came, "__dict__", None)
    ours = {name: value for name, value in (ours or {}).items() if name not in left_out}
    theirs = {name: value for name, value in (theirs or {}).items() if name not in left_out}
    return _mappings(ours, theirs)


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes in which an object of a Python class keeps its state: slots, `__dict__`, and the extra fields of a model."""
    slots = {name: getattr(value, name) for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)}
    more: dict[str, Any] = slots.pop("__pydantic_extra__", None) or {}
    return {**slots, **(getattr(value, "__dict__", None) or {}), **more}


def gives_the_same(factory: Any) -> bool:
    """Whether a default factory is a builtin type such as `list` or `list[int]`, which gives the same value each time."""
    return (get_origin(factory) or factory) in _SAME_EACH_TIME


_SAME_EACH_TIME: tuple[Any, ...] = (
    *(list, dict, set, frozenset, tuple, deque, OrderedDict, Counter),
    *(str, int, float, bool, bytes, bytearray),
)


def _made_anew(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass that are not written, or not read, and whose factory may make another value each time."""
    infos: dict[str, FieldInfo] = getattr(kind, "__pydantic_fields__", None) or _noted(kind)
    found: list[str] = []
    for field in dataclasses.fields(kind):
        info = infos.get(field.name)
        factory = field.default_factory if info is None or info.default_factory is None else info.default_factory
        passed_over = not field.init or (info is not None and (info.exclude or info.init is False))
        if passed_over and factory not in (None, dataclasses.MISSING) and not gives_the_same(factory):
            found.append(field.name)
    return tuple(found)


def _noted(kind: type[Any]) -> dict[str, FieldInfo]:
    """The `Field(...)` in the annotations of a plain dataclass."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001  # a name may be local to a function, or exist for type checkers only
        return {}
    noted = {name: get_args(hint)[1:] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {name: one for name, more in noted.items() for one in more if isinstance(one, FieldInfo)}


def _of_fields(names: tuple[str, ...], left_out: frozenset[str], made_anew: tuple[str, ...] = ()) -> Comparer:
    known = left_out.union(names)

    def compare(was: Any, came: Any) -> Difference | None:
        for name in made_anew:
            if hasattr(was, name):
                return Difference(getattr(was, name), ANEW, name)
        for name in names:
            change = difference(getattr(was, name, MISSING), getattr(came, name, MISSING))
            if change is not None:
                return change.below(name)
        return _attributes(was, came, known)

    return compare


def _of_a_subclass(kind: type[Any], base: type) -> Comparer:
    """Compares as the subclass sees itself, then what it holds as its base, then its attributes.

    The subclass alone could call different values equal; the base alone does not see what the subclass adds.
    """
    compare_base, as_base = _BASES[base], _AS_BASE[base]
    own = kind.__mro__[: kind.__mro__.index(base)]
    strict = base not in _CONTAINERS or any(name in _ASKED for one in own for name in vars(one))
    slots = tuple(name for one in own for name in _slots(one))
    names: tuple[str, ...] = getattr(kind, "_fields", ())
    left_out = _leaving_out(kind)

    def compare(was: Any, came: Any) -> Difference | None:
        change = compare_base(was, came)
        if change is None and strict:
            change = compare_base(as_base(was), as_base(came))
            if change is not None and not change.path:
                change = Difference(was, came)
        if change is not None:
            if names and change.path and type(change.path[-1]) is int:
                change.path[-1] = names[change.path[-1]]
            return change
        for name in slots:
            change = difference(getattr(was, name, MISSING), getattr(came, name, MISSING))
            if change is not None:
                return change.below(name)
        return _attributes(was, came, left_out)

    return compare


def _of_an_equality(left_out: frozenset[str]) -> Comparer:
    """Compares by the `__eq__` of the class, then by public attributes: an `__eq__` may look at some of them only.

    Private ones are often caches, which differ between equal objects.
    """

    def public(value: Any) -> dict[str, Any]:
        found = attributes_of(value).items()
        return {name: held for name, held in found if not name.startswith("_") and name not in left_out}

    def compare(was: Any, came: Any) -> Difference | None:
        if was is came:
            return None
        if not bool(was == came):
            return Difference(was, came)
        pair = id(was), id(came)
        if pair in _under_way:  # an object that leads back to itself
            return None
        _under_way.add(pair)
        try:
            return _mappings(public(was), public(came))
        finally:
            _under_way.discard(pair)

    return compare


_under_way: set[tuple[int, int]] = set()


def _of_models(kind: type[BaseModel]) -> Comparer:
    names = tuple(kind.model_fields)
    made = [name for name, one in kind.model_fields.items() if one.default_factory and not gives_the_same(one.default_factory)]
    private = [
        name
        for name, one in kind.__private_attributes__.items()
        if one.default_factory and not gives_the_same(one.default_factory)
    ]

    def compare(was: Any, came: Any) -> Difference | None:
        ours, theirs = was.__dict__, came.__dict__
        for name in made:
            if name in ours and name not in came.__pydantic_fields_set__:  # the JSON had no such field
                return Difference(ours[name], ANEW, name)
        for name in private:
            if name in (was.__pydantic_private__ or {}):
                return Difference(was.__pydantic_private__[name], ANEW, name)
        for name in names:
            one, other = ours.get(name, MISSING), theirs.get(name, MISSING)
            if type(one) is type(other) and type(one) in ATOMS and one == other:
                continue
            change = difference(one, other)
            if change is not None:
                return change.below(name)
        if was.__pydantic_extra__ or came.__pydantic_extra__:
            change = _mappings(was.__pydantic_extra__ or {}, came.__pydantic_extra__ or {})
            if change is not None:
                return change
        if was.__pydantic_private__ or came.__pydantic_private__:
            return _mappings(was.__pydantic_private__ or {}, came.__pydantic_private__ or {})
        return None

    return compare


def in_words(change: Difference) -> str:
    """A message, in one line: where and how a value would change, and what to do."""
    was: object = change.was
    came: object = change.came
    place = f"{change.where}: " if change.path else ""
    kind, other = type(was), type(came)
    if came is MISSING:
        return f"{place}{shown(was)} would be lost{_advice(change)}"
    if came is ANEW:
        return f"{place}{shown(was)} is not written, and its default factory would make it anew at each reading{_advice(change)}"
    if kind is other:
        seen, back = shown(was), shown(came)
        return f"{place}{seen} would come back as {'another ' + kind.__name__ if seen == back else back}{_advice(change)}"
    return f"{place}{shown(was)} ({kind.__name__}) would come back as {shown(came)} ({other.__name__}){_advice(change)}"


_WRITTEN: dict[type, str] = {tuple: "tuple[…]", set: "set[…]", frozenset: "frozenset[…]", list: "list[…]", dict: "dict[…]"}


def _advice(change: Difference) -> str:
    was: object = change.was
    came: object = change.came
    kind, other = type(was), type(came)
    name = next((step for step in change.path if isinstance(step, str)), "")
    if isinstance(was, SecretStr | SecretBytes):
        return (
            "; pydantic writes a secret as asterisks. Pass a reference to it, or, if it may stand in the log, give the model a "
            f'serializer that writes it: @field_serializer("{name or "name"}", when_used="json") '
            "def write(self, value): return value.get_secret_value()"
        )
    if isinstance(was, float) and not math.isfinite(was):
        return '; give the model ConfigDict(ser_json_inf_nan="strings"), or annotate float'
    if came is ANEW and not str(change.path[0]).startswith("_"):
        return "; let it be written (without exclude or init=False), give it a default in place of the factory, or compute it"
    if came is MISSING or came is ANEW:
        if name.startswith("_"):
            return "; a private attribute is not written: make it a field"
        return "; it is not a field of the type, or is excluded when the value is written"
    if kind is not other and issubclass(kind, other):
        lost = sorted(_fields(kind) - _fields(other))
        what = f": {', '.join(f'{kind.__name__}.{one}' for one in lost[:5])} would be lost" if lost else ""
        return f"{what}; annotate {kind.__name__}, or a union of what it may be, or convert it"
    if kind is not other and kind.__module__ in ("builtins", "datetime", "decimal", "uuid", "collections"):
        return f"; annotate {_WRITTEN.get(kind, kind.__name__)}"
    if isinstance(was, defaultdict):
        return "; annotate its values with the same factory, Annotated[…, Field(default_factory=…)], or give a dict"
    if isinstance(was, datetime | time):
        return "; give it in UTC, or with an offset of whole minutes and without fold"
    return "; give the type a serializer whose output its validation reads back unchanged, or annotate another type"


def _fields(kind: type[Any]) -> set[str]:
    names: Iterable[str] = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", ())
    return set(names)
