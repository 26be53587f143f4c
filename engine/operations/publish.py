"""Published values: the code tells how far it is, and everybody may read it. `published` holds a value under a key. Pure.

The fold keeps the last value of each key: at most MAX_KEYS of them, of MAX_VALUE_BYTES each, however many were published.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import orjson

from ..core.records import FORMAT, Decision
from ..core.state import RunState
from ..values.names import quoted
from ..values.words import Beside, short
from .told import Notice, Told, is_next, keep

MAX_KEYS = 100
"""How many keys a run may publish under."""
MAX_VALUE_BYTES = 100_000
"""The limit for one value, as JSON."""


class Published(Decision):
    """The code publishes `value` under `key`. `seq` numbers the values of a key from 1 on."""

    never_ends = True
    tone = "message"
    counts_if = "`seq` is 1 more than the last of this `key`; the first of a key has 1, and a run has up to 100 keys"

    type: Literal["published"] = "published"
    key: str
    value: Any
    seq: int

    def detail(self, beside: Beside) -> str:
        return f"{self.key}: {short(self.value)}"


class Publication(Notice):
    """Publish a value, given as JSON, under the key `name`."""

    __slots__ = ("value",)
    kind = "published"
    max_names: ClassVar = MAX_KEYS

    def __init__(self, name: str, value: bytes) -> None:
        super().__init__(name)
        self.value = value

    def record(self, number: int) -> tuple[str, dict[str, Any]]:
        return "published", {"v": FORMAT, "key": self.name, "value": orjson.Fragment(self.value), "seq": number}

    def too_many(self) -> Exception:
        return ValueError(
            f"step.publish({quoted(self.name)}): a run publishes under at most {MAX_KEYS} keys, since the last value of each is "
            "kept; publish a dict under one key, or the end of each item alone"
        )


def _published(run: RunState, event: dict[str, Any]) -> bool:
    key, seq = event["key"], event["seq"]
    if not is_next(run, Publication, key, seq):
        return False
    keep(run, Publication, key, seq, event["value"], run.now)
    return True


class LastPublished(NamedTuple):
    """The last value of a key, how many were published under it, and the log's time of it, ms since 1970."""

    value: Any
    seq: int
    at: int


def published_by(run: RunState) -> dict[str, LastPublished]:
    """The last value of each key, in the order of their first values."""
    return {key: LastPublished(value, seq, at) for key, (seq, value, at) in run.kept.get(Publication.kind, {}).items()}


def value_of(event: dict[str, Any]) -> tuple[str, Any] | None:
    """Key and value that an accepted event publishes; None for another event."""
    return (event["key"], event["value"]) if event["type"] == "published" else None


KIND = Told(Publication, records=(Published,), rules={"published": _published})
