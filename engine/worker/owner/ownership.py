"""The interface between an owner and its rooms: the state that they share, and the functions that several of them call."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from ...core.fold import PartitionState
from ...core.state import RunState
from ...log import Log
from ..clock import Clock
from ..host import WorkerPort
from .live import Live


class Ownership(Protocol):
    """One partition and its owner, as the rooms read them. Only the owner changes these attributes, but for the dict `live`."""

    log: Log
    partition: int
    worker: WorkerPort
    loop: asyncio.AbstractEventLoop
    clock: Clock
    state: PartitionState | None
    claim: int
    active: bool  # the claim is current, and nothing has ended the owner
    leaving: bool  # told to release the partition: begins nothing new
    live: dict[str, Live]  # the runs whose code is in memory


class Emit(Protocol):
    """Appends a decision about a run. `at`: its time, None for now; `fields`: those beside type, run, claim, format and `at`."""

    def __call__(self, run: RunState, type: str, at: int | None = None, /, **fields: Any) -> None: ...
