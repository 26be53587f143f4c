"""Claiming a partition: read it to its end, wait while its owner is alive, append claims until the fold accepts one.

An owner finishes its running steps before it releases. Claiming earlier would count those steps as lost. So a claim waits for
an owner that is still a member, up to a limit, and does not wait for one that died.
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
"""How often to check, while waiting for a release, whether the owner is still alive."""
CATCH_UP_WAIT_S = 0.5
READ_RECORDS = 2000


class Claimed(NamedTuple):
    """An accepted claim: its offset, and the records read after it, which are not yet folded."""

    claim: int
    rest: Sequence[Record]


class Claiming:
    """Claims one partition for the worker `name`.

    `ids` makes nonces. `is_live` says whether the worker of a name is alive. `is_leaving` says that this owner must claim no
    more. `fold_one` folds a record into the state.
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
        self.decided = asyncio.Event()  # not set between the append of a claim and the fold's verdict on it
        self.decided.set()

    async def claim(self, state: PartitionState, reader: Reader, patience_s: float) -> Claimed | None:
        """Claim until a claim is accepted; None once `is_leaving`. Waits up to `patience_s` for a live owner to release.

        The caller sets `decided` once it can release what was claimed. Raises LogUnavailable, and ConfigError for a newer format.
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
        """A claim that follows the one at `prev`. Without an owner it releases the partition."""
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
        """Wait while another worker owns the partition and is alive, up to `patience_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while state.owner not in (None, self._name) and not self._is_leaving() and loop.time() < until:
            if not await self._is_live(state.owner):
                break
            self._fold_all(state, await reader.read(READ_RECORDS, LIVE_CHECK_S))

    async def _try(self, state: PartitionState, reader: Reader) -> Claimed | None:
        """Append one claim and read on to the fold's verdict; None if the claim is void."""
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
