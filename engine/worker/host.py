"""What an owner needs of the worker that it runs in, and what a worker may tune. Both know each other by this only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from ..authoring.step import StepPorts
from ..authoring.workflow import Workflow
from ..core.state import RunState
from .attempt import Attempt
from .suspects import Suspects
from .watchdog import Watch

HAND_OVER_S = 5.0
"""How long it may take, beyond the grace, to flush, to write a checkpoint and to give a partition up."""
MAX_PAYLOAD_BYTES = 900_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker may tune."""

    concurrency: int = 100
    grace_s: float = 10.0
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    live_runs: int = 10_000
    checkpoint_records: int = 20_000
    checkpoint_s: float = 30.0
    max_turns: int = 1_000_000  # of a run's code, before it is said to spin


class Worker(Protocol):
    """What an owner needs of its worker."""

    name: str
    settings: Settings
    ports: StepPorts
    random: Random
    ids: Callable[[], str]
    watch: Watch

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None: ...
    def ctx_ext(self, run_id: str) -> object: ...
    async def is_live(self, name: str) -> bool: ...
    def clocks_differ(self, ahead_ms: int) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def dispatch(self, attempt: Attempt) -> None: ...
    def dispatch_alone(self, attempt: Attempt) -> None: ...
    def wait_alone(self, one: Suspects) -> None: ...
    def settled(self, one: Attempt | Suspects) -> None: ...
    def withdraw(self, attempt: Attempt) -> None: ...
    def abandon(self, attempt: Attempt) -> None: ...
    def unknown(self, run: RunState) -> None: ...
