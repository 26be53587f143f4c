"""The interface between an owner and its worker, and a worker's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from ..authoring.step import StepPorts
from ..authoring.workflow import Workflow
from ..core.state import RunState
from ..log import MAX_PAYLOAD_BYTES
from .attempt import Attempt
from .observer import Observer
from .turns import Turns
from .watchdog import Watch

HAND_OVER_S = 5.0
"""How long an owner may take, beyond the grace, to flush, write a checkpoint and release its partition."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a worker."""

    concurrency: int = 100
    grace_s: float = 10.0
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    live_runs: int = 10_000
    checkpoint_records: int = 20_000
    checkpoint_s: float = 30.0
    max_turns: int = 1_000_000  # callbacks that a run's code may run without awaiting anything durable


class PoolPort(Protocol):
    """The part of a worker's pool that its owners use."""

    @property
    def turns(self) -> Turns: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def dispatch(self, attempt: Attempt) -> None: ...
    def dispatch_isolated(self, attempt: Attempt) -> None: ...
    def withdraw(self, attempt: Attempt) -> None: ...
    def abandon(self, attempt: Attempt) -> None: ...


class WorkerPort(Protocol):
    """The part of a worker that its owners use."""

    name: str
    settings: Settings
    ports: StepPorts
    random: Random
    ids: Callable[[], str]
    watch: Watch
    observer: Observer | None

    @property
    def pool(self) -> PoolPort: ...
    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None: ...
    def ctx_ext(self, run_id: str) -> object: ...
    async def is_live(self, name: str) -> bool: ...
    def clocks_differ(self, ahead_ms: int) -> None: ...
    def unknown(self, run: RunState) -> None: ...
