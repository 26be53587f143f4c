"""Finds what a type made by itself when it decoded JSON, and would make anew at the next decoding: a new id, the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, cast

from pydantic import BaseModel

from .same import attributes_of, difference, gives_the_same, path_text

_CONTAINERS = (dict, list, tuple, set, frozenset)
_FIXED: tuple[Any, ...] = (Decimal, complex)


def made_alone(value: Any) -> str | None:
    """The path of the first field that the JSON did not give and that a factory filled with a single value, or None.

    A fixed value needs no factory, so the next call gives another one: an id, a time, a setting of the process. A factory that
    makes a container or a model may give an equal one each time; here it counts as the same.
    """
    seen: set[int] = set()
    todo: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while todo:
        path, one = todo.pop()
        kind = cast("type[Any]", type(one))
        if not (issubclass(kind, (BaseModel, *_CONTAINERS)) or dataclasses.is_dataclass(kind)) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, BaseModel):
            for name in _made(one):
                found: Any = getattr(one, name, None)
                if not (isinstance(found, (BaseModel, *_CONTAINERS)) or dataclasses.is_dataclass(cast(object, found))):
                    return path_text((*path, name))
        todo.extend(((*path, place), inner) for place, inner in reversed(list(_held(one))))
    return None


def differs_privately(one: Any, other: Any) -> str | None:
    """The path of the first private attribute in which two values of equal JSON differ, or None.

    Ignores attributes of types without an `__eq__` of their own, such as locks, and models in sets.
    """
    seen: set[int] = set()
    todo: list[tuple[tuple[Any, ...], Any, Any]] = [((), one, other)]
    while todo:
        path, one, other = todo.pop()
        kind = cast("type[Any]", type(one))
        looked_into = issubclass(kind, (BaseModel, dict, list, tuple)) or dataclasses.is_dataclass(kind)
        if not looked_into or kind is not type(other) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, BaseModel):
            twin = cast("dict[str, Any]", other.__pydantic_private__ or {})
            for name, value in (one.__pydantic_private__ or {}).items():
                if type(value).__eq__ is not object.__eq__ and difference(value, twin.get(name)) is not None:
                    return path_text((*path, name))
        pairs = [((*path, key), left, right) for (key, left), (_, right) in zip(_held(one), _held(other), strict=False)]
        todo.extend(reversed(pairs))
    return None


def _made(model: BaseModel) -> Iterable[str]:
    """The fields that a factory has filled."""
    in_data = model.__pydantic_fields_set__
    for name, field in type(model).__pydantic_fields__.items():
        factory = field.default_factory
        if (
            name in in_data
            or factory is None
            or factory in _FIXED
            or gives_the_same(factory)
            or field.default_factory_takes_validated_data
        ):
            continue
        yield name


def _held(one: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(one, dict):
        return cast("dict[Any, Any]", one).items()
    if isinstance(one, _CONTAINERS):
        return enumerate(cast("Iterable[Any]", one))
    return attributes_of(one).items()
