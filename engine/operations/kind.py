"""A kind of operation, as its room describes it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..core.records import Base
from ..core.state import Open, RunState
from .call import Call
from .line import Line

Rule = Callable[[RunState, dict[str, Any]], bool]
"""The rule of one event of a run that is open or quarantined: checks the precondition, changes the run, says if it accepted."""
Tell = Callable[[Line, Any, int], None]
"""Adds to the line of an operation what an event, or the value of a delivery, says of it at a time."""


class Kind(NamedTuple):
    """`rules` and `tells` by type of record, the rest by kind of delivery."""

    name: str
    records: tuple[type[Base], ...]
    rules: Mapping[str, Rule]
    open: type[Open]
    call: type[Call]
    tells: Mapping[str, Tell]
    ends: Mapping[str, Tell]
    gives_back: Mapping[str, Callable[[RunState, Any], None]] = {}
    """What becomes of a value that came after the code had let go; one that is not here is dropped."""
