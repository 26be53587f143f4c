"""Messages: the requests that an accepted record of one run owes to other runs, which may be in other partitions. Pure.

A rule calls `RunState.owe`; the fold gives each message its position, the offset of the record that caused it and a number, and
keeps it in the outbox of the partition until a `delivered` says that the log of the target holds it. So what is owed is a fact
of the log: whoever owns the partition sends it, and a repeat is void.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from ..values.names import valid_run_id

OUTBOX_KEY = "@outbox"
"""The key of `delivered`."""
EXTRA_BYTES = 400
"""A message is at most this much larger than the record that causes it, not counting the address of a parent."""
MOST_EXTRA_BYTES = 6_000
"""The same, with the longest address."""
MAX_STEP_CHARS = 1_100
_START_CHARS = 16

Position = tuple[int, int]
"""The offset of the record that caused a message, and the number of the message among those of this record."""


class Parent(NamedTuple):
    """The operation that started a run. `start`: the digest of the request that started the parent, since a run id may be used
    again. `detached`: nobody waits for the end.
    """

    run_id: str
    start: str
    step_id: str
    detached: bool = False


class Owed(NamedTuple):
    """A request that is owed. `event` is the whole value of its record."""

    offset: int
    n: int
    event: dict[str, Any]

    @property
    def position(self) -> Position:
        return self.offset, self.n


def parent_of(event: Mapping[str, Any]) -> Parent | None:
    """The parent that a `started` names; None: none, or one that no message could reach."""
    told = event.get("parent")
    if told is None or not valid_run_id(told["run_id"]) or len(told["start"]) > _START_CHARS:
        return None
    if not told["step_id"] or len(told["step_id"]) > MAX_STEP_CHARS:
        return None
    return Parent(told["run_id"], told["start"], told["step_id"], told.get("detached") is True)


_position = attrgetter("position")
_offset = attrgetter("offset")


class Outbox:
    """The messages of one partition that are not known to be delivered: by target partition, in the order of their causes."""

    __slots__ = ("targets",)

    def __init__(self) -> None:
        self.targets: dict[int, list[Owed]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.targets.values()))

    def __iter__(self) -> Iterator[tuple[int, Owed]]:
        return ((target, message) for target, messages in self.targets.items() for message in messages)

    def add(self, target: int, message: Owed) -> None:
        """Add a message at its place, unless it is there."""
        messages = self.targets.setdefault(target, [])
        if not messages or messages[-1].position < message.position:
            messages.append(message)
            return
        at = bisect_left(messages, message.position, key=_position)
        if messages[at].position != message.position:
            messages.insert(at, message)

    def above(self, target: int, position: Position | None, limit: int) -> list[Owed]:
        """The next messages for a target, up to `limit`, behind a position; None: from the first on."""
        messages = self.targets.get(target, [])
        first = 0 if position is None else bisect_right(messages, position, key=_position)
        return messages[first : first + limit]

    def deliver(self, through: Mapping[str, int]) -> None:
        """Forget what was caused at or below these offsets, by target."""
        for name, offset in through.items():
            target = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else -1
            messages = self.targets.get(target)
            if messages is None:
                continue
            del messages[: bisect_left(messages, offset + 1, key=_offset)]
            if not messages:
                del self.targets[target]

    def copied(self) -> Outbox:
        """Equal messages, which do not change with these."""
        twin = Outbox()
        twin.targets = {target: list(messages) for target, messages in self.targets.items()}
        return twin

    def pack(self) -> bytes:
        """Bytes that are equal for equal outboxes."""
        return orjson.dumps(sorted((target, list(map(tuple, messages))) for target, messages in self.targets.items()))

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Outbox:
        """The outbox that `pack` packed. Raises ValueError, TypeError or LookupError for other bytes."""
        outbox = cls()
        for target, messages in orjson.loads(data):
            outbox.targets[target] = [Owed(*fields) for fields in messages]
        return outbox


def digest_of_start(request: str) -> str:
    """The digest by which messages name the start of a run: 16 hexadecimal digits."""
    return hashlib.blake2b(request.encode("utf-8", "surrogatepass"), digest_size=_START_CHARS // 2).hexdigest()


def derived(*parts: str) -> str:
    """32 hexadecimal digits that are the same for the same texts only."""
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def record_of_message(draft: Mapping[str, Any], v: int, at: int, source: int, position: Position) -> dict[str, Any]:
    """The value of the record of a message: the fields that the rule gave, and the position at its source."""
    offset, n = position
    return {"type": draft["type"], "v": v, "at": at, **draft, "cause": {"partition": source, "offset": offset, "n": n}}
