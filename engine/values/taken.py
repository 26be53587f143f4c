"""Arguments by value: each attempt of a step gets the arguments as they were at the call, even if code changes them meanwhile.

Data are copied at every level: lists, dicts, sets, tuples of these, the wrappers of `collections` (`UserList`, `UserDict`,
`ChainMap`), dataclasses, pydantic and attrs models, buffers and views of them, and objects with `__deepcopy__` (arrays, data
frames). Immutable values need no copy. Everything else (clients, locks, connections, functions, objects of plain classes) is
passed as it is, also inside data.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import itertools
import marshal
import types
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache, partial
from io import BytesIO, StringIO
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel

from ..errors import ConfigError
from .codec import REPLACED, codec_for
from .exact import STRICT, Exact, exact, json_copy

Copies = Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
"""Makes copies of the function and the arguments of a step, for one attempt."""

_NONE: dict[Any, Any] = {}
_REVERSIBLE: tuple[Any, ...] = ([], _NONE, _NONE.values(), _NONE.items(), deque[Any](), OrderedDict[Any, Any]())
_EMPTY: tuple[Any, ...] = (
    *(*_REVERSIBLE, (), set[Any](), "", "é", b"", bytearray(), range(0), range(2**70)),
    *(array("b"), memoryview(b""), OrderedDict[Any, Any]().values(), OrderedDict[Any, Any]().items()),
)

# fmt: off
FIXED: frozenset[type] = frozenset({
    str, int, float, bool, type(None), bytes, complex, frozenset, range, slice, type, type(...), type(NotImplemented),
    date, datetime, time, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
})
"""Types whose instances do not change, or are never copied."""
_ONCE: list[Any] = [
    types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType, map, filter, zip, enumerate, reversed,
    *(type(iter(one)) for one in _EMPTY), *(type(reversed(one)) for one in _REVERSIBLE), type(iter(int, 1)),
    type(csv.reader(())), csv.DictReader,
    *(one for one in vars(itertools).values() if isinstance(one, type)),
]
"""Types whose instances can be iterated only once: a second attempt would find nothing."""
# fmt: on

T = TypeVar("T")
Memo = dict[int, Any]
Copier = Callable[[Any, Memo], Any]


def is_fixed(args: tuple[Any, ...]) -> bool:
    """Whether all arguments are of types that never need a copy."""
    for one in args:  # noqa: SIM110  # takes half the time of all(...)
        if type(one) not in FIXED:
            return False
    return True


def by_value(fn: Callable[..., Any], args: tuple[Any, ...]) -> Copies | None:
    """A maker of a function and arguments for each attempt; None if nothing in them needs a copy.

    Raises TypeError for an argument that can be iterated only once.
    """
    if type(fn) is not partial:
        snapshot = _json_snapshot(args) or _typed_snapshot(args)
        if snapshot is not None:
            return lambda: (fn, snapshot())
    call = (fn, args)
    own = taken(call)
    return None if own is call else lambda: taken(own)


def _json_snapshot(args: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]] | None:
    """A snapshot of JSON values, and tuples of them, as bytes: faster than copying the objects one by one. None for other values.

    marshal refuses instances of the user's classes. orjson refuses the other types that marshal writes, such as `bytearray`,
    which marshal would return as bytes.
    """
    try:
        data = marshal.dumps(args)
        orjson.dumps(args, option=STRICT)
    except (TypeError, ValueError, RecursionError):
        return None
    return partial(marshal.loads, data)


def _typed_snapshot(args: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]] | None:
    """A snapshot of models and dataclasses whose JSON holds everything; None for others, and if one object is passed twice."""
    if len(args) > 1 and len(set(map(id, args))) < len(args):
        return None
    makers: list[Callable[[], Any] | None] = []
    for one in args:
        kind = cast("type[Any]", type(one))
        if kind in FIXED:
            makers.append(None)
            continue
        typed = _typed(kind)
        if typed is None or not typed.look(one):
            return None
        try:
            data = typed.write(one)
        except ValueError:  # half a surrogate pair
            return None
        if REPLACED in data:  # half a surrogate pair in a key
            return None
        makers.append(partial(typed.read, data))
    return lambda: tuple(one if maker is None else maker() for one, maker in zip(args, makers, strict=True))


class _Typed(NamedTuple):
    look: Exact
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


@lru_cache(maxsize=1000)
def _typed(kind: type[Any]) -> _Typed | None:
    if not issubclass(kind, BaseModel) and not dataclasses.is_dataclass(kind):
        return None
    if getattr(kind, "__copy__", BaseModel.__copy__) is not BaseModel.__copy__ or _copier(kind) is _as_it_says:
        return None
    try:
        adapter = codec_for(kind).adapter
    except ConfigError:
        return None
    look = None if adapter is None else exact(adapter.core_schema, whole=True)
    return None if adapter is None or look is None else _Typed(look, adapter.serializer.to_json, adapter.validator.validate_json)


def taken(value: T) -> T:
    """A copy of data, or the same object if nothing in it needs a copy. Raises TypeError if it can be iterated only once."""
    return _taken(value, {})


def _taken(value: object, memo: Memo) -> Any:
    kind = type(value)
    if kind in FIXED:
        return value
    copier = _copier(kind)
    if copier is None:
        return value
    known = memo.get(id(value), memo)
    return copier(value, memo) if known is memo else known


@lru_cache(maxsize=1000)
def _copier(kind: type[Any]) -> Copier | None:
    """The copier for instances of a class; None if they are passed as they are."""
    if kind in _ONCE:  # a list is fast enough: the cache asks once for each class
        return _refuse
    if kind in _COPIERS:
        return _COPIERS[kind]
    if issubclass(kind, Enum | type):
        return None
    own = getattr(kind, "__deepcopy__", None)
    if own is not None and own is not BaseModel.__deepcopy__:
        return _as_it_says
    if issubclass(kind, BaseModel):
        return _model
    if dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__"):
        return _fields_of(kind, _shallow_or_same)
    if issubclass(kind, _WRAPPERS):
        return _fields_of(kind, _with_its_attributes)
    for base in kind.__mro__:
        if base in _REFILLED:
            return _subclass(_REFILLED[base])
    return _named_tuple if issubclass(kind, tuple) else None


_WRAPPERS: tuple[type[Any], ...] = (UserList, UserDict, ChainMap)


def _refuse(value: object, memo: Memo) -> Any:
    kind = type(value)
    if kind is types.CoroutineType:
        raise TypeError("a coroutine can be awaited once, and a step may be tried again: pass the function and its arguments")
    raise TypeError(f"a {kind.__name__} can be iterated once, and a step may be tried again: pass a list")


def _list(value: list[Any], memo: Memo) -> list[Any]:
    kinds = set(map(type, value))
    if kinds <= FIXED:
        new = memo[id(value)] = value.copy()
        return new
    json = json_copy(value) if kinds <= _JSON else None
    if json is not None:
        return memo.setdefault(id(value), json)
    new: list[Any] = []
    memo[id(value)] = new
    new.extend(_taken(one, memo) for one in value)
    return new


def _dict(value: dict[Any, Any], memo: Memo) -> dict[Any, Any]:
    kinds = set(map(type, value.values()))
    if not kinds <= FIXED:
        json = json_copy(value) if kinds <= _JSON else None
        if json is not None:
            return memo.setdefault(id(value), json)
        new = memo[id(value)] = dict[Any, Any]()
        for key, one in value.items():
            new[key] = _taken(one, memo)
        return new
    new = memo[id(value)] = value.copy()
    return new


_JSON: frozenset[type] = frozenset({dict, list, str, int, float, bool, type(None)})


def _tuple(value: tuple[Any, ...], memo: Memo) -> tuple[Any, ...]:
    if is_fixed(value):
        return value
    new = tuple(_taken(one, memo) for one in value)
    if all(one is other for one, other in zip(new, value, strict=True)):
        return value
    return memo.setdefault(id(value), new)


def _deque(value: deque[Any], memo: Memo) -> deque[Any]:
    new = memo[id(value)] = deque[Any](maxlen=value.maxlen)
    new.extend(_taken(one, memo) for one in value)
    return new


def _partial(value: partial[Any], memo: Memo) -> partial[Any]:
    func, args, keywords = _taken(value.func, memo), _tuple(value.args, memo), value.keywords
    if func is value.func and args is value.args and is_fixed(tuple(keywords.values())):
        return value
    return memo.setdefault(id(value), partial(func, *args, **_dict(keywords, {})))


def _shallow(value: Any, memo: Memo) -> Any:
    new = memo[id(value)] = copy.copy(value)
    return new


def _as_it_says(value: Any, memo: Memo) -> Any:
    try:
        return memo.setdefault(id(value), value.__deepcopy__(memo))
    except Exception:  # noqa: BLE001  # an object that cannot be copied is passed as it is
        return value


def _memoryview(value: memoryview, memo: Memo) -> memoryview:
    """A view of a copy of what it shows; the same view if that cannot change."""
    try:
        if type(value.obj) is bytes:
            return value
        data = value.tobytes()
        flat = memoryview(data if value.readonly else bytearray(data))
        new: memoryview = cast(Any, flat).cast(value.format, value.shape)
    except (ValueError, TypeError):  # released, or of a format that no other view can have: it is passed as it is
        return value
    return memo.setdefault(id(value), new)


def _proxy(value: types.MappingProxyType[Any, Any], memo: Memo) -> types.MappingProxyType[Any, Any]:
    return memo.setdefault(id(value), types.MappingProxyType(_dict(dict(value), memo)))


_COPIERS: dict[type, Copier] = {
    list: _list,
    dict: _dict,
    tuple: _tuple,
    deque: _deque,
    partial: _partial,
    **dict.fromkeys((set, bytearray, array, BytesIO, StringIO), _shallow),
    types.MappingProxyType: _proxy,
    memoryview: _memoryview,
    type(_NONE.keys()): lambda value, memo: dict.fromkeys(value).keys(),
    type(_NONE.values()): lambda value, memo: {number: _taken(one, memo) for number, one in enumerate(value)}.values(),
    type(_NONE.items()): lambda value, memo: {key: _taken(one, memo) for key, one in value}.items(),
}


def _namespace(new: Any, memo: Memo) -> None:
    """Replace the attributes of a copy by copies."""
    attributes = cast("dict[str, Any]", getattr(new, "__dict__", {}))
    for name, one in attributes.items():
        attributes[name] = _taken(one, memo)


def _shallow_or_same(value: Any, memo: Memo) -> Any:
    try:
        return memo.setdefault(id(value), copy.copy(value))
    except Exception:  # noqa: BLE001  # an object that cannot be copied is passed as it is
        return value


def _with_its_attributes(value: Any, memo: Memo) -> Any:
    """A new object with the attributes of `value`. A `copy` of ChainMap or UserList would call the subclass's constructor."""
    try:
        new = object.__new__(cast("type[Any]", type(value)))
    except TypeError:  # it also derives from a class that is not written in Python: it is passed as it is
        return value
    memo[id(value)] = new
    new.__dict__.update(value.__dict__)
    return new


