"""Runs whose code may kill its worker.

The attempts of a step show whether it kills its worker. The code of a workflow leaves no such trace. So after several deaths
in a row the owner is careful. Before it runs the code of a run that it recovers, it announces the run (`code-suspected`). It
first announces runs above suspicion, in groups. Then it announces, one by one, runs that were announced before and have decided
nothing since, the least suspected first. A run whose code survives decides something, or the owner clears it (`code-cleared`).
The owner announces the next ones only when that is in the log. So harmless runs go on first, and a run that is announced
again and again is the killer.

This module only keeps the lists: the owner appends announcements and runs the code. The suspects of all partitions of a
worker, and its isolated steps, take turns: otherwise one would be blamed for a death that another caused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import nsmallest
from itertools import islice
from typing import Protocol

from ..core.state import RunState

CAREFUL_AFTER = 2
"""An owner is careful after this many deaths of owners in a row."""
KILLS_LIMIT = 8
"""A run is quarantined when its code was announced this often and its worker died each time. A kill from outside looks the same.
"""
GROUP = 200
"""The number of runs above suspicion that are announced together."""
PATIENCE_S = 30.0
"""An isolated step may take hours: after this time the suspects take their turn anyway."""


class TurnsPort(Protocol):
    """Gives the turns: at most one announced thing at a time may end the process."""

    def wait(self, one: Suspects) -> None:
        """Call `announce` of `one` when its turn has come."""
        ...

    def settled(self, one: Suspects) -> None:
        """End the turn of `one`, or its waiting for one."""
        ...


class Suspects:
    """The suspects of one partition. `announce_code` announces a run in the log; it returns False if the run's code shall not
    run.
    """

    def __init__(self, turns: TurnsPort, announce_code: Callable[[str], bool]) -> None:
        self.careful = False
        self._turns = turns
        self._announce_code = announce_code
        self._open = False  # recovery has seen all runs, so all suspects are known
        self._queued = False
        self._patience: asyncio.TimerHandle | None = None
        self._clean: dict[str, int] = {}  # runs that wait for their turn -> how often they were announced
        self._suspected: dict[str, int] = {}
        # announced and not cleared -> whether the announcement is in the log, so that the code may run
        self._trying: dict[str, bool] = {}

    @property
    def waiting(self) -> bool:
        """Whether the code of any run waits for its turn."""
        return bool(self._clean or self._suspected or self._trying)

    def begin(self, deaths: int) -> None:
        """Begin an ownership after this many deaths in a row."""
        self.careful = deaths >= CAREFUL_AFTER

    def open(self) -> None:
        """Begin to give turns: recovery has seen all runs."""
        self._open = True
        self._queue()

    def end(self) -> None:
        """End the ownership."""
        self.careful = self._open = False
        for kept in (self._clean, self._suspected, self._trying):
            kept.clear()
        self._leave()

    def holds(self, run: RunState) -> bool:
        """Whether the code of a run must wait for its turn. Queues the run if so."""
        if not self.careful:
            return False
        its_turn = self._trying.get(run.id)
        if its_turn is None:
            queue, other = (self._suspected, self._clean) if run.suspected else (self._clean, self._suspected)
            other.pop(run.id, None)  # a run in both queues would have two turns
            queue[run.id] = run.suspected
            self._queue()
        return not its_turn

    def announce(self) -> None:
        """Announce the next runs: their turn has come."""
        if self._trying:
            return  # patience had run out: this turn was taken before
        chosen = self._clean or self._suspected
        group = list(islice(self._clean, GROUP)) or nsmallest(1, chosen, key=chosen.__getitem__)
        for run_id in group:
            del chosen[run_id]
        self._trying = {run_id: False for run_id in group if self._announce_code(run_id)}
        self._look_on()

    def turn(self, run_id: str) -> bool:
        """The announcement of a run is in the log. Returns True the first time, if the run has the turn."""
        if self._trying.get(run_id) is not False:
            return False
        self._trying[run_id] = True
        return True

    def seen(self, run: RunState) -> None:
        """A record of a run was accepted. A record before the run's announcement says nothing about its code."""
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
            self._turns.wait(self)
        else:
            self.careful = False

    def _leave(self) -> None:
        if self._queued:
            self._queued = False
            if self._patience is not None:
                self._patience.cancel()
            self._turns.settled(self)
