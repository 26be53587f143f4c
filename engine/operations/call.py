"""Operations as the code asks for them: the side of a kind that replay and the owner see. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from ..core.state import Open

Settle = Callable[[Any, str, Any], Any]
"""From the call, the operation's id and the recorded value to what the code gets. Raises Differs; whatever else it raises, of a
class of the user's, says that the value does not fit its type today."""


class Raise(NamedTuple):
    """The code gets this error, and not a value."""

    error: Exception


class Differs(Exception):
    """The log holds another operation than the code asks for: what is said of the one and of the other, behind their names."""

    def __init__(self, found: str, asked: str) -> None:
        super().__init__(found, asked)
        self.found = found
        self.asked = asked


class Call:
    """One thing that the code asked for. A subclass belongs to one kind."""

    __slots__ = ()
    kind: ClassVar[str] = ""
    words: ClassVar[str] = ""
    """An operation of this kind, for people."""
    settles: ClassVar[Mapping[str, Settle]] = {}
    """By kind of delivery."""

    @property
    def lasts_ms(self) -> int | None:
        """How long it lasts from when it is recorded; None: for ever, until a time that is named, or nobody knows."""
        return None

    def begin(self, now: int) -> tuple[str, dict[str, Any]] | None:
        """Its first record, type and fields; None: a worker sees to it, and it may have none."""
        return None

    def check(self, found: Open) -> None:
        """Compare with what is open in the log under its id and kind. Raises Differs."""
