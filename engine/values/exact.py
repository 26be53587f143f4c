"""Types whose JSON holds every proper value exactly, so that a codec need not prove that a value comes back.

pydantic writes and reads texts, numbers, lists and dicts of them, and models and dataclasses with such fields, without a
change, unless there is an alias, a constraint, a validator, a serializer or an excluded field. A type without any of these
is found once, by its schema. For its values it is enough to check (the look) that they have exactly the annotated classes,
at a fraction of the cost of decoding and comparing. The look is one Python expression, compiled for the type: interpreting
the schema for each value would cost as much as decoding. Pure.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID

import orjson

Exact = Callable[[Any], bool]
"""Returns whether a value is exactly what its type says. It passes integers that are too large and texts with lone surrogates:
writing those fails."""

_LEAVES: dict[str, type] = {"str": str, "int": int, "bool": bool, "none": type(None), "uuid": UUID}
_OTHER_LEAVES: dict[str, tuple[set[str], str]] = {
    "float": (set(), "type({0}) is float and isfinite({0})"),
    "datetime": (
        {"microseconds_precision"},
        "type({0}) is datetime and not {0}.fold and ({0}.tzinfo is None or {0}.tzinfo is UTC)",
    ),
    "decimal": (set(), "type({0}) is Decimal and {0}.is_finite()"),
    "any": (set(), "({0} is None or json_copy({0}) is not None)"),
}
"""By kind of schema: the other keys that the schema may have, and the condition."""
_QUIET = frozenset({"type", "metadata", "ref", "title"})
_CONFIG: Mapping[str, tuple[Any, ...]] = {"title": (), "frozen": (), "extra_fields_behavior": ("ignore", "forbid", None)}
_DEFAULTS = frozenset({"schema", "default", "default_factory", "default_factory_takes_data", "validate_default", "copy_default"})


def json_copy(value: Any) -> Any:
    """A copy of a value that consists only of JSON's exact classes; None for other values."""
    try:
        data = orjson.dumps(value, option=STRICT)
        return orjson.loads(data) if holds_exactly(value, data) else None
    except (TypeError, ValueError, RecursionError):
        return None


def holds_exactly(value: Any, data: bytes) -> bool:
    """Whether the value is exactly the JSON that strict orjson has written for it. Raises ValueError if marshal refuses it.

    orjson also writes UUIDs and enums; marshal refuses these, and all instances of the user's classes. orjson also writes
    tuples (as lists) and NaN (as null). If marshal's bytes show no tuple and the JSON has no null, the value has neither;
    otherwise this reads the JSON again and compares.
    """
    written = marshal.dumps(value)
    without = written.translate(None, _TUPLE)  # a fifth of the time of a search for these bytes
    return (len(without) == len(written) and b"null" not in data) or orjson.loads(data) == value


_TUPLE = b"()\xa8\xa9"
"""The bytes with which marshal begins a tuple: small or not, with a reference flag or not. Other data may contain them, too."""

_NAMES = {"isfinite": isfinite, "datetime": datetime, "UTC": UTC, "Decimal": Decimal, "json_copy": json_copy, "text": {str}}

STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def exact(schema: Any, *, whole: bool = False) -> Exact | None:
    """The look for values of a pydantic core schema; None if a look is not enough.

    `whole`: the JSON must hold the entire object. Models also remember which fields were set, and datetimes their tzinfo
    object, so the look then passes only models with all fields set, and there is no look for datetimes.
    """
    writer = _Writer(whole)
    condition = writer.condition(schema, "value")
    return None if condition is None else writer.function(condition)


