"""Inputs made from valid ones: bytes turned, cut, repeated and crossed, and JSON whose values become what nobody expects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

NUMBERS = (0, 1, -1, 2, 127, 255, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 10**18)
WORDS: tuple[bytes, ...] = (
    *(str(number).encode() for number in NUMBERS),
    b"9" * 5_000,  # longer than Python reads
    b"1e999",
    b"-0.0",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"[" * 300 + b"]" * 300,
    b"[" * 50_000,
    b'{"a":' * 250 + b"1" + b"}" * 250,
    b'"\\ud800"',
    b'"\\u0000"',
    b'"' + b"x" * 300 + b'"',
    b'"@claim"',
    '"\u202e\u2028é\U0001f600"'.encode(),
    b'"\x1b[2J"',
)
BYTES = (
    b"\0",
    b"\xff",
    b"\n",
    b"\xc3",
    b"\xed\xa0\x80",
    b"@",
    b"/",
    b"%00",
    b":",
    b"#",
    b"?",
    b"'",
    b'"',
    b"\\",
    b"\xe2\x80\xae",
)
_RAW = "@raw@"
_NUMBER = re.compile(rb"-?\d+")


def mutated(random: Random, corpus: Sequence[bytes]) -> bytes:
    """One of them, changed in a few places."""
    data = random.choice(corpus)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        data = random.choice(_WAYS)(random, data, corpus)
    return data


def _turn(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    if not data:
        return random.choice(BYTES)
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _put(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    start, end = _stretch(random, data, random.choice((0, 0, 1, 4, 16)))
    what = random.choice((random.choice(BYTES), random.choice(WORDS), random.randbytes(random.randrange(1, 9))))
    return data[:start] + what + data[end:]


def _cut(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    start, end = _stretch(random, data, random.choice((1, 2, 8, 64, len(data))))
    return data[:start] + data[end:]


def _repeat(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    start, end = _stretch(random, data, random.choice((1, 8, 64)))
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 100)) + data[end:]


def _cross(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    other = random.choice(corpus)
    start, end = _stretch(random, other, random.choice((4, 32, 256)))
    at = random.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[random.choice((at, min(len(data), at + end - start))) :]


def _renumber(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _turn(random, data, corpus)
    one = random.choice(found)
    return data[: one.start()] + random.choice(WORDS[: len(NUMBERS) + 4]) + data[one.end() :]


def _in_json(random: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Another value at some place of the JSON, which stays JSON, more or less."""
    start = data.find(b"{")
    try:
        value = json.loads(data[start:])
    except (ValueError, RecursionError):
        return _put(random, data, corpus)
    return data[:start] + within(random, value)


def within(random: Random, value: Any) -> bytes:
    """JSON with something else, more or nothing at one of its places."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(places) < 300:
        one = waiting.pop()
        if isinstance(one, dict):
            items: list[tuple[Any, Any]] = list(cast(dict[str, Any], one).items())
        elif isinstance(one, list):
            items = list(enumerate(cast(list[Any], one)))
        else:
            continue
        places += [(one, key) for key, _ in items]
        waiting += [inner for _, inner in items]
    word = random.choice(WORDS)
    if places:
        holder, key = random.choice(places)
        way = random.randrange(6)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[random.choice(("v", "type", "offset", "timestamp", "__class__", "model_config", "\0", "x" * 300, ""))] = _RAW
        elif way == 2:
            other, other_key = random.choice(places)
            try:
                holder[key] = json.loads(json.dumps(other[other_key]))
            except (KeyError, IndexError, RecursionError):
                holder[key] = _RAW
        else:
            holder[key] = _RAW
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return text.replace(b'"%b"' % _RAW.encode(), word)


def _stretch(random: Random, data: bytes, longest: int) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.randrange(longest + 1))


_WAYS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_turn, _put, _cut, _repeat, _cross, _renumber),
    *(_in_json, _in_json, _in_json, _in_json),
)
