"""The past of a log, written as a worker would have written it, only faster: records that are accepted, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from stepfold.core.fold import PartitionState, fold
from stepfold.log import CLAIM_KEY, Entry, Log, Record, partition_of
from stepfold.worker.checkpoint import Checkpoint

OWNER = "somebody who was here before"


class Past:
    """One log. Every run of it waits; `checkpoint` puts them all away."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._states = [PartitionState(partition, log.partitions) for partition in range(log.partitions)]
        self._checkpoints = [Checkpoint(log, state.partition, lambda _run_id: True) for state in self._states]

    def claim_of(self, run_id: str) -> int:
        """The current claim of the run's partition."""
        return self._states[partition_of(run_id, self._log.partitions)].claim

    def event(self, run_id: str, kind: str, **fields: Any) -> Entry:
        """An event of a run, under the current claim if it is a decision."""
        if kind != "started":
            fields["claim"] = self.claim_of(run_id)
        return Entry(run_id, orjson.dumps({"type": kind, "v": 1, "run_id": run_id, "at": self._log.now(), **fields}))

    def started(self, run_id: str, workflow: str, data: Any = None) -> Entry:
        return self.event(run_id, "started", request=run_id, workflow=workflow, version="1", input=data)

    async def claim(self, owner: str | None = OWNER) -> None:
        """Own all partitions, or give them up."""
        for state in self._states:
            claim = {"type": "claim", "v": 1, "at": 0, "prev": state.claim, "owner": owner, "nonce": "n"}
            await self._append(state, [Entry(CLAIM_KEY, orjson.dumps(claim))])

    async def write(self, entries: Iterable[Entry]) -> None:
        """Append to the partitions where they belong."""
        sorted_out: dict[int, list[Entry]] = {}
        for entry in entries:
            sorted_out.setdefault(partition_of(entry.key, self._log.partitions), []).append(entry)
        for partition, of_partition in sorted_out.items():
            await self._append(self._states[partition], of_partition)

    async def _append(self, state: PartitionState, entries: Sequence[Entry]) -> None:
        acks = await self._log.append(state.partition, entries)
        checkpoint = self._checkpoints[state.partition]
        for entry, ack in zip(entries, acks, strict=True):
            checkpoint.touch(entry.key, state)
            assert fold(state, Record(ack.offset, ack.timestamp, *entry)) is not None

    async def checkpoint(self) -> None:
        for state, checkpoint in zip(self._states, self._checkpoints, strict=True):
            checkpoint.begin(state, state.claim)
            while checkpoint.pack_some(state):
                pass
            await checkpoint.commit()
            for run_id in list(state.runs.unpacked):
                state.runs.put_away(run_id)
