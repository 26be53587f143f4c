"""The input of a step as the log records it. Only people read it: nothing decodes it, and long input is cut.

Pure, except for the user's serializers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import orjson

from .codec import codec_for
from .text import shown

MAX_INPUT_BYTES = 4096
"""The limit for the JSON of all arguments."""
_MOST_SAID = 300


def recorded_input(fn: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of `attempt-started` that record an attempt's arguments. Raises any error that the arguments' classes raise.

    `input`: the arguments in order; a named argument of a partial is an object with one field. `input_note`: what is missing.
    """
    parts: list[bytes] = []
    notes: list[str] = []
    left = MAX_INPUT_BYTES
    for place, (name, value) in enumerate(_arguments(fn, args), 1):
        data = _json(value)
        if data is None:
            kind = shown(type(value).__name__)
            data = orjson.dumps(f"<{kind}>")
            notes.append(f"argument {place} ({kind}) cannot be written")
        if name is not None:
            data = b"{%b:%b}" % (orjson.dumps(name), data)
        if len(data) > left:
            notes.append(f"argument {place} is cut, it has {len(data):,} bytes of JSON; those behind it are left out")
            parts.append(orjson.dumps(data[:left].decode(errors="ignore") + "…"))
            break
        parts.append(data)
        left = max(left - len(data) - 1, 0)
    fields: dict[str, Any] = {"input": orjson.Fragment(b"[%b]" % b",".join(parts))}
    if notes:
        note = "; ".join(notes)
        fields["input_note"] = note if len(note) <= _MOST_SAID else f"{note[:_MOST_SAID]}…"
    return fields


def _arguments(fn: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[tuple[str | None, Any]]:
    if isinstance(fn, partial):
        held = cast("partial[Any]", fn)
        yield from ((None, one) for one in (*held.args, *args))
        yield from held.keywords.items()
    else:
        yield from ((None, one) for one in args)


def _json(value: Any) -> bytes | None:
    try:
        return codec_for(cast(Any, type(value))).encode_for_people(value)
    except Exception:  # noqa: BLE001  # the user's types may raise anything
        return None
