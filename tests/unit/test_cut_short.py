"""A turn of a run's loop that does not come to its end: what it ran inside of is put back by whoever finds it so."""

from __future__ import annotations

import asyncio
import sys

import pytest
from loop_programs import Drive

import stepfold.replay.loop
from stepfold.replay.loop import DeterministicLoop


@pytest.mark.parametrize("inside", [True, False])
def test_whose_turn_was_cut_short_at_its_end_is_left_by_its_owner(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by what the watchdog raises, which may come at any instruction."""

    class CutShort(BaseException): ...

    driven = Drive(DeterministicLoop)
    driven.start(lambda d: d.step("a"))

    def turn() -> None:
        outer, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        task = None if outer is None else asyncio.current_task()
        may = iter([True])  # the first time, when the turn begins

        def set_running_loop(loop: asyncio.AbstractEventLoop | None) -> None:
            if not next(may, False):
                raise CutShort
            _set_running_loop(loop)

        _set_running_loop = asyncio._set_running_loop
        with monkeypatch.context() as patched:
            patched.setattr(stepfold.replay.loop, "_set_running_loop", set_running_loop)
            with pytest.raises(CutShort):
                driven.loop.run_until_idle()
        assert driven.loop.is_running()
        for _ in range(2):
            driven.loop.leave()
        assert not driven.loop.is_running() and asyncio._get_running_loop() is outer and sys.get_asyncgen_hooks() == hooks
        assert outer is None or asyncio.current_task() is task
        driven.loop.abandon()

    async def turn_inside() -> None:
        turn()

    if inside:
        asyncio.run(turn_inside())
    else:
        turn()
