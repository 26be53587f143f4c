"""What runs owe to other runs, written a second time from its description: a part of the judge.

Imports nothing of stepfold.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Any, NamedTuple, cast

import orjson

Json = dict[str, Any]

_RUN_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")


class Owed(NamedTuple):
    """A message, at its position."""

    offset: int
    n: int
    event: Json


class Parent(NamedTuple):
    run_id: str
    start: str
    step_id: str
    detached: bool


def start_of(request: str) -> str:
    return hashlib.blake2b(request.encode(), digest_size=8).hexdigest()


def digest(*parts: str) -> str:
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def parent_of(event: Json) -> Parent | None:
    """The parent that counts: one to which a message could go."""
    told = event.get("parent")
    if told is None or not _RUN_ID.fullmatch(told["run_id"]) or told["run_id"][0] == "@":
        return None
    if len(told["start"]) > 16 or not 0 < len(told["step_id"]) <= 1_100:
        return None
    return Parent(told["run_id"], told["start"], told["step_id"], told.get("detached", False))


def is_message(event: Json) -> bool:
    place: Any = event.get("cause")
    return type(place) is dict and all(type(cast(Json, place).get(name)) is int for name in ("partition", "offset", "n"))


class Outbox:
    """What the runs of one partition owe, by target partition, and what has come from others."""

    def __init__(self, number: int, partitions: int) -> None:
        self.number = number
        self.partitions = partitions
        self.targets: dict[int, list[Owed]] = {}
        self.ever: dict[int, list[Owed]] = {}  # delivered or not
        self.seen: dict[str, tuple[int, int]] = {}

    def owe(self, offset: int, at: int, requests: list[Json]) -> None:
        for n, request in enumerate(requests):
            place = {"partition": self.number, "offset": offset, "n": n}
            event = {**request, "v": 2, "at": at, "cause": place}
            target = zlib.crc32(request["run_id"].encode()) % self.partitions
            for known in (self.targets, self.ever):
                known.setdefault(target, []).append(Owed(offset, n, event))

    def deliver(self, through: dict[str, int]) -> None:
        for target in list(self.targets):
            end = through.get(str(target), -1)
            left = [owed for owed in self.targets[target] if owed.offset > end]
            self.targets[target] = left
            if not left:
                del self.targets[target]

    def has_come(self, event: Json) -> bool:
        """Whether a message at this position, or above it, has come before. Notes it."""
        place = event["cause"]
        position = place["offset"], place["n"]
        last = self.seen.get(str(place["partition"]))
        if last is None or position > last:
            self.seen[str(place["partition"])] = position
            return False
        return True


def refusal(parent: Parent, child: str) -> Json:
    address = {"type": "child-refused", "run_id": parent.run_id, "step_id": parent.step_id, "child": child}
    return {**address, "start": parent.start, "request": f"refused/{digest(*parent[:3], child)}"}


def misstep(source: Outbox, target: Outbox, event: Json) -> str:
    """What is wrong with a message that is about to come from one partition to another, in words; empty: nothing."""
    place = event["cause"]
    position = place["offset"], place["n"]
    ever = source.ever.get(target.number, [])
    owed = next((one for one in ever if one[:2] == position), None)
    if owed is None or owed.event != event:
        return f"nothing in the log of partition {source.number} owes it: {owed}"
    last = target.seen.get(str(source.number), (-1, -1))
    missing = [one[:2] for one in ever if last < one[:2] < position]
    return f"{missing} of partition {source.number} should have come before" if missing else ""


def lost(source: Outbox, targets: list[Outbox], through: dict[str, int]) -> str:
    """Which messages are said to be delivered and have not come, in words; empty: none."""
    for target in targets:
        last = target.seen.get(str(source.number), (-1, -1))
        gone = [one for one in source.ever.get(target.number, []) if one.offset <= through.get(str(target.number), -1)]
        if missing := [one[:2] for one in gone if one[:2] > last]:
            return f"{missing} have not come to partition {target.number}"
    return ""
