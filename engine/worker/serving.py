"""A worker that has an event loop of its own: it serves until the process is told to stop.

Steps run on that loop, so their code can end it: SystemExit in a task of theirs, `loop.stop()`, a cancellation of all tasks. Such
an end counts as the death of the worker. Only a signal, or an error of the worker itself, is an end in good order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..errors import message_of
from . import eventloop
from .ends import is_exit, step_behind
from .stopping import told_by_signals
from .worker import Worker

logger = logging.getLogger("stepfold.worker")

CANCELLED = "cancelled the tasks of the worker's event loop"


class LoopEnded(Exception):
    """Code that ran on the worker's loop has ended the loop. `__cause__` is the error that came out of it."""


def serve(
    name: str,
    opened: AbstractAsyncContextManager[Worker],
    *,
    on_start: Callable[[], None] = lambda: None,
    on_lost: Callable[[str], None],
    on_end: Callable[[Worker | None], None] = lambda worker: None,
) -> None:
    """Serve the log `name` until SIGINT, SIGTERM or SIGHUP, or the worker's own end.

    Calls `on_lost` with a message when code ends the loop, and then raises LoopEnded; the claims are kept, so that the next
    owners count what ran. Calls `on_end` on the loop when the worker has stopped, with None after an error.
    """
    serving: list[Worker] = []
    lost: list[str] = []
    over = False

    def lose(how: str) -> None:
        if serving and not lost:
            serving[0].cut_off()
            who = serving[0].cut_by or "some code"
            lost.append(f"{who} has {how}: this worker ends, and the next one counts the attempts that ran here as lost")
            on_lost(lost[0])

    async def until_told(worker: Worker, stop: asyncio.Event) -> None:
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), asyncio.create_task(worker.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set() and not worker.ended:
            lose(CANCELLED)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def live() -> Worker:
        stop = asyncio.Event()
        with told_by_signals(lambda _: stop.set(), lambda: serving[0].watch.held_up() if serving else None):
            async with opened as worker:
                serving.append(worker)
                on_start()
                try:
                    await until_told(worker, stop)
                except asyncio.CancelledError:  # nobody else has this task
                    lose(CANCELLED)
                    raise
        return worker

    async def main() -> None:
        nonlocal over
        worker: Worker | None = None
        try:
            worker = await live()
        except asyncio.CancelledError:  # while it stopped
            lose(CANCELLED)
            raise
        finally:
            over = True
            on_end(worker)

    logger.info("%s: serving on %s", name, eventloop.name())
    try:
        with eventloop.runner() as runner:
            try:
                runner.run(main())
            except BaseException as error:
                if not over and is_exit(error):
                    if serving and serving[0].cut_by is None:
                        serving[0].cut_by = step_behind(error)
                    said = message_of(error)
                    lose(f"raised {type(error).__name__}{said and f' ({said})'} in a task or callback")
                elif not over:
                    lose("stopped the worker's event loop")
                raise
    except BaseException as error:
        if lost:
            raise LoopEnded(lost[0]) from error
        raise
    if lost:
        raise LoopEnded(lost[0])