class _Writer:
    """Writes conditions on a value as Python source, and keeps the objects that they name."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self.names: dict[str, Any] = {**_NAMES, "absent": object()}

    def named(self, thing: Any) -> str:
        name = f"_{len(self.names)}"
        self.names[name] = thing
        return name

    def function(self, condition: str) -> Exact:
        return eval(f"lambda value: {condition}", self.names)  # noqa: S307  # made of names and constants of this module

    def condition(self, schema: Any, value: str) -> str | None:
        """The condition that `value`, an expression without side effects, is exactly what a schema says; None: there is none."""
        kind = schema["type"]
        if kind in _LEAVES:
            return f"type({value}) is {self.named(_LEAVES[kind])}" if _only(schema) else None
        if kind in _OTHER_LEAVES:
            more, condition = _OTHER_LEAVES[kind]
            allowed = _only(schema, more) and not (self.whole and kind == "datetime")
            return condition.format(value) if allowed else None
        if kind == "default":
            return self.condition(schema["schema"], value) if _only(schema, _DEFAULTS) else None
        if kind == "nullable":
            inner = self.condition(schema["schema"], value) if _only(schema, {"schema"}) else None
            return None if inner is None else f"({value} is None or {inner})"
        if kind == "list" and "items_schema" in schema and _only(schema, {"items_schema"}):
            return self._items(schema["items_schema"], value)
        if kind == "dict" and "values_schema" in schema and _only(schema, {"keys_schema", "values_schema"}):
            inner = self.condition(schema["values_schema"], "value") if schema.get("keys_schema") == {"type": "str"} else None
            if inner is None:
                return None
            look = self.named(self.function(inner))
            return f"type({value}) is dict and {{*map(type, {value})}} <= text and all(map({look}, {value}.values()))"
        return self._fields(schema, value) if kind in ("model", "dataclass") else None

    def _items(self, schema: Any, value: str) -> str | None:
        inner = self.condition(schema, "value")
        if inner is None:
            return None
        if schema["type"] in _LEAVES:
            only = self.named({_LEAVES[schema["type"]]})
            return f"type({value}) is list and {{*map(type, {value})}} <= {only}"
        return f"type({value}) is list and all(map({self.named(self.function(inner))}, {value}))"

    def _fields(self, schema: dict[str, Any], value: str) -> str | None:
        """The condition for a model or dataclass: it has all its fields, and nothing else."""
        fields = _plain_fields(schema)
        if fields is None:
            return None
        held = self.named(None)
        conditions = [f"type({value}) is {self.named(schema['cls'])}"]
        if schema["type"] == "model":
            conditions.append(f"{value}.__pydantic_extra__ is None and {value}.__pydantic_private__ is None")
            if self.whole:
                conditions.append(f"len({value}.__pydantic_fields_set__) == {len(fields)}")
        conditions.append(f"len({held} := {value}.__dict__) == {len(fields)}")
        for name, field in fields.items():
            one = f"{held}.get({name!r}, absent)"
            if field["schema"]["type"] in _LEAVES:
                condition = self.condition(field["schema"], one)
            else:
                local = self.named(None)
                inner = self.condition(field["schema"], local)
                condition = inner and f"(({local} := {one}) is not absent and {inner})"
            if condition is None:
                return None
            conditions.append(condition)
        return " and ".join(conditions)


def _only(schema: dict[str, Any], more: Iterable[str] = ()) -> bool:
    return schema.keys() <= _QUIET.union(more)


def _plain_fields(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The fields, by name, of a model or dataclass that consists only of its fields; None for others."""
    inside = schema["schema"]
    is_model = schema["type"] == "model"
    if not _only(
        schema,
        {"cls", "config", "schema", "custom_init", "root_model", "frozen", "fields", "post_init", "slots", "generic_origin"},
    ):
        return None
    if schema.get("custom_init") or schema.get("root_model") or schema.get("post_init") or schema.get("slots"):
        return None
    for name, value in schema.get("config", {}).items():
        if name not in _CONFIG or (_CONFIG[name] and value not in _CONFIG[name]):
            return None
    if inside["type"] != ("model-fields" if is_model else "dataclass-args") or inside.get("computed_fields"):
        return None
    if not _only(inside, {"fields", "model_name", "dataclass_name", "computed_fields", "collect_init_only"}):
        return None
    if inside.get("collect_init_only"):
        return None
    fields: dict[str, Any] = inside["fields"] if is_model else {field["name"]: field for field in inside["fields"]}
    for field in fields.values():
        if not _only(field, {"schema", "frozen", "name", "init", "kw_only"}) or field.get("init") is False:
            return None
    return fields
