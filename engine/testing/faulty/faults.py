"""The faults that may happen, and what watches them happen."""

from __future__ import annotations

from collections.abc import Mapping

from ...log import Record
from ..processes import Process

FAULTS = {
    "ack-lost": "a write is durable, but its writer is told that the log is unavailable",
    "refused": "a write fails and leaves nothing behind: no leader, or a busy file",
    "torn": "a write fails after a part of it became durable (kafka)",
    "late": "a write that was given up becomes durable long afterwards (kafka)",
    "slow": "a write takes seconds",
    "crash": "the process dies during a write",
    "unknown-offset": "an acknowledgement does not give the record's offset (kafka)",
    "gap": "the log skips offsets (kafka)",
    "unavailable": "a read request is not answered",
    "prefix": "a read returns fewer records than there are",
    "compacted": "the topic of the checkpoints is compacted (kafka)",
}
KAFKA_ONLY = frozenset({"torn", "late", "unknown-offset", "gap", "compacted"})
WRITE_FAULTS = ("ack-lost", "refused", "late", "slow", "crash")
PATIENCE_S = 10.0
"""How long a process waits for the answer to a write."""


class LogObserver:
    """An observer of a log. Override the methods of interest."""

    def appended(self, partition: int, record: Record, writer: str) -> None:
        """A record became durable."""

    def acknowledged(self, partition: int, offset: int, writer: str) -> None:
        """The writer got the acknowledgement of a record."""

    def read(self, partition: int, record: Record, reader: str) -> None:
        """A reader got a record."""

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """Items became durable beside the partition."""

    def crash(self, process: Process) -> None:
        """The fault "crash" has happened: kill the process."""
        process.kill()
