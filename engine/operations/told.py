"""Things that the code of a workflow tells and never waits for: the part of such a kind that replay and the owner use. Pure.

The records of a kind are numbered by a name, from 1 on. The fold takes the next number only; the execution counts the calls of
the code. So a replay records nothing twice, and the journal holds nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from ..core.records import Base
from ..core.state import RunState
from .kind import Rule


class Notice:
    """One thing that the code tells. A subclass belongs to one kind."""

    __slots__ = ("name",)
    kind: ClassVar[str] = ""
    max_names: ClassVar[int] = 0
    """How many names a run may have."""

    def __init__(self, name: str) -> None:
        self.name = name

    def record(self, number: int) -> tuple[str, dict[str, Any]]:
        """Type and fields of its record. `number`: how many of its name the code has told, with this one."""
        raise NotImplementedError

    def too_many(self) -> Exception:
        """The error for one more name than a run may have."""
        raise NotImplementedError


class Told(NamedTuple):
    """One kind of things that the code tells. Keys of `rules` are record types."""

    notice: type[Notice]
    records: tuple[type[Base], ...]
    rules: Mapping[str, Rule]


def is_next(run: RunState, notice: type[Notice], name: str, number: int) -> bool:
    """Whether a record with this number is the next one of its name, and the run may have the name."""
    names = run.kept.get(notice.kind, {})
    last = names.get(name)
    if last is None:
        return number == 1 and len(names) < notice.max_names
    return number == last[0] + 1


def keep(run: RunState, notice: type[Notice], name: str, number: int, *values: Any) -> None:
    """Keep the number of the last record of a name, and what else its kind keeps of it."""
    run.kept.setdefault(notice.kind, {})[name] = [number, *values]
