"""The states of the runs of one partition, unpacked or put away (packed), with the notes of their owner. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .packing import Packer
from .snapshot import pack, unpack
from .state import RunState

_IDLE = struct.Struct("<?qq")  # whether idle, folded, stored
_BUSY = struct.Struct("<?qqi")  # and executed


class Note(NamedTuple):
    """The owner's note about a run: no record says it, and the fold does not read it.

    `idle` and `executed` are out of date while the run's code is in memory.
    """

    stored: int = -1
    """The claim under which a snapshot of the run is stored."""
    idle: bool = False
    """The code has run to the end of the journal and waits only for open operations."""
    executed: int = -1
    """The number of journal entries that the code is known to have seen."""


NO_NOTE = Note()


class Runs:
    """Runs by id. A run whose code is not in memory may be put away: packed, it takes some 250 bytes, overhead included.

    This is not a mapping, because reading may change it: `get` unpacks a run for good; `peek` and `snapshot` read without
    unpacking. The owner's note of a run is here because it is put away with the run, where it takes 9 bytes.
    """

    __slots__ = ("_packed", "_packer", "notes", "unpacked")

    def __init__(self) -> None:
        self.unpacked: dict[str, RunState] = {}
        self.notes: dict[str, Note] = {}  # of unpacked runs; NO_NOTE for those that are missing
        self._packed: dict[str, bytes] = {}
        self._packer: Packer | None = None

    def __len__(self) -> int:
        return len(self.unpacked) + len(self._packed)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.unpacked or run_id in self._packed

    def ids(self) -> list[str]:
        """The ids of all runs, as a new list."""
        return [*self.unpacked, *self._packed]

    def get(self, run_id: str) -> RunState | None:
        """The run itself, unpacked for good; None if there is no such run."""
        run = self.unpacked.get(run_id)
        if run is None and run_id in self._packed:
            run = self.unpacked[run_id] = self.peek(run_id)
            self.notes[run_id] = _note(run, self._packed.pop(run_id))
        return run

    def add(self, run: RunState) -> RunState:
        """Add a run; it replaces one of the same id."""
        self._packed.pop(run.id, None)
        if self.notes:
            self.notes.pop(run.id, None)
        self.unpacked[run.id] = run
        return run

    def remove(self, run_id: str) -> None:
        """Remove a run. Raises KeyError."""
        if self._packed.pop(run_id, None) is None:
            del self.unpacked[run_id]
            self.notes.pop(run_id, None)

    def put_away(self, run_id: str) -> None:
        """Pack an unpacked run. No caller may still hold its state. Raises KeyError."""
        run = self.unpacked.pop(run_id)
        stored, idle, executed = self.notes.pop(run_id, NO_NOTE)
        self.put(run_id, run.workflow, pack(run), run.folded, stored, None if idle else executed)

    def put(self, run_id: str, workflow: str, snapshot: bytes, folded: int, stored: int, executed: int | None = None) -> None:
        """Add a run as its snapshot: an idle run, or one whose code has seen `executed` entries of its journal."""
        if self._packer is None:
            self._packer = Packer()
        head = _IDLE.pack(True, folded, stored) if executed is None else _BUSY.pack(False, folded, stored, executed)
        self._packed[run_id] = head + self._packer.pack(workflow, run_id, snapshot)

    def peek(self, run_id: str) -> RunState:
        """The run itself if it is unpacked, else an unpacked copy; the run stays packed. Raises KeyError."""
        run = self.unpacked.get(run_id)
        if run is not None:
            return run
        packed = self._packed[run_id]
        run = unpack(self._snapshot(run_id, packed))
        run.id = run_id  # share one string between all holders
        _, run.folded, _ = _IDLE.unpack_from(packed)
        return run

    def snapshot(self, run_id: str) -> bytes:
        """The bytes that `snapshot.pack` returns for the run. Raises KeyError."""
        packed = self._packed.get(run_id)
        return pack(self.unpacked[run_id]) if packed is None else self._snapshot(run_id, packed)

    def stored(self, run_id: str) -> int:
        """The note `stored`, wherever the run is; -1 if there is no such run."""
        packed = self._packed.get(run_id)
        return self.notes.get(run_id, NO_NOTE).stored if packed is None else _IDLE.unpack_from(packed)[2]

    def note_stored(self, run_id: str, claim: int) -> None:
        """Note the claim under which a snapshot of the run is stored, wherever the run is."""
        packed = self._packed.get(run_id)
        if packed is None:
            self.notes[run_id] = self.notes.get(run_id, NO_NOTE)._replace(stored=claim)
        else:
            idle, folded, _ = _IDLE.unpack_from(packed)
            self._packed[run_id] = _IDLE.pack(idle, folded, claim) + packed[_IDLE.size :]

    def is_idle(self, run_id: str) -> bool:
        """The note `idle`, wherever the run is; False if there is no such run."""
        packed = self._packed.get(run_id)
        return self.notes.get(run_id, NO_NOTE).idle if packed is None else bool(packed[0])

    def note_idle(self, run_id: str, idle: bool) -> None:
        """Note whether an unpacked run is idle."""
        note = self.notes.get(run_id, NO_NOTE)
        if note.idle is not idle:
            self.notes[run_id] = note._replace(idle=idle)

    def executed(self, run_id: str) -> int:
        """The note `executed` of an unpacked run."""
        return self.notes.get(run_id, NO_NOTE).executed

    def note_executed(self, run_id: str, executed: int) -> None:
        """Note how many entries of its journal the code of a run has seen. A run that is put away keeps its note."""
        if run_id in self.unpacked:
            self.notes[run_id] = self.notes.get(run_id, NO_NOTE)._replace(executed=executed)

    def _snapshot(self, run_id: str, packed: bytes) -> bytes:
        assert self._packer is not None
        head = _IDLE if packed[0] else _BUSY
        return self._packer.unpack(run_id, packed[head.size :])


def _note(run: RunState, packed: bytes) -> Note:
    """The note of a run that was put away: the code of an idle run has seen all."""
    if packed[0]:
        idle, _, stored = _IDLE.unpack_from(packed)
        return Note(stored, idle, len(run.journal) if run.decided else -1)
    idle, _, stored, executed = _BUSY.unpack_from(packed)
    return Note(stored, idle, executed)
