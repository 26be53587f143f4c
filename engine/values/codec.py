"""Values in the log: JSON, typed by annotations through pydantic. Nothing is pickled.

A `Codec` belongs to one annotation. It proves that each value comes back as it was: it decodes the JSON before anybody uses
it, and compares (`same.py`). It refuses a value that would come back as something else, and names the path to it. Types
whose JSON holds every value exactly need no such proof (`exact.py`). Without an annotation a value must be exact JSON: dicts
with text keys, lists, texts, integers of up to 64 bits, finite floats, true, false and null.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple, Never, NoReturn, TypeVar, cast, get_origin

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from ..errors import ConfigError, InputInvalid, ValueInvalid, message_of
from .anew import differs_privately, made_alone
from .annotations import by_function, name_of, return_annotation, said, unwrapped
from .digits import Spot, as_text, held, loads, raw, spots
from .exact import STRICT, Exact, exact, holds_exactly
from .nesting import MAX_DEPTH, is_deeper
from .same import Difference, attributes_of, difference, gives_the_same, in_words, path_text, shown
from .text import shown as one_line
from .unwritten import unwritten

T = TypeVar("T")

_PLAIN: frozenset[Any] = frozenset({Any, Never, NoReturn, inspect.Parameter.empty})
_EXACT: dict[Any, type] = {None: type(None), type(None): type(None), bool: bool, str: str, int: int, float: float}
"""Annotations whose instances are JSON as they are, and need no pydantic."""
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_WAYS = ((True, False), (True, True), (False, False), (False, True))
"""The ways to write a value, as (by_alias, round_trip). `prove` takes the first that can be read back."""


class Codec:
    """Encodes values of one annotation as JSON, and decodes them.

    The constructor raises ConfigError for an annotation that pydantic cannot validate; `what` says in the message whose it is.
    `returned_by`: the name of the function that returns the values.
    """

    __slots__ = ("_exact", "_look", "_returned_by", "adapter", "annotation", "asks_types", "makes_anew")

    def __init__(self, annotation: Any, what: str, returned_by: str | None = None) -> None:
        self.annotation = annotation
        self._returned_by = returned_by
        self.asks_types = False  # decoding may call code of the user's
        self.makes_anew = False  # decoding the same JSON twice may give different values
        self.adapter: TypeAdapter[Any] | None = None  # None for plain JSON
        self._exact: type | None = None
        self._look: Exact | None = None  # a check that makes the proof unnecessary for values that pass it
        if _hashable(annotation):
            if annotation in _PLAIN:
                return
            self._exact = _EXACT.get(annotation)
        self.asks_types = self._exact is None
        try:
            self.adapter = _adapter(annotation)
            self.adapter.rebuild()  # does nothing unless a name in it was not yet defined
        except (PydanticSchemaGenerationError, PydanticUserError, PydanticUndefinedAnnotation) as error:
            raise ConfigError(f"{what}: pydantic cannot validate {annotation!r}: {str(error).splitlines()[0]}") from error
        self.makes_anew = makes_anew(self.adapter.core_schema)
        self._look = exact(self.adapter.core_schema)

    def encode(self, value: Any) -> bytes:
        """JSON bytes from which `decode` makes an equal value.

        Raises ValueInvalid, which names the path to the part that cannot be written or would come back as something else.
        """
        data = self.at_sight(value)
        return self.prove(value) if data is None else data

    def at_sight(self, value: Any) -> bytes | None:
        """As `encode` for a value that needs no proof, without a call of the user's code; None for others. Raises as `encode`."""
        adapter = self.adapter
        if adapter is None:
            return dumps(value)
        if type(value) is self._exact and (self._exact is not float or isfinite(value)):
            try:
                return orjson.dumps(value)
            except TypeError as error:
                raise ValueInvalid(_half(value) if type(value) is str else _unwritable(error, value)) from error
        if self._look is not None and self._look(value):
            try:
                data = adapter.serializer.to_json(value)
            except ValueError:  # half a surrogate pair, or too deep: `prove` raises with a message
                return None
            if not _LONG_NUMBER.search(data) and REPLACED not in data:
                return limited(data)
        return None

    def decode(self, value: object) -> Any:
        """The typed value for JSON as `orjson.loads` returns it, sharing no object with it. Raises pydantic's ValidationError."""
        kind = type(value)
        if kind is self._exact:
            return value
        if self.adapter is None:
            return own(value) if kind is dict or kind is list else value
        return self.adapter.validator.validate_json(orjson.dumps(value))

    def differs_anew(self, value: object, made: Any) -> str | None:
        """The path at which decoding `value`, which gave `made`, again gives another value; None if the two are the same.

        Compares the JSON of the two, and private attributes. Raises any error that the user's types raise.
        """
        if not self.makes_anew or self.adapter is None:
            return None
        alone = made_alone(made)
        if alone is not None:
            return alone
        write = self.adapter.serializer.to_json
        second = self.decode(value)
        first, again = write(made, warnings=False), write(second, warnings=False)
        if first == again:
            return differs_privately(made, second)
        change = difference(orjson.loads(first), orjson.loads(again))
        return None if change is None else change.where

    def accept(self, value: Any) -> bytes:
        """JSON bytes for a value from a caller: an instance, or data that validates.

        Raises ValidationError, and ValueInvalid as `encode` does.
        """
        if self.adapter is None or type(value) is self._exact:
            return self.encode(value)
        return self.encode(self.adapter.validate_python(value))

    def accept_json(self, value: Any) -> bytes:
        """JSON bytes for JSON that another program wrote, as `digits.loads` returns it.

        A number that JSON parsers would change becomes a text if the type reads numbers from texts there, and a double if it
        prints as this number; any other is refused. Raises ValidationError, and ValueInvalid, which names the number.
        """
        if not spots([value]):
            self.decode(value)
            return orjson.dumps(value)
        root = [loads(raw(value))]  # a copy of its own
        found = spots(root)
        if self.adapter is not None:
            numbers = self._read_from_texts(root, found)
            for spot in found:
                spot.holder[spot.key] = as_text(spot.number) if spot in numbers else spot.number
        try:
            data = held(root[0])
        except ValueError as error:
            raise ValueInvalid(str(error)) from error
        self.decode(orjson.loads(data))
        return data

    def _read_from_texts(self, root: list[Any], found: list[Spot]) -> list[Spot]:
        """The numbers that stand where the type also reads a number from a text, which it shows by refusing any other text."""
        for number, spot in enumerate(found):
            spot.holder[spot.key] = f"no number {number}"
        try:
            self.decode(root[0])
        except ValidationError as error:
            refused = {one["input"] for one in error.errors(include_url=False) if isinstance(one["input"], str)}
            return [spot for number, spot in enumerate(found) if f"no number {number}" in refused]
        except Exception:  # noqa: BLE001  # the user's validators may raise anything
            return []
        return []

    def prove(self, value: Any) -> bytes:
        """As `encode`, always with proof: decodes what it has written, and compares.

        The result is decoded again where the code gets it: a client or a replay has only the bytes.
        """
        adapter = self.adapter
        assert adapter is not None
        problem: Exception | Difference | None = None
        for by_alias, round_trip in _WAYS:
            try:
                data = self._write(value, by_alias=by_alias, round_trip=round_trip)
                if b"NaN" in data or b"Infinity" in data:  # perhaps in a text
                    _read_as_records_are(data)
                found = difference(value, adapter.validator.validate_json(data))
                if found is None:
                    return limited(data)
                problem = problem or found
            except Exception as error:  # noqa: BLE001  # the user's types may raise anything
                problem = problem or error
        assert problem is not None
        unfinished = _unfinished(value)
        if unfinished is not None:
            raise ValueInvalid(unfinished)
        if isinstance(problem, Difference):
            half = _half_within(problem.was, 1, set())
            if half is not None:  # pydantic replaces it in keys
                raise ValueInvalid(f"{problem.where}: {half[-1]}" if problem.path else half[-1])
            raise ValueInvalid(in_words(problem))
        if type(problem) is ValueInvalid:
            raise problem
        misfit = self._misfit(value)
        if misfit is None:
            path, part = unwritten(lambda include: self._write(value, by_alias=True, include=include), value)
            misfit = _unwritable(problem, part, path_text(path))
        raise ValueInvalid(misfit) from problem

    def _write(self, value: Any, **how: Any) -> bytes:
        data = cast("TypeAdapter[Any]", self.adapter).serializer.to_json(value, warnings=False, **how)
        if _LONG_NUMBER.search(data):
            json.loads(data, parse_int=_of_64_bits)
        return data

    def _misfit(self, value: Any) -> str | None:
        """A message about a result that is not of the annotated type; None for other values."""
        if self._returned_by is None:
            return None
        try:
            cast("TypeAdapter[Any]", self.adapter).validate_python(value)
        except ValidationError as error:
            said = f"{self._returned_by} returned {shown(value)}, but its annotation says {_annotated(self.annotation)}"
            return f"{said}: {describe(error)}" if error.errors(include_url=False)[0]["loc"] else said
        except Exception:  # noqa: BLE001  # the user's validators may raise anything
            return None
        return None

    def encode_for_people(self, value: Any) -> bytes:
        """JSON to show to people, which nothing decodes; secrets are asterisks. Raises any error that the user's types raise."""
        data = self._write(value)
        if is_deeper(data, orjson.loads(data)):  # `loads` also raises for NaN, which a user's model may write
            raise ValueInvalid(_TOO_DEEP)
        return data


