"""The group of members, and one membership."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ...errors import LogUnavailable

if TYPE_CHECKING:
    from .driver import FaultyDriver
    from .log import FaultyLog

SESSION_S = 10.0
COORDINATE_S = 1.0


class Group:
    """The group of members: assigns the partitions to them, and notifies each member some time later."""

    def __init__(self, log: FaultyLog) -> None:
        self._log = log
        self._ticking = False
        self.generation = 0
        self.members: list[FaultyMembership] = []
        self.owners: list[FaultyMembership | None] = [None for _ in log.partitions]

    def enter(self, member: FaultyMembership) -> None:
        if member not in self.members:
            self.members.append(member)
            self.rebalance()
        if not self._ticking:
            self._ticking = True
            self._log.later(COORDINATE_S, self._tick)

    def retire(self, member: FaultyMembership) -> None:
        if not member.retired:
            member.retired = True
            if member in self.members:
                self.rebalance()

    def leave(self, member: FaultyMembership) -> None:
        if member in self.members:
            self.members.remove(member)
            self.rebalance()

    def rebalance(self, shuffle: bool = False) -> None:
        """Spread the partitions evenly, with as few moves as possible; `shuffle`: at random."""
        if shuffle:
            self._log.random.shuffle(self.members)
            self.owners[:] = [None] * len(self.owners)
        members, owners = [member for member in self.members if not member.retired], self.owners
        most = -(-len(owners) // len(members)) if members else 0
        held = dict.fromkeys(members, 0)
        for partition, owner in enumerate(owners):
            if owner is None or owner not in held or held[owner] >= most:
                owners[partition] = None
            else:
                held[owner] += 1
        for partition, owner in enumerate(owners):
            if owner is None and members:
                chosen = min(members, key=lambda member: held[member])
                owners[partition] = chosen
                held[chosen] += 1
        self.generation += 1
        for member in self.members:
            target = frozenset(partition for partition, owner in enumerate(owners) if owner is member)
            delay_s = self._log.delay_s() * 4 + self._log.random.random() * 0.2
            member.driver.later(delay_s, member.told, self.generation, target)

    def _tick(self) -> None:
        """Remove members that are silent for longer than a session; on sqlite a dead process loses its lock at once."""
        now = self._log.loop.time()
        kafka = self._log.kafka
        for member in self.members[:]:
            process = member.driver.process
            if not process.stopped:
                member.seen = now
            elif now - member.seen > SESSION_S or (not kafka and process.state == "dead"):
                self.members.remove(member)
                if process.state == "paused":
                    member.driver.later(0, self.enter, member)  # happens when the process goes on
                self.rebalance()
        if self.members or self._log.loop.time() < SESSION_S:
            self._log.later(COORDINATE_S, self._tick)
        else:
            self._ticking = False

    def inbox_news(self) -> None:
        for member in self.members:
            member.driver.later(self._log.delay_s(), member.news.set)


class FaultyMembership:
    """A `Membership`."""

    def __init__(self, group: Group, driver: FaultyDriver, member: str) -> None:
        self.driver = driver
        self.name = member
        self.seen = driver.log.loop.time()
        self.retired = False
        self.assignment: frozenset[int] | None = None
        self.news = asyncio.Event()  # for the inbox
        self._group = group
        self._answered: frozenset[int] | None = None
        self._generation = 0
        self._changed = asyncio.Event()
        self._left = False
        group.enter(self)

    def told(self, generation: int, assignment: frozenset[int]) -> None:
        """Take an assignment from the group; ignore one that is older than the last."""
        if generation < self._generation:
            return
        self._generation = generation
        self.assignment = assignment
        self._changed.set()
        self.news.set()

    async def assigned(self) -> frozenset[int]:
        """As the port says."""
        while not self._left:
            if self.assignment is not None and self.assignment != self._answered:
                self._answered = self.assignment
                return self.assignment
            self._changed.clear()
            await self._changed.wait()
        raise LogUnavailable(f"member {self.name!r} has left; join again")

    async def is_live(self, member: str) -> bool:
        """As the port says."""
        await self.driver.ask()
        return any(one.name == member for one in self._group.members)

    async def retire(self) -> None:
        """As the port says."""
        await self.driver.ask()
        if not self._left:
            self._group.retire(self)

    async def leave(self) -> None:
        """As the port says."""
        if not self._left:
            self._left = True
            self._group.leave(self)
            self.driver.left(self)
            self._changed.set()
            self.news.set()

    @property
    def has_left(self) -> bool:
        """Whether `leave` was called."""
        return self._left
