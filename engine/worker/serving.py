"""A worker that has an event loop of its own: it serves until the process is told to stop.

Steps run on that loop, so their code can end it: SystemExit in one of their tasks, `loop.stop()`, a cancellation of all tasks.
Such an end counts as the death of the worker. Only a signal, or an error of the worker itself, is an end in good order.
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


class _Loss:
    """Notes that code other than the worker's has ended the loop of `worker`. `words` says it for people."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        self.worker: Worker | None = None
        self.words = ""
        self._on_lost = on_lost

    def note(self, how: str) -> None:
        """The first time, cut the worker off from its claims and call `on_lost`."""
        if self.worker is not None and not self.words:
            self.worker.cut_off()
            who = self.worker.cut_by or "some code"
            self.words = f"{who} has {how}: this worker ends, and the next one counts the attempts that ran here as lost"
            self._on_lost(self.words)


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
    loss = _Loss(on_lost)
    over = False

    async def live() -> Worker:
        stop = asyncio.Event()
        with told_by_signals(lambda _: stop.set(), lambda: None if loss.worker is None else loss.worker.watch.held_up()):
            async with opened as worker:
                loss.worker = worker
                on_start()
                try:
                    await _until_told(worker, stop, loss)
                except asyncio.CancelledError:  # nobody else has this task
                    loss.note(CANCELLED)
                    raise
        return worker

    async def main() -> None:
        nonlocal over
        worker: Worker | None = None
        try:
            worker = await live()
        except asyncio.CancelledError:  # while it stopped
            loss.note(CANCELLED)
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
                    if loss.worker is not None and loss.worker.cut_by is None:
                        loss.worker.cut_by = step_behind(error)
                    loss.note(_raised(error))
                elif not over:
                    loss.note("stopped the worker's event loop")
                raise
    except BaseException as error:
        if loss.words:
            raise LoopEnded(loss.words) from error
        raise
    if loss.words:
        raise LoopEnded(loss.words)


def _raised(error: BaseException) -> str:
    said = message_of(error)
    return f"raised {type(error).__name__}{said and f' ({said})'} in a task or callback"


async def _until_told(worker: Worker, stop: asyncio.Event, loss: _Loss) -> None:
    """Wait for `stop`, or for the worker's own end."""
    waits: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), asyncio.create_task(worker.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set() and not worker.ended:
        loss.note(CANCELLED)
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