def dumps(value: Any, *, typed: bool = True) -> bytes:
    """Plain JSON bytes. Raises ValueInvalid, which names the first part that JSON does not hold as it is, and what to do.

    `typed`: the user can annotate the value.
    """
    try:
        data = orjson.dumps(value, option=STRICT)
        if type(value) in _SCALARS:
            return data
        if holds_exactly(value, data):
            return limited(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueInvalid(_not_json(value, typed) or _unwritable(error, value)) from error
    raise ValueInvalid(_not_json(value, typed) or f"JSON has no {shown(value)}")


_SCALARS: frozenset[type] = frozenset({str, int, bool, type(None)})


def own(value: Any) -> Any:
    """A copy of parsed JSON, which the caller may change."""
    return orjson.loads(orjson.dumps(value)) if type(value) is dict or type(value) is list else value


class Written(NamedTuple):
    """JSON to record as it is, written by another program or by an earlier call."""

    json: bytes


def written(data: Any, what: str) -> bytes:
    """JSON of data whose type only the reader knows: plain JSON, or a model or dataclass, encoded by its own class.

    Raises InputInvalid for data that would not come back as given; `what` names them in the message.
    """
    try:
        return plain(data)
    except ValueInvalid as error:
        raise InputInvalid(f"{what} is not JSON: {error}", [{"msg": str(error)}]) from error


def plain(data: Any) -> bytes:
    """As `written`, but raises ValueInvalid, which names the place in the value."""
    if type(data) is Written:
        try:
            return held(loads(limited(data.json)))
        except ValueError as error:
            raise ValueInvalid(str(error)) from error
    if isinstance(data, BaseModel) or (is_dataclass(data) and not isinstance(data, type)):
        try:
            return codec_for(type(data)).encode(data)
        except ConfigError as error:
            raise ValueInvalid(str(error)) from error
    return dumps(data, typed=False)


def _not_json(value: Any, typed: bool) -> str | None:
    """A message about the first part of a value that JSON does not hold: its path, and what to do; None if there is none."""
    found = _foreign(value, MAX_DEPTH, typed)
    if found is None:
        return None
    place, what = path_text(reversed(found[:-1])), found[-1]
    where = f"{place}: " if place else ""
    if isinstance(what, str):
        return where + what
    unfinished = _unfinished(what[0])
    if unfinished is not None:
        return where + unfinished
    kind = type(cast(object, what[0]))
    told = f"{where}JSON has no {kind.__name__} ({shown(what[0])}). "
    if typed:
        return (
            f"{told}Annotate its type (of a step: what its function returns, `-> {_written(kind)}`; "
            f"of an input: Context[{_written(kind)}]), or convert it to what JSON has"
        )
    if issubclass(kind, BaseModel):
        return f'{told}Give what its `model_dump(mode="json")` returns'
    if is_dataclass(kind):
        return f'{told}Give what `pydantic.TypeAdapter({kind.__name__}).dump_python(value, mode="json")` returns'
    return f"{told}Convert it to what JSON has"


def _unfinished(value: object) -> str | None:
    """A message about a value that is still to be awaited or gone through; None for others."""
    if inspect.isasyncgen(value):
        return f"{shown(value)} is an async generator; give a list of what it yields: `[one async for one in …]`"
    if inspect.isgenerator(value):
        return f"{shown(value)} is a generator; give a list of what it yields: `list(…)`"
    if not inspect.iscoroutine(value) and not callable(getattr(cast("type[Any]", type(value)), "__await__", None)):
        return None
    return f"{shown(value)} was not awaited; write `await` in front of the call, as in `return await step.run(…)`"


def _annotated(annotation: Any) -> str:
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation.__name__ if is_class else one_line(str(annotation).replace("typing.", ""))


def _written(kind: type) -> str:
    return {"tuple": "tuple[…]", "set": "set[…]", "frozenset": "frozenset[…]"}.get(kind.__name__, kind.__name__)


def _foreign(value: Any, depth: int, typed: bool) -> list[Any] | None:
    """The first part that is not JSON, as [*path, what]: the path to it from the inside out, then a message or a tuple of the
    part itself; None if there is none."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]  # this finds out the type of an Any
    if kind is float:
        remedy = "Annotate float, or give None or a text" if typed else "Give None or a text"
        return None if isfinite(value) else [f"JSON has no {value!r}. {remedy}"]
    if kind is int:
        return None if -(2**63) <= value < 2**64 else ["an integer of more than 64 bits; give it as a text"]
    if kind is str:
        return None if value.isascii() or _utf8(value) else [_half(value)]
    if kind in _SCALARS:
        return None
    if kind is not dict and kind is not list:
        return [(value,)]
    if depth == 0:
        return [_TOO_DEEP]
    for place, one in value.items() if kind is dict else enumerate(value):
        if kind is dict and type(place) is not str:
            remedy = f"Annotate dict[{type(place).__name__}, …]" if typed else "Make texts of the keys"
            return [f"the key {shown(place)} is not text, and JSON has only text as keys. {remedy}"]
        if type(place) is str and not _utf8(place):
            return [f"the key {_half(place)}"]
        found = _foreign(one, depth - 1, typed)
        if found is not None:
            return found if found == [_TOO_DEEP] else [*found[:-1], place, found[-1]]
    return None


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _half(text: str) -> str:
    return f"{shown(text)}{_HALF}"


_HALF = (
    " is not valid text: it holds a lone surrogate, half of a pair (in a file name, a byte that is not UTF-8; `os.fsencode` "
    "makes bytes of it)"
)


def _half_within(value: Any, depth: int, seen: set[int]) -> list[Any] | None:
    """The first text in a value that holds half of a surrogate pair, as [*path, message]: the path to it from the inside out.

    Looks into containers, models and dataclasses, each once. Calls no method that a user's class could override.
    """
    kind = cast("type[Any]", type(value))
    if issubclass(kind, str):
        text = str.__str__(value)
        return None if _utf8(text) else [_half(text)]
    if depth == 0 or id(value) in seen:
        return None
    seen.add(id(value))
    held: Iterable[tuple[Any, Any]] = ()
    if issubclass(kind, dict):
        texts = (str.__str__(key) for key in dict[Any, Any].keys(value) if issubclass(type(key), str))
        wrong = next((text for text in texts if not _utf8(text)), None)
        if wrong is not None:
            return [f"the key {_half(wrong)}"]
        held = dict[Any, Any].items(value)
    elif issubclass(kind, _COLLECTIONS):
        base = next(one for one in _COLLECTIONS if issubclass(kind, one))
        held = enumerate(cast(Iterable[Any], base.__iter__(value)))
    elif issubclass(kind, BaseModel) or is_dataclass(kind):
        held = attributes_of(value).items()
    for place, one in held:
        found = _half_within(one, depth - 1, seen)
        if found is not None:
            return [*found[:-1], place, found[-1]]
    return None


_COLLECTIONS: tuple[Any, ...] = (list, tuple, set, frozenset, deque)


def _unwritable(error: Exception, value: Any, place: str = "") -> str:
    """A message: why a value, or the part of it at `place`, cannot be written or read back, and what to do."""
    said = f"{place}: {shown(value)}" if place else shown(value)
    if isinstance(error, ValidationError):
        how = _ALIAS if _has_two_names(value) else "; the type must be able to validate what it writes"
        return f"{said} cannot be read back: {describe(error)}{how}"
    text = next(iter(message_of(error).splitlines()), "") or type(error).__name__
    if "utf-8" in text.lower() or isinstance(error, UnicodeError):
        half = _half_within(value, MAX_DEPTH, set())
        if half is not None:
            place += path_text(reversed(half[:-1]))
            return f"{place}: {half[-1]}" if place else half[-1]
        if "surrogates not allowed" in text:  # a Path
            return f"{said}{_HALF}"
        return (
            f"{said}: bytes that are not text; give the model "
            f'ConfigDict(ser_json_bytes="base64", val_json_bytes="base64") ({text})'
        )
    if "exceeds 64-bit" in text:
        text = "an integer of more than 64 bits; give it as a text"
    if isinstance(error, RecursionError) or "Recursion" in text:
        text = _TOO_DEEP
    return f"{said}: {text}"


_ALIAS = "; validation_alias and serialization_alias differ: give it one alias, AliasChoices of both, or validate_by_name=True"


def _has_two_names(value: object) -> bool:
    fields = getattr(type(value), "model_fields", {}).values()
    return any(field.validation_alias != field.serialization_alias for field in fields)


def limited(data: bytes) -> bytes:
    """Returns `data`. Raises ValueInvalid if it is nested too deep."""
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(data, orjson.loads(data)):
        raise ValueInvalid(_TOO_DEEP)
    return data


def _read_as_records_are(data: bytes) -> None:
    """Raise ValueInvalid if a model has written NaN or an infinity as a bare word: pydantic reads it, orjson does not."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError as error:
        found = _constant_within(json.loads(data)) or ["NaN"]
        place = path_text(reversed(found[:-1]))
        raise ValueInvalid(
            f"{f'{place}: ' if place else ''}JSON has no {found[-1]}; "
            f'give the model ConfigDict(ser_json_inf_nan="strings"), or annotate float'
        ) from error


def _constant_within(parsed: Any) -> list[Any] | None:
    """The first NaN or infinity in parsed JSON, as [*path, number]: the path to it from the inside out; None if there is none."""
    if type(parsed) is float:
        return None if isfinite(parsed) else [parsed]
    held: Iterable[tuple[Any, Any]] = ()
    if isinstance(parsed, dict):
        held = cast(dict[str, Any], parsed).items()
    elif isinstance(parsed, list):
        held = enumerate(cast(list[Any], parsed))
    for place, one in held:
        found = _constant_within(one)
        if found is not None:
            return [*found[:-1], place, found[-1]]
    return None


def _of_64_bits(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer of more than 64 bits; give it as a text")
    return number


_LONG_NUMBER = re.compile(rb"\d{10}\d{9}")
REPLACED = "\ufffd".encode()
"""pydantic silently writes this for half a surrogate pair in a key."""


def makes_anew(schema: Any) -> bool:
    """Whether validating the same JSON twice may give different values, because the schema has factories or the user's code.

    Factories that are built-in types (`list`) give the same value each time, and so do pydantic's own functions.
    """
    seen: set[int] = set()
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, list | tuple):
            todo.extend(cast("list[Any] | tuple[Any, ...]", one))
        elif isinstance(one, dict) and id(cast(object, one)) not in seen:
            seen.add(id(cast(object, one)))
            node = cast(dict[str, Any], one)
            if node.get("type") == "call" or node.get("post_init") or node.get("custom_init"):
                return True
            if str(node.get("type")).startswith("function-") and not _of_pydantic(node["function"].get("function")):
                return True
            factory = node.get("default_factory")
            if factory is not None and not gives_the_same(factory):
                return True
            todo.extend(inner for name, inner in node.items() if name not in _NO_SCHEMA)
    return False


_NO_SCHEMA = frozenset({"metadata", "serialization", "default", "config", "cls", "expected"})
"""Keys of a core schema that hold no schema for validation."""


def _of_pydantic(function: Any) -> bool:
    module = str(getattr(function, "__module__", ""))
    return isinstance(function, type) or module.partition(".")[0] in ("pydantic", "pydantic_core")


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError:  # models and other types with a configuration of their own
        return TypeAdapter(annotation)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


ANY = Codec(Any, "Any")
"""Plain JSON."""


@by_function
def result_codec(fn: Callable[..., Any]) -> Codec:
    """The codec for the results of a function, by its return annotation. Raises ConfigError."""
    target = unwrapped(fn)
    annotation = return_annotation(target)
    return ANY if annotation is Any else Codec(annotation, said(target), name_of(target))


@lru_cache(maxsize=1000)
def codec_for(annotation: Any) -> Codec:
    """The codec for a hashable annotation. Raises ConfigError."""
    return Codec(annotation, str(annotation))


def describe(error: ValidationError) -> str:
    """The first error, as one line for people."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return one_line(f"{place + ': ' if place else ''}{first['msg']}{more}")
