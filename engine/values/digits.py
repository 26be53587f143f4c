"""Numbers in JSON that other programs have written: each keeps its digits, or is refused. Pure.

A JSON parser turns fractions and long integers into doubles, so 1.000000000000000001 would become another number. Here such
a number is a Decimal until the type that reads it is known: a Decimal reads its text, a float reads the double. A number
whose reader is not known is refused.
"""

from __future__ import annotations

import json
import re
from decimal import Context, Decimal, InvalidOperation
from typing import Any, NamedTuple, cast

import orjson

from .nesting import is_deeper
from .same import path_text

_MAY_NOT_BE_HELD = re.compile(rb"[0-9][0-9.]{15}|[0-9][eE]\+?[0-9]|[eE]-[0-9]{3}|-0(?![0-9.eE])")
"""More digits than a double always keeps, large exponents, and the integer -0. A match in a text only costs a slower parse."""
_MOST_DIGITS = 1100
"""No double has more decimal digits."""
_READING = Context(traps=[InvalidOperation])
"""For constructors, so that what they refuse does not depend on the decimal context of the caller."""


class Spot(NamedTuple):
    """A number that a JSON parser would change, at `holder[key]`; `where`: its path, for people."""

    where: str
    holder: Any
    key: Any
    number: Decimal


def loads(data: bytes) -> Any:
    """As `orjson.loads`, but a number that it would change is a Decimal.

    Raises ValueError if `data` is not JSON.
    """
    found = orjson.loads(data)
    if not _MAY_NOT_BE_HELD.search(data) or is_deeper(data, found):
        return found
    return json.loads(data, parse_int=_integer, parse_float=_real)


def _integer(digits: str) -> int | Decimal:
    if len(digits) > 20 or digits == "-0" or not -(2**63) <= int(digits) < 2**64:
        return Decimal(digits)
    return int(digits)


def _real(digits: str) -> float | Decimal:
    try:
        number, exact = float(digits), Decimal(digits, _READING)
    except InvalidOperation:
        raise ValueError(f"the number {digits[:40]} has an exponent that no number can have") from None
    # An int field reads a double from 2**53 on with all its digits, so there the double must be exactly the number.
    is_held = exact == Decimal(repr(number)) and (abs(number) < 2**53 or exact == Decimal(number, _READING))
    return number if is_held else exact


def as_text(number: Decimal) -> str:
    """The number as a text. Writes out up to 29 zeros (1E+5 becomes 100000), so that `int` reads the text, too."""
    exponent = number.as_tuple().exponent
    return f"{number:f}" if isinstance(exponent, int) and 0 < exponent < 30 else str(number)


def raw(value: Any) -> bytes:
    """The JSON of what `loads` has returned, with all digits."""
    return orjson.dumps(value, default=_as_written)


def _as_written(number: Decimal) -> orjson.Fragment:
    return orjson.Fragment(str(number))


def held(value: Any) -> bytes:
    """JSON of what `loads` has returned, for readers of any type. Raises ValueError for a number that readers would change."""
    found = spots([value])
    for spot in found:
        if not _of_a_double(spot.number):
            raise ValueError(_refusal(spot))
    return orjson.dumps(orjson.loads(raw(value))) if found else orjson.dumps(value)


def spots(holder: dict[str, Any] | list[Any], path: tuple[Any, ...] = ()) -> list[Spot]:
    """The numbers in a list or dict that `loads` made a Decimal, in order."""
    found: list[Spot] = []
    for key, one in enumerate(holder) if isinstance(holder, list) else holder.items():
        if isinstance(one, Decimal):
            found.append(Spot(path_text((*path, key)), holder, key, one))
        elif isinstance(one, dict | list):
            found.extend(spots(cast("dict[str, Any] | list[Any]", one), (*path, key)))
    return found


def _refusal(spot: Spot) -> str:
    """A message: why a number is refused, and how to write it."""
    place = spot.where.removeprefix("[0]").removeprefix(".")  # `held` puts a list around the value
    where = f"{place}: " if place else ""
    if not spot.number:
        return f"{where}the integer -0 is 0 to some readers and -0.0 to others; write one of these"
    digits = str(spot.number)
    digits = digits if len(digits) <= 60 else f"{digits[:60]}…"
    why = "is an integer of more than 64 bits" if _is_integer(spot.number) else "has more digits than a double keeps"
    return f'{where}{digits} {why} and would come back as another number; write it as a text, "{digits}"'


def _is_integer(number: Decimal) -> bool:
    return number.as_tuple().exponent == 0


def _of_a_double(number: Decimal) -> bool:
    """Whether a double, printed with as many digits, gives this number: then the writer meant that double."""
    count = len(number.as_tuple().digits)
    return not _is_integer(number) and count <= _MOST_DIGITS and Decimal(f"{float(number):.{count - 1}e}") == number
