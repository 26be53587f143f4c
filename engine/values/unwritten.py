"""Finds the part of a value that pydantic cannot write: its errors do not say where they come from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

from pydantic import BaseModel, RootModel

from .nesting import MAX_DEPTH
from .same import MISSING


def unwritten(write: Callable[[Any], object], value: Any) -> tuple[list[Any], Any]:
    """The path to the innermost part without which the value could be written, and that part; an empty path if it is the whole.

    `write` writes the parts that its argument, an `include` of pydantic, names. It raises if it cannot.
    """
    path: list[Any] = []
    part = value
    seen: set[int] = set()
    while len(path) < MAX_DEPTH and id(part) not in seen:
        seen.add(id(part))
        if isinstance(part, RootModel):  # an `include` goes past it
            part = cast("RootModel[Any]", part).root
            continue
        key = _first(lambda keys: _fails(write, path, keys), _keys(part))
        if key is MISSING:
            break
        path.append(key)
        part = cast(Any, part[key] if isinstance(part, dict | list | tuple | deque) else getattr(part, key))
    return path, part


def _keys(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return list(cast("dict[Any, Any]", part))
    if isinstance(part, list | tuple | deque):
        return list(range(len(cast("list[Any]", part))))
    if isinstance(part, BaseModel):
        names = [*type(part).model_fields, *(part.model_extra or ())]
        return [name for name in names if hasattr(part, name)]
    if is_dataclass(part) and not isinstance(part, type):
        return [field.name for field in fields(part) if hasattr(part, field.name)]
    return []


def _first(fails: Callable[[Sequence[Any]], bool], keys: list[Any]) -> Any:
    """The first key that fails, by halves; MISSING if none does, or if no key at all fails, too."""
    if not keys or not fails(keys) or fails([]):
        return MISSING
    while len(keys) > 1:
        half = keys[: len(keys) // 2]
        keys = half if fails(half) else keys[len(half) :]
    return keys[0]


def _fails(write: Callable[[Any], object], path: list[Any], keys: Sequence[Any]) -> bool:
    include: Any = dict.fromkeys(keys, True)
    for key in reversed(path):
        include = {key: include}
    try:
        write(include)
    except Exception:  # noqa: BLE001  # the user's types may raise anything
        return True
    return False
