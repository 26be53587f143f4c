"""Operations as the code asks for them: the part of a kind that replay and the owner use. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from ..core.state import Open

Settle = Callable[[Any, str, Any], Any]
"""Takes the call, the operation's id and the recorded value; returns what the code gets. Raises Differs and MadeAnew. Any other
error comes from the user's types and means that the value does not fit its type today."""


class Raise(NamedTuple):
    """Returned by a `Settle` to raise this error in the code."""

    error: Exception


class Differs(Exception):
    """The log holds another operation than the code asks for. `found` and `asked` describe the two; messages put them behind the
    operation's name."""

    def __init__(self, found: str, asked: str) -> None:
        super().__init__(found, asked)
        self.found = found
        self.asked = asked


class MadeAnew(Exception):
    """A replay would make another value of what the log holds; the message says where, and what to do."""


class Call:
    """One operation that the code asked for. A subclass belongs to one kind."""

    __slots__ = ()
    kind: ClassVar[str] = ""
    words: ClassVar[str] = ""
    """An operation of this kind, for people."""
    settles: ClassVar[Mapping[str, Settle]] = {}
    """By outcome: the deliveries that end this operation."""
    progress: ClassVar[Mapping[str, Settle]] = {}
    """By outcome: the deliveries that do not end it. The code that asked for it then goes on with the value of the first
    one, and may await the end later, or never."""

    begins: ClassVar[frozenset[str]] = frozenset()
    """The deliveries that only say where in the journal it began; the code gets nothing."""

    @property
    def asks_types(self) -> bool:
        """Whether its deliveries may call the user's types."""
        return True

    @property
    def ends_first(self) -> bool:
        """Whether a cancelled run waits for its end, if it has begun, before the code learns of the cancellation."""
        return False

    @property
    def lasts_ms(self) -> int | None:
        """How long it lasts from its first record on; None: for ever, until a named time, or unknown."""
        return None

    def begin(self, step_id: str, now: int, new_id: Callable[[], str]) -> tuple[str, dict[str, Any]] | None:
        """Type and fields of its first record; None: a worker executes it, and it needs no record to begin.

        `now`: ms since 1970; `new_id` makes a text that nobody can guess."""
        return None

    def check(self, known: Open) -> None:
        """Compare with the open operation of the same id and kind in the log. Raises Differs."""
