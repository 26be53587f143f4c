"""The runs of one partition: the state of each, at hand or put away. Pure."""

from __future__ import annotations

import struct

from .packing import Packer
from .snapshot import pack, unpack
from .state import RunState

_IDLE = struct.Struct("<?qq")  # whether idle, folded, stored
_BUSY = struct.Struct("<?qqi")  # and executed


class Runs:
    """Runs by id. Those whose code is not in memory may be put away, packed: some 250 bytes each with all that there is to it.

    No mapping: to look at a run may unpack it. `get` does, and it stays so; `peek` and `snapshot` do not.
    """

    __slots__ = ("_packed", "_packer", "at_hand")

    def __init__(self) -> None:
        self.at_hand: dict[str, RunState] = {}
        self._packed: dict[str, bytes] = {}
        self._packer: Packer | None = None

    def __len__(self) -> int:
        return len(self.at_hand) + len(self._packed)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.at_hand or run_id in self._packed

    def ids(self) -> list[str]:
        """Of all of them, as they are now."""
        return [*self.at_hand, *self._packed]

    def get(self, run_id: str) -> RunState | None:
        """The run itself, unpacked from now on; None where there is none."""
        run = self.at_hand.get(run_id)
        if run is None and run_id in self._packed:
            run = self.at_hand[run_id] = self.peek(run_id)
            del self._packed[run_id]
        return run

    def add(self, run: RunState) -> RunState:
        """In place of one of the same id."""
        self._packed.pop(run.id, None)
        self.at_hand[run.id] = run
        return run

    def remove(self, run_id: str) -> None:
        """Raises KeyError."""
        if self._packed.pop(run_id, None) is None:
            del self.at_hand[run_id]

    def put_away(self, run_id: str) -> None:
        """Pack a run whose state nobody holds."""
        run = self.at_hand.pop(run_id)
        self.put(run_id, run.workflow, pack(run), run.folded, run.stored, None if run.idle else run.executed)

    def put(self, run_id: str, workflow: str, snapshot: bytes, folded: int, stored: int, executed: int | None = None) -> None:
        """Take a run as its snapshot: an idle one, or one whose code has seen as much as `executed` says."""
        if self._packer is None:
            self._packer = Packer()
        head = _IDLE.pack(True, folded, stored) if executed is None else _BUSY.pack(False, folded, stored, executed)
        self._packed[run_id] = head + self._packer.pack(workflow, run_id, snapshot)

    def peek(self, run_id: str) -> RunState:
        """The run; one that is packed stays so, and what is given is a copy. Raises KeyError."""
        run = self.at_hand.get(run_id)
        if run is not None:
            return run
        packed = self._packed[run_id]
        run = unpack(self._snapshot(run_id, packed))
        run.id = run_id  # one string, whoever keeps it
        run.idle, run.folded, run.stored = _IDLE.unpack_from(packed)
        if run.idle:
            run.executed = len(run.journal) if run.decided else -1
        else:
            *_, run.executed = _BUSY.unpack_from(packed)
        return run

    def snapshot(self, run_id: str) -> bytes:
        """What `snapshot.pack` gives. Raises KeyError."""
        packed = self._packed.get(run_id)
        return pack(self.at_hand[run_id]) if packed is None else self._snapshot(run_id, packed)

    def mark_stored(self, run_id: str, claim: int) -> None:
        """Note under which claim its snapshot is stored. Raises KeyError."""
        packed = self._packed.get(run_id)
        if packed is None:
            self.at_hand[run_id].stored = claim
        else:
            idle, folded, _ = _IDLE.unpack_from(packed)
            self._packed[run_id] = _IDLE.pack(idle, folded, claim) + packed[_IDLE.size :]

    def is_idle(self, run_id: str) -> bool:
        """What is known of a run's code without having it in memory. Raises KeyError."""
        packed = self._packed.get(run_id)
        return self.at_hand[run_id].idle if packed is None else bool(packed[0])

    def _snapshot(self, run_id: str, packed: bytes) -> bytes:
        assert self._packer is not None
        head = _IDLE if packed[0] else _BUSY
        return self._packer.unpack(run_id, packed[head.size :])
