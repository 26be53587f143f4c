"""Membership: who shares the partitions, and who is live."""

from __future__ import annotations

import asyncio
import contextlib

from ...errors import StepfoldError
from ...log import Log, Membership
from .base import SILENCE_S, LogTests


class Assignment:
    """Follows the assignment of one membership; `latest` is None until the first answer."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.latest: frozenset[int] | None = None
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            self.latest = await self.membership.assigned()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, StepfoldError):
            await self._task

    async def leave(self) -> None:
        await self.stop()
        await self.membership.leave()


class MembershipTests(LogTests):
    """Members that join, retire, leave and are asked about."""

    async def test_a_single_member_gets_everything(self) -> None:
        async with self.fresh() as log:
            member = Assignment(await self.within(log.join("a")))
            await self.owns_all(log, member)
            await member.leave()
            await member.membership.leave()

    async def owns_all(self, log: Log, *members: Assignment) -> None:
        """Wait until the members share all partitions, and each has one if there are enough."""

        def shared() -> bool:
            assigned = [partition for member in members for partition in member.latest or ()]
            fair = log.partitions < len(members) or all(member.latest for member in members)
            return fair and sorted(assigned) == list(range(log.partitions))

        await self.eventually(f"each partition has one of {len(members)} owners", shared)

    async def test_two_members_share_and_one_that_leaves_gives_back(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            await self.owns_all(log, first)
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await first.leave()
            await self.owns_all(log, second)
            third = Assignment(await self.within(log.join("c")))
            await self.owns_all(log, second, third)
            await second.leave()
            await third.leave()

    async def test_who_has_joined_is_live_until_it_leaves(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            mine, theirs = await log.join("mine"), await other.join("theirs")
            await self.within(mine.assigned())
            await self.within(theirs.assigned())
            for asks in (mine, theirs):
                for member, live in (("mine", True), ("theirs", True), ("nobody", False)):
                    assert await self.within(asks.is_live(member)) is live, member
            await self.within(theirs.leave())
            assert not await self.within(mine.is_live("theirs"))
            await self.within(mine.leave())

    async def test_who_retires_owns_nothing_and_is_live_until_it_leaves(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await self.within(first.membership.retire())
            await self.within(first.membership.retire())
            await self.eventually("a member that has retired owns no partition", lambda: first.latest == frozenset())
            await self.owns_all(log, second)
            third = Assignment(await self.within(log.join("c")))
            await self.owns_all(log, second, third)
            for asks in (first, second):
                assert await self.within(asks.membership.is_live("a"))
            await first.leave()
            await self.within(first.membership.retire())
            assert not await self.within(second.membership.is_live("a"))
            await self.owns_all(log, second, third)
            await second.leave()
            await third.leave()

    async def test_all_may_retire(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await self.within(second.membership.retire())
            await self.owns_all(log, first)
            await self.within(first.membership.retire())
            await self.eventually("no member owns a partition", lambda: not first.latest and not second.latest)
            third = Assignment(await self.within(other.join("c")))
            await self.owns_all(log, third)
            for member in (first, second, third):
                await member.leave()

    async def test_one_instance_may_have_several_members(self) -> None:
        async with self.fresh() as log:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(log.join("b")))
            await self.owns_all(log, first, second)
            await first.leave()
            await self.owns_all(log, second)
            await second.leave()

    async def test_closing_gives_everything_back(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await first.stop()
            await self.within(log.close())
            await self.owns_all(other, second)
            await second.leave()

    async def test_a_cancelled_wait_for_assignments_loses_no_change(self) -> None:
        async with self.fresh() as log, self.second(log) as other:
            first = Assignment(await self.within(log.join("a")))
            second = Assignment(await self.within(other.join("b")))
            await self.owns_all(log, first, second)
            await second.stop()
            waiting = asyncio.create_task(second.membership.assigned())
            await asyncio.sleep(SILENCE_S)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                second.latest = await waiting
            await first.leave()
            while second.latest != frozenset(range(log.partitions)):
                second.latest = await self.within(second.membership.assigned())
            await second.leave()

    async def test_members_that_come_and_go_leave_nothing_without_an_owner(self) -> None:
        async with self.fresh() as log, self.second(log) as other:

            async def visit(number: int) -> None:
                member = Assignment(await self.within((log, other)[number % 2].join(f"visitor-{number}")))
                await asyncio.sleep(0.01 * number)
                await self.within(member.leave())

            stays = Assignment(await self.within(log.join("stays")))
            await self.within(asyncio.gather(*(visit(number) for number in range(4))))
            await self.owns_all(log, stays)
            await stays.leave()
