"""The conformance suite of the port in `stepfold.log`: a driver is complete when it passes.

    class TestMine(LogSuite):                       # any runner that awaits `async def test_...` methods, such as pytest-asyncio
        async def open_log(self) -> Log: ...        # a fresh log
        async def reopen(self, log: Log) -> Log | None: ...   # the same one, as another process sees it

The suite uses only the port and the standard library, and knows no driver and no test runner. It does not depend on the
speed of a driver: an expected event may come until `deadline_s`. Only to see that nothing comes, it waits a fixed time.
"""

from __future__ import annotations

from .appending import AppendingTests
from .base import checkpoints_of
from .checkpoints import CheckpointTests
from .membership import MembershipTests
from .opening import OpeningTests
from .reading import FindingTests, ReadingTests

__all__ = ["LogSuite", "checkpoints_of"]


class LogSuite(OpeningTests, AppendingTests, ReadingTests, FindingTests, MembershipTests, CheckpointTests):
    """Subclass it, implement the two factories, and run it. The subclass keeps the state that they need."""
