"""A log in memory that fails as real logs do, within the promises of `stepfold.log`.

`FaultyLog` is the stored log with its broker or file; `driver(process)` connects one process to it. The log has one of two
characters: "kafka" (an inbox, gaps in offsets, timestamps that step back, writes that land long after they were given up, a
group that takes partitions from a silent member) or "sqlite" (dense offsets, all or nothing, nothing late). All delays are
virtual and all chance comes from `random`, so a seed repeats a run. `rates` gives the probability of each fault of `FAULTS`;
without rates it is a plain log.
"""

from __future__ import annotations

from .driver import FaultyDriver
from .faults import FAULTS, LogObserver
from .group import FaultyMembership
from .inbox import FaultyInbox
from .log import Character, Checkpoints, FaultyLog, Transaction
from .reader import FaultyReader

__all__ = [
    "FAULTS",
    "Character",
    "Checkpoints",
    "FaultyDriver",
    "FaultyInbox",
    "FaultyLog",
    "FaultyMembership",
    "FaultyReader",
    "LogObserver",
    "Transaction",
]
