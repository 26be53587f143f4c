"""Checks of options, for callers without a type checker. A wrong one fails at the call, and the message says what fits."""

from __future__ import annotations

from .same import shown


def flag(value: object, option: str) -> None:
    """Raise TypeError unless `value` is True or False: the text "no" would mean yes."""
    if value is not True and value is not False:
        raise TypeError(f"{option}={shown(value)}: it must be True or False")


def whole(value: object, option: str, least: int) -> None:
    """Raise TypeError unless `value` is an int, and ValueError if it is below `least`."""
    if type(value) is not int:
        raise TypeError(f"{option}={shown(value)}: it must be a whole number")
    if value < least:
        raise ValueError(f"{option}={value}: it must be at least {least}")
