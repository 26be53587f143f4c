"""How long calls wait for a log: each as long as it says, and what ends one otherwise is not mistaken for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

import pytest

from stepfold.client.patience import Patience
from stepfold.errors import LogUnavailable
from stepfold.testing import run_virtual


def test_calls_at_the_same_time_wait_each_as_long_as_it_says() -> None:
    async def main() -> list[float]:
        patience = Patience("log")
        loop = asyncio.get_running_loop()

        async def call(begin_s: float, limit_s: float, takes_s: float) -> float:
            await asyncio.sleep(begin_s)
            began = loop.time()
            try:
                async with patience.within(limit_s):
                    await asyncio.sleep(takes_s)
            except LogUnavailable:
                return -(loop.time() - began)
            return loop.time() - began

        calls = [(0, 10, 99), (0, 10, 9), (1, 2, 99), (2, 20, 99), (5, 1, 0.5), (5, 0, 1), (30, 3, 99), (30.5, 1, 99)]
        return await asyncio.gather(*(call(*one) for one in calls))

    assert run_virtual(main()) == [-10, 9, -2, -20, 0.5, 0, -3, -1]


class HandlesWithoutTime(asyncio.SelectorEventLoop):
    """As uvloop's, where a call without delay has a handle that does not say when."""

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        if when <= self.time():
            return self.call_soon(callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)


def test_calls_without_patience_work_on_any_loop() -> None:
    async def main() -> Sequence[object]:
        patience = Patience("log")

        async def call() -> None:
            async with patience.within(0):
                await asyncio.sleep(99)

        return await asyncio.gather(call(), call(), return_exceptions=True)

    with asyncio.Runner(loop_factory=HandlesWithoutTime) as runner:
        assert [type(error) for error in runner.run(main())] == [LogUnavailable] * 2


@pytest.mark.parametrize("error", [OSError("of the log"), TimeoutError("of the log"), LogUnavailable("of the log")])
async def test_what_the_log_raises_is_raised(error: Exception) -> None:
    with pytest.raises(type(error), match="of the log"):
        async with Patience("log").within(60):
            raise error


def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    async def main() -> None:
        patience = Patience("log")

        async def call() -> None:
            async with patience.within(10):
                await asyncio.sleep(99)

        for after_s in (5, 10):  # also at the very moment
            task = asyncio.create_task(call())
            asyncio.get_running_loop().call_later(after_s, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task

    run_virtual(main())


def test_an_outer_time_limit_keeps_its_name() -> None:
    async def main() -> None:
        async with asyncio.timeout(5), Patience("log").within(10):
            await asyncio.sleep(99)

    with pytest.raises(TimeoutError):
        run_virtual(main())