def _fields_of(kind: type[Any], make: Copier) -> Copier:
    slots = tuple(
        name
        for base in kind.__mro__
        for name, member in base.__dict__.items()
        if isinstance(member, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__")
    )

    def copier(value: Any, memo: Memo) -> Any:
        new = make(value, memo)
        if new is not value:
            _namespace(new, memo)
            for name in slots:
                if hasattr(value, name):
                    object.__setattr__(new, name, _taken(getattr(value, name), memo))
        return new

    return copier


def _model(value: BaseModel, memo: Memo) -> Any:
    kind = type(value)
    if kind.__copy__ is not BaseModel.__copy__:
        return _copied_model(value, memo)
    new = memo[id(value)] = kind.__new__(kind)
    fields = value.__dict__.copy()
    for name, one in fields.items():
        if type(one) not in FIXED:
            fields[name] = _taken(one, memo)
    _set(new, "__dict__", fields)
    _set(new, "__pydantic_fields_set__", value.__pydantic_fields_set__.copy())
    _set(new, "__pydantic_extra__", _more(value.__pydantic_extra__, memo))
    _set(new, "__pydantic_private__", _more(value.__pydantic_private__, memo))
    return new


_set = object.__setattr__


def _more(value: dict[str, Any] | None, memo: Memo) -> dict[str, Any] | None:
    return None if value is None else {name: _taken(one, memo) for name, one in value.items()}


def _copied_model(value: BaseModel, memo: Memo) -> Any:
    new = _shallow_or_same(value, memo)
    if new is not value:
        _namespace(new, memo)
        extras: tuple[dict[str, Any] | None, ...] = (new.__pydantic_extra__, new.__pydantic_private__)
        for more in extras:
            if more is not None:
                _refill_dict(more, memo)
    return new


def _refill_list(new: list[Any], memo: Memo) -> None:
    items: list[Any] = [_taken(one, memo) for one in new]
    list[Any].__setitem__(new, slice(None), items)


def _refill_dict(new: dict[Any, Any], memo: Memo) -> None:
    for key, one in list(dict[Any, Any].items(new)):
        dict[Any, Any].__setitem__(new, key, _taken(one, memo))


def _refill_deque(new: deque[Any], memo: Memo) -> None:
    items = [_taken(one, memo) for one in new]
    new.clear()
    new.extend(items)


def _refill_nothing(new: object, memo: Memo) -> None:
    """Do nothing: the items of a set or a buffer are immutable."""


_REFILLED: dict[type, Callable[[Any, Memo], None]] = {
    list: _refill_list,
    deque: _refill_deque,
    dict: _refill_dict,
    set: _refill_nothing,
    bytearray: _refill_nothing,
    types.SimpleNamespace: _refill_nothing,
}


def _subclass(refill: Callable[[Any, Memo], None]) -> Copier:
    def copier(value: Any, memo: Memo) -> Any:
        new = _shallow_or_same(value, memo)
        if new is not value:
            refill(new, memo)
            _namespace(new, memo)
        return new

    return copier


def _named_tuple(value: tuple[Any, ...], memo: Memo) -> tuple[Any, ...]:
    items = [_taken(one, memo) for one in value]
    if all(one is other for one, other in zip(items, value, strict=True)):
        return value
    new = memo[id(value)] = tuple[Any, ...].__new__(type(value), items)
    if hasattr(value, "__dict__"):
        new.__dict__.update(value.__dict__)
        _namespace(new, memo)
    return new
