"""The inbox, as one member reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...errors import LogUnavailable
from ...log import InboxRecord
from .group import FaultyMembership


class FaultyInboxMembership(FaultyMembership):
    """An `InboxMembership`."""

    def inbox(self) -> FaultyInbox:
        """As the port says."""
        return FaultyInbox(self)


class FaultyInbox:
    """An `Inbox`. The member that a partition is assigned to reads the inbox partition of the same number."""

    def __init__(self, member: FaultyMembership) -> None:
        self._member = member
        self._log = member.driver.log
        self._positions: dict[int, int] = {}
        self._received: list[InboxRecord] = []
        self._behind: dict[int, int] = {}  # by partition: the position behind the received records

    async def receive(self) -> Sequence[InboxRecord]:
        """As the port says."""
        member, log = self._member, self._log
        while not member.has_left:
            member.driver.check_open()
            member.news.clear()
            mine = member.assignment or frozenset()
            for partition in self._positions.keys() - mine:
                del self._positions[partition]
            if log.happens("unavailable"):
                await member.driver.question()
            for partition in sorted(mine):
                self._positions.setdefault(partition, log.partitions[partition].routed)
            if self._received:
                return self._received
            for partition, position in self._positions.items():
                part = log.partitions[partition]
                stable = min((one.begins(partition) for one in part.open), default=len(part.inbox))
                counting = [at for at in range(position, stable) if at not in part.given_up][:5]
                self._received += (part.inbox[at] for at in counting)
                end = counting[-1] + 1 if len(counting) == 5 else max(position, stable)
                self._positions[partition] = self._behind[partition] = end
            if self._received:
                return self._received
            self._commit()
            await member.news.wait()
        raise LogUnavailable(f"{log.name}: this member has left")

    async def done(self, records: Sequence[InboxRecord]) -> None:
        """As the port says. If the commit fails, some member receives the records again."""
        self._received = []
        await asyncio.sleep(self._log.delay_s())
        if not self._log.happens("unavailable"):
            self._commit()

    def _commit(self) -> None:
        for partition, behind in self._behind.items():
            if partition in self._positions:
                part = self._log.partitions[partition]
                part.routed = max(part.routed, behind)
        self._behind.clear()

    async def refuse(self, record: InboxRecord, reason: str) -> None:
        """As the port says."""
        await self._member.driver.ask()
        self._log.dead_letters.append((record, reason))
