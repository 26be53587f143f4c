"""The limit for the nesting of JSON. Pure."""

from __future__ import annotations

from typing import Any, cast

MAX_DEPTH = 200
"""The deepest nesting of a payload. orjson reads deeper JSON than it writes, and every accepted payload must be written again."""


def is_deeper(value: bytes, parsed: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON is nested more than `limit` deep. `parsed`: the parsed `value`."""
    if value.count(b"[") + value.count(b"{") <= limit:
        return False
    level: list[Any] = [parsed]
    for _ in range(limit):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(cast(dict[str, Any], one).values())
            elif isinstance(one, list):
                inner.extend(cast(list[Any], one))
        level = inner
    return any(isinstance(one, dict | list) for one in level)
