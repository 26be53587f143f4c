"""The figures of one partition, as its owner has them in memory."""

from __future__ import annotations

from typing import NamedTuple


class Figures(NamedTuple):
    """`offset`: everything below it is folded. `timer_late_s`: for how long the earliest timer has been due.

    `changes`: since the last checkpoint, which was written at `checkpoint_at` (ms since 1970; None: not by this worker).
    """

    partition: int
    caught_up: bool
    offset: int
    open_runs: int
    resident_runs: int
    timers: int
    timer_late_s: float
    append_queue: int
    changes: int
    checkpoint_at: int | None
    checkpoint_bytes: int
