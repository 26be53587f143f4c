"""What the simulated world tells whoever watches it: the only thing that the world and the checker share.

Calls come in the order in which things happen; their arguments are not to be changed. An observer that finds a promise
broken raises AssertionError; the run of that seed ends there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stepfold.fold import PartitionState
from stepfold.log import Record


class Observer(Protocol):
    """All times are the log's, in milliseconds since 1970. `worker`, `writer` and `reader` are names of processes, one for
    each life of a process; `writer` is "stranger" for whoever has no right to write."""

    def appended(self, partition: int, record: Record, writer: str) -> None:
        """The record became durable. In offset order within a partition."""
        ...

    def acknowledged(self, partition: int, offset: int, writer: str) -> None:
        """The writer was told that its record is durable there."""
        ...

    def read(self, partition: int, record: Record, reader: str) -> None:
        """A reader was given the record."""
        ...

    def step_started(self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, args: Any, heartbeat: Any) -> None:
        """A step function runs. `at_ms` is the worker's own, perhaps wrong clock; `heartbeat`: of those before."""
        ...

    def step_beat(self, worker: str, run_id: str, step_id: str, attempt: int, details: Any) -> None:
        """A step function tells how far it is."""
        ...

    def step_ended(self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, outcome: Any) -> None:
        """It returned `outcome`, or raised it."""
        ...

    def delivered(self, worker: str, run_id: str, step_id: str, value: Any, at_ms: int) -> None:
        """Workflow code got this for its step, sleep or wait, perhaps again on a replay; `at_ms` is `ctx.now()`."""
        ...

    def state(self, worker: str, partition: int, state: PartitionState) -> None:
        """What an owner has folded, as it is now. Not to be kept."""
        ...

    def client_acked(self, what: str, run_id: str, request: str, detail: Any) -> None:
        """A client was told that its "start", "signal" or "cancel" is durable; `detail` is its input, (name, data), or reason."""
        ...

    def client_result(self, run_id: str, outcome: Any) -> None:
        """A client was told how the run ended: its result, or the exception."""
        ...

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        """These became durable beside the partition; None: deleted."""
        ...

    def projected(self, positions: Mapping[int, int], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """What the projection of the runs holds: its position in each partition, and its rows by run id."""
        ...

    def died(self, process: str) -> None:
        """The process was killed: nothing more comes from it but what it had sent."""
        ...

    def quiet(self, world: Any) -> None:
        """The faults are over and nothing happens any more: the final checks."""
        ...


class Silent:
    """Watches nothing."""

    def appended(self, partition: int, record: Record, writer: str) -> None: ...
    def acknowledged(self, partition: int, offset: int, writer: str) -> None: ...
    def read(self, partition: int, record: Record, reader: str) -> None: ...
    def step_started(
        self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, args: Any, heartbeat: Any
    ) -> None: ...
    def step_beat(self, worker: str, run_id: str, step_id: str, attempt: int, details: Any) -> None: ...
    def step_ended(self, worker: str, run_id: str, step_id: str, attempt: int, at_ms: int, outcome: Any) -> None: ...
    def delivered(self, worker: str, run_id: str, step_id: str, value: Any, at_ms: int) -> None: ...
    def state(self, worker: str, partition: int, state: PartitionState) -> None: ...
    def client_acked(self, what: str, run_id: str, request: str, detail: Any) -> None: ...
    def client_result(self, run_id: str, outcome: Any) -> None: ...
    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None: ...
    def projected(self, positions: Mapping[int, int], rows: Mapping[str, Mapping[str, Any]]) -> None: ...
    def died(self, process: str) -> None: ...
    def quiet(self, world: Any) -> None: ...
