"""The description of a kind of operation, which each kind's module gives. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..core.messages import Parent
from ..core.records import Base
from ..core.state import Open, RunState
from ..values.words import Beside
from .call import Call
from .line import Line

Rule = Callable[[RunState, dict[str, Any]], bool]
"""The rule of one event for a run that is open or quarantined: it checks the precondition, changes the run, and returns whether
it accepted the event."""
Tell = Callable[[Line, Any, int], None]
"""Takes a line, an event or the value of a delivery, and its time (ms); adds to the line what it says of the operation."""
Note = Callable[[Line, int, Beside], str]
"""Takes a line, the time now (ms) and a form for times; returns the details beside the outcome, in words. Called for a dropped
operation only if its value went back."""


class Kind(NamedTuple):
    """One kind of operation. Keys of `rules` and `tells` are record types; keys of `ends` and `gives_back` are outcomes."""

    name: str
    records: tuple[type[Base], ...]
    rules: Mapping[str, Rule]
    open: type[Open]
    call: type[Call]
    tells: Mapping[str, Tell]
    ends: Mapping[str, Tell]
    note: Note
    gives_back: Mapping[str, Callable[[RunState, Any], None]] = {}
    """Takes back a value that was delivered after the code had dropped the operation; without an entry the value is lost."""
    at_end: Callable[[RunState], None] | None = None
    """Called when a run has ended, for the messages that it then owes."""
    start_refused: Callable[[Parent, str], dict[str, Any]] | None = None
    """Takes the operation that wanted to start a run, and the run's id, which another start has; returns the message to it."""
    attempts: bool = False
    """Whether it runs in attempts, which people count."""
