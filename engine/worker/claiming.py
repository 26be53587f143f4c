"""Claiming a partition: read it to its end, wait for an owner that is alive, append claims until the fold accepts one.

Whoever owns a partition gives it up when another worker shall have it, after what runs there has ended; a claim that comes
before would make that lost. So an owner that is still a member has time for it, bounded; one that died has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from ..core.fold import Change, PartitionState
from ..errors import ConfigError
from ..events import FORMAT, encode
from ..log import CLAIM_KEY, Entry, Log, Reader, Record

LIVE_CHECK_S = 0.2
"""How often to see whether an owner that shall give the partition up is still alive."""
CATCH_UP_WAIT_S = 0.5
READ_RECORDS = 2000


class Claimed(NamedTuple):
    """An accepted claim: its offset, and what was read behind it and is not folded."""

    claim: int
    rest: Sequence[Record]


class Claiming:
    """The way of the worker `name` to one partition. `ids`: nonces; `is_live`: whether the worker of a name is alive;
    `is_leaving`: whether nothing shall be claimed any more; `fold_one` folds a record into the state.
    """

    def __init__(
        self,
        log: Log,
        partition: int,
        name: str,
        *,
        ids: Callable[[], str],
        is_live: Callable[[str], Awaitable[bool]],
        is_leaving: Callable[[], bool],
        fold_one: Callable[[PartitionState, Record], Change | None],
    ) -> None:
        self._log = log
        self._partition = partition
        self._name = name
        self._ids = ids
        self._is_live = is_live
        self._fold_one = fold_one
        self._is_leaving = is_leaving
        self.decided = asyncio.Event()  # unset from a claim's append until it is known what became of it
        self.decided.set()

    async def claim(self, state: PartitionState, reader: Reader, patience_s: float) -> Claimed | None:
        """Claim until accepted; None once it is leaving. An owner that lives has `patience_s` to give it up.

        Raises LogUnavailable, and ConfigError for a newer format.

        `decided` is the caller's to set, once what was claimed can be given back.
        """
        await self._catch_up(state, reader)
        while True:
            await self._released(state, reader, patience_s)
            self._check_format(state)
            if self._is_leaving():
                return None
            self.decided.clear()
            claimed = await self._try(state, reader)
            if claimed is not None:
                return claimed
            self.decided.set()

    def entry(self, prev: int, owner: str | None, nonce: str, memory_ms: int) -> Entry:
        """A claim that follows the one at `prev`; without an owner it gives the partition up."""
        claim = {
            "type": "claim",
            "v": FORMAT,
            "at": self._log.now(),
            "prev": prev,
            "owner": owner,
            "nonce": nonce,
            "memory_ms": memory_ms,
        }
        return Entry(CLAIM_KEY, encode(claim))

    async def _catch_up(self, state: PartitionState, reader: Reader) -> None:
        _, end = await self._log.bounds(self._partition)
        while state.offset < end:
            records = await reader.read(READ_RECORDS, CATCH_UP_WAIT_S)
            if not records:
                break
            self._fold_all(state, records)
            await asyncio.sleep(0)

    async def _released(self, state: PartitionState, reader: Reader, patience_s: float) -> None:
        """Wait while another worker owns the partition and is alive."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while state.owner not in (None, self._name) and not self._is_leaving() and loop.time() < until:
            if not await self._is_live(state.owner):
                break
            self._fold_all(state, await reader.read(READ_RECORDS, LIVE_CHECK_S))

    async def _try(self, state: PartitionState, reader: Reader) -> Claimed | None:
        """Append one claim and see what the fold says."""
        nonce = self._ids()
        await self._log.append(self._partition, [self.entry(state.claim, self._name, nonce, state.memory_ms)])
        while True:
            records = await reader.read(READ_RECORDS, None)
            for index, record in enumerate(records):
                change = self._fold_one(state, record)
                if record.key == CLAIM_KEY and nonce.encode() in record.value:
                    rest = records[index + 1 :]
                    if change is not None:
                        return Claimed(state.claim, rest)
                    self._fold_all(state, rest)
                    return None

    def _fold_all(self, state: PartitionState, records: Sequence[Record]) -> None:
        for record in records:
            self._fold_one(state, record)

    def _check_format(self, state: PartitionState) -> None:
        if state.needs_format > FORMAT:
            raise ConfigError(
                f"{self._log.name} partition {self._partition} is written in format {state.needs_format} by {state.owner}; "
                f"this version of stepfold knows format {FORMAT}. Upgrade this worker"
            )
