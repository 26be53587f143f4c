"""Positions in the log, as requests and answers write them."""

from __future__ import annotations

from typing import NamedTuple


class LogPosition(NamedTuple):
    """A position in the log: everything below `offset` of `partition`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LogPosition:
        """Reads `partition:offset`. Raises ValueError for any other text."""
        partition, colon, offset = text.partition(":")
        parts = (partition, offset)
        if not colon or not all(one.isascii() and one.isdecimal() and len(one) <= 19 and int(one) < 2**63 for one in parts):
            raise ValueError(f"{text[:60]!r} is not a position: partition:offset, such as 3:1287")
        return cls(int(partition), int(offset))
