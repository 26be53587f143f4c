"""Writes of a process on their way to the log: they land, fail, land late or in part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import LogUnavailable
from .faults import PATIENCE_S, WRITE_FAULTS

if TYPE_CHECKING:
    from .driver import FaultyDriver

LATE_S = 120.0


class Write:
    """One append or one checkpoint under way. `write(n)` makes the first `n` of its `count` entries durable."""

    __slots__ = ("count", "done", "write")

    def __init__(self, count: int, write: Callable[[int], Any], done: asyncio.Future[Any]) -> None:
        self.count = count
        self.write = write
        self.done = done


class Lane:
    """The writes of one process to one place: a partition, or the checkpoints. While a batch is under way, the next one
    gathers; a failure fails both."""

    def __init__(self, driver: FaultyDriver) -> None:
        self._driver = driver
        self._waiting: list[Write] = []
        self._sent: list[Write] | None = None
        self._held = False

    @property
    def idle(self) -> bool:
        return not self._waiting and self._sent is None

    def add(self, call: Write) -> None:
        self._waiting.append(call)
        if self._sent is None:
            self._send()

    def _send(self) -> None:
        if self._driver.process.stopped:  # stopped in the middle of its turn: send nothing before it goes on, if ever
            if not self._held:
                self._held = True
                self._driver.later(0, self._go_on)
            return
        log = self._driver.log
        batch = self._sent = self._waiting
        self._waiting = []
        delay_s = log.delay_s()
        down_s = log.down_until - log.loop.time()
        fault = "refused" if down_s > 0 else next((one for one in WRITE_FAULTS if log.happens(one)), None)
        if fault is None:
            log.later(delay_s, self._land, batch, True, log.times_put_back)
        elif fault == "slow":
            log.later(delay_s + log.random.random() * PATIENCE_S * 0.9, self._land, batch, True, log.times_put_back)
        elif fault == "crash":
            log.later(delay_s, self._crash, batch)
        else:
            if fault == "ack-lost":
                log.later(delay_s, self._land, batch, False, log.times_put_back)
            elif fault == "late":
                log.later(PATIENCE_S + log.random.random() * LATE_S, self._land, batch, False, log.times_put_back)
            self._driver.later(PATIENCE_S if log.kafka else delay_s, self._fail, batch)

    def _go_on(self) -> None:
        self._held = False
        if self._waiting and self._sent is None:
            self._send()

    def _crash(self, batch: list[Write]) -> None:
        log = self._driver.log
        if log.random.random() < 0.5:
            self._land(batch, False, log.times_put_back)
        log.observer.crash(self._driver.process)

    def _land(self, batch: list[Write], acknowledged: bool, sent_to: int) -> None:
        """The batch arrives. `sent_to`: `times_put_back` when it was sent."""
        driver = self._driver
        log = driver.log
        if log.times_put_back != sent_to:
            driver.later(0, self._fail, batch)
            return
        if driver.process.state == "dead" and log.random.random() < 0.3:  # the process died before it sent the batch
            return
        torn = not acknowledged and log.happens("torn")
        answers: list[Any] = []
        for call in batch:
            if torn:
                count = log.random.randrange(call.count + 1)
                call.write(count)
                if count < call.count:
                    return
            else:
                answers.append(call.write(call.count))
        if acknowledged:
            driver.later(log.delay_s(), self._acknowledge, batch, answers)

    def _acknowledge(self, batch: list[Write], answers: list[Any]) -> None:
        if self._sent is not batch:  # the process has given it up
            return
        self._sent = None
        for call, answer in zip(batch, answers, strict=True):
            if not call.done.done():
                call.done.set_result(answer)
        if self._waiting:
            self._send()

    def _fail(self, batch: list[Write]) -> None:
        if self._sent is batch:
            self._driver.session_failed(self)

    def fail(self, reason: str) -> None:
        """Fail all calls that wait for an acknowledgement."""
        calls = [*(self._sent or ()), *self._waiting]
        self._sent, self._waiting = None, []
        for call in calls:
            if not call.done.done():
                call.done.set_exception(LogUnavailable(reason))
                call.done.exception()  # marks it as retrieved: a caller that was cancelled never reads it
