"""Values in the log: JSON, typed by annotations through pydantic. Nothing is pickled.

A `Codec` belongs to one annotation. Without an annotation a value is plain JSON.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Awaitable, Callable
from functools import lru_cache, wraps
from types import CellType, MethodType
from typing import Any, Never, NoReturn, TypeVar, cast, get_args, get_origin
from weakref import WeakKeyDictionary

import orjson
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from .errors import ConfigError
from .events import MAX_DEPTH, is_deeper

T = TypeVar("T")

_PLAIN: frozenset[Any] = frozenset({Any, Never, NoReturn, inspect.Parameter.empty})
_EXACT: dict[Any, type] = {None: type(None), type(None): type(None), bool: bool, str: str}
"""Annotations whose instances are JSON as they are: those need no pydantic."""
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")


class Codec:
    """Encodes values of one annotation as JSON and back.

    Raises ConfigError when made for an annotation that pydantic cannot validate; `what` names the place in the message.
    """

    __slots__ = ("_adapter", "_exact", "annotation")

    def __init__(self, annotation: Any, what: str) -> None:
        self.annotation = annotation
        self._adapter: TypeAdapter[Any] | None = None
        self._exact: type | None = None
        if _hashable(annotation):
            if annotation in _PLAIN:
                return
            self._exact = _EXACT.get(annotation)
        try:
            self._adapter = _adapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ConfigError(f"{what}: pydantic cannot validate {annotation!r}: {str(error).splitlines()[0]}") from error

    def encode(self, value: Any) -> bytes:
        """JSON bytes that `decode` takes. Raises TypeError or ValueError, whose message names what cannot be encoded."""
        if self._adapter is None or type(value) is self._exact:
            return dumps(value)
        return _taken_back(self._adapter, self._adapter.dump_json(value, warnings="error", by_alias=True))

    def decode(self, value: Any) -> Any:
        """The typed value for JSON as `orjson.loads` gives it. Raises pydantic's ValidationError."""
        if self._adapter is None or type(value) is self._exact:
            return value
        return self._adapter.validate_json(orjson.dumps(value))

    def accept(self, value: Any) -> bytes:
        """JSON bytes for a value that a caller gives: an instance, or data that validates. Raises ValidationError, TypeError."""
        if self._adapter is None or type(value) is self._exact:
            return dumps(value)
        return _taken_back(self._adapter, self._adapter.dump_json(self._adapter.validate_python(value), by_alias=True))


def dumps(value: Any) -> bytes:
    """Plain JSON. Raises TypeError or ValueError for what it cannot say, or not safely."""
    return limited(orjson.dumps(value))


def limited(data: bytes) -> bytes:
    """The same JSON. Raises ValueError for what is nested too deep."""
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(data, orjson.loads(data)):
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return data


def _taken_back(adapter: TypeAdapter[Any], data: bytes) -> bytes:
    """The same bytes, once they are known to give the value again: not every type that can be written can be read."""
    if _LONG_NUMBER.search(data):
        json.loads(data, parse_int=_of_64_bits)
    adapter.validate_json(data)
    return limited(data)


def _of_64_bits(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer of more than 64 bits; give it as a string")
    return number


_LONG_NUMBER = re.compile(rb"\d{19}")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError:  # models and others that carry a configuration of their own
        return TypeAdapter(annotation)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


ANY = Codec(Any, "Any")
"""Plain JSON."""


def by_function(compute: Callable[[Callable[..., Any]], T]) -> Callable[[Callable[..., Any]], T]:
    """Remember what is computed for a function as long as it lives; for what has no hash it is computed each time."""
    remembered: WeakKeyDictionary[Callable[..., Any], T] = WeakKeyDictionary()

    @wraps(compute)
    def look_up(fn: Callable[..., Any]) -> T:
        if isinstance(fn, MethodType):  # made anew at each access
            fn = fn.__func__
        try:
            found = remembered.get(fn)
        except TypeError:
            return compute(fn)
        if found is None:
            found = remembered[fn] = compute(fn)
        return found

    return look_up


@by_function
def result_codec(fn: Callable[..., Any]) -> Codec:
    """The codec for what a function returns, by its annotation. Raises ConfigError."""
    target = inspect.unwrap(fn)
    annotation = _return_annotation(target)
    return ANY if annotation is Any else Codec(annotation, _name(target))


@lru_cache(maxsize=1000)
def codec_for(annotation: Any) -> Codec:
    """The codec for a hashable annotation."""
    return Codec(annotation, str(annotation))


def _name(fn: Callable[..., Any]) -> str:
    return f"the annotations of {getattr(fn, '__qualname__', repr(fn))}"


def _return_annotation(fn: Callable[..., Any]) -> Any:
    if not inspect.isroutine(fn) and not isinstance(
        fn, type
    ):  # a partial, or an object with __call__, whose own annotations are fields
        fn = getattr(fn, "func", getattr(fn, "__call__", fn))  # noqa: B004  # the method itself is wanted
    annotation = annotations_of(fn).get("return", Any)
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Awaitable):  # a plain function that gives something to await
        return (get_args(annotation) or (Any,))[-1]
    return annotation


_EMPTY = CellType()
"""What a closure holds of a name that gets its value later."""


def annotations_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """A function's annotations, evaluated where it was defined. Raises ConfigError for a name that is not there at run time."""
    raw = cast(dict[str, Any], getattr(fn, "__annotations__", {}))
    if not any(isinstance(annotation, str) for annotation in raw.values()):
        return raw
    cells = getattr(fn, "__closure__", None) or ()
    names: tuple[str, ...] = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    enclosing = {name: cell.cell_contents for name, cell in zip(names, cells, strict=False) if cell != _EMPTY}
    holder = type("annotations", (), {"__annotations__": raw})
    try:
        return typing.get_type_hints(holder, getattr(fn, "__globals__", {}), enclosing, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{_name(fn)}: {error}; types must be importable at run time, not only under TYPE_CHECKING") from error


def describe(error: ValidationError) -> str:
    """One line for a person."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place + ': ' if place else ''}{first['msg']}{more}"
