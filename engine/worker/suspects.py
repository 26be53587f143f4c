"""Runs whose code may be what kills their workers.

A step that kills its worker is found out by its attempts. Code of a workflow leaves no trace of having run, so after
deaths in a row the owner is careful: before it runs the code of a run that it recovers, it announces that
(`code-suspected`), in groups of those that are above suspicion, then one by one those that were announced before and have
decided nothing since, the least suspected first. What survives decides something, or is cleared (`code-cleared`), and
only when that is in the log are the next ones announced. So the others go on first, and a run that was announced again and
again is the one that kills.

Keeps book only: the owner appends what is to be announced and runs the code. Suspects of all partitions of a worker, and
the steps that it runs alone, have their turns one after another, or one would be blamed for another's deeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import nsmallest
from itertools import islice
from typing import Protocol

from ..core.state import RunState

CAREFUL_AFTER = 2
"""From so many deaths of owners in a row on, the next one is careful."""
KILLS_LIMIT = 8
"""A run is put aside when its code was announced this often and its worker died each time. A kill from outside looks the same."""
GROUP = 200
"""So many runs above suspicion are announced at a time."""
PATIENCE_S = 30.0
"""A step that runs alone may take hours: a turn that has not come after so long is taken."""


class Turns(Protocol):
    """Who sees to it that one thing at a time is announced in a process."""

    def wait_alone(self, one: Suspects) -> None:
        """Call its `announce` when its turn has come."""
        ...

    def settled(self, one: Suspects) -> None:
        """It needs no turn any more, or has had it."""
        ...


class Suspects:
    """Those of one partition. `announce_code` puts the announcement of a run into the log; False: it is not to run."""

    def __init__(self, turns: Turns, announce_code: Callable[[str], bool]) -> None:
        self.careful = False
        self._turns = turns
        self._announce_code = announce_code
        self._open = False  # all that is to be recovered is known
        self._queued = False
        self._patience: asyncio.TimerHandle | None = None
        self._clean: dict[str, int] = {}  # runs that wait for their turn -> how often they were announced
        self._suspected: dict[str, int] = {}
        self._trying: dict[str, bool] = {}  # announced, and not cleared -> whether that is in the log: it is their turn

    @property
    def waiting(self) -> bool:
        """Whether code waits for its turn."""
        return bool(self._clean or self._suspected or self._trying)

    def begin(self, deaths: int) -> None:
        """A new ownership, after so many deaths in a row."""
        self.careful = deaths >= CAREFUL_AFTER

    def open(self) -> None:
        """What is to be recovered is recovered, but for those that wait here."""
        self._open = True
        self._queue()

    def end(self) -> None:
        """The ownership is over."""
        self.careful = self._open = False
        for kept in (self._clean, self._suspected, self._trying):
            kept.clear()
        self._leave()

    def holds(self, run: RunState) -> bool:
        """Whether the code of a run has to wait for its turn; it will have one."""
        if not self.careful:
            return False
        its_turn = self._trying.get(run.id)
        if its_turn is None:
            queue, other = (self._suspected, self._clean) if run.suspected else (self._clean, self._suspected)
            other.pop(run.id, None)  # or it would have two turns
            queue[run.id] = run.suspected
            self._queue()
        return not its_turn

    def announce(self) -> None:
        """The turn has come."""
        if self._trying:
            return  # it had been taken
        chosen = self._clean or self._suspected
        group = list(islice(self._clean, GROUP)) or nsmallest(1, chosen, key=chosen.__getitem__)
        for run_id in group:
            del chosen[run_id]
        self._trying = {run_id: False for run_id in group if self._announce_code(run_id)}
        self._look_on()

    def turn(self, run_id: str) -> bool:
        """The announcement of a run is in the log: whether it is its turn now, and was not before."""
        if self._trying.get(run_id) is not False:
            return False
        self._trying[run_id] = True
        return True

    def seen(self, run: RunState) -> None:
        """A record of a run was accepted. One that comes before its announcement says nothing of the code."""
        if run.ended:
            self._clean.pop(run.id, None)
            self._suspected.pop(run.id, None)
        elif run.suspected or not self._trying.get(run.id):
            return
        if self._trying.pop(run.id, None) is not None:
            self._look_on()

    def _look_on(self) -> None:
        if not self._trying:
            self._leave()
            self._queue()

    def _queue(self) -> None:
        if not self._open or self._queued:
            return
        if self._clean or self._suspected:
            self._queued = True
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self.announce)
            self._turns.wait_alone(self)
        else:
            self.careful = False

    def _leave(self) -> None:
        if self._queued:
            self._queued = False
            if self._patience is not None:
                self._patience.cancel()
            self._turns.settled(self)
