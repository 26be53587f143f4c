"""Who takes part in a log on this machine: one locked file per member in one directory.

The operating system drops a lock when its process ends, however it ends, so a file without a lock is a dead member's and
whoever finds it removes it. No clock, no heartbeat, nothing to tune. POSIX only (`flock`), on a local file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

_held: set[int] = set()


def _close_inherited() -> None:
    """A forked child shares its parent's locks and would keep a killed parent's member alive."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


class Roll:
    """The members of one log. Raises OSError where the directory cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mine: dict[str, int] = {}
        self._members: dict[str, bytes] = {}

    def enter(self, name: str, member: str) -> None:
        """Take part under a unique name. The file says whose it is."""
        self._members[name] = _line(member)
        self._mine[name] = self._locked(name)

    def leave(self, name: str) -> None:
        descriptor = self._mine.pop(name, None)
        self._members.pop(name, None)
        if descriptor is not None:
            (self._directory / name).unlink(missing_ok=True)
            self._close(descriptor)
        with contextlib.suppress(OSError):
            self._directory.rmdir()  # if it was the last

    def close(self) -> None:
        for name in [*self._mine]:
            self.leave(name)

    def live(self) -> list[str]:
        """The names of all living members, sorted. Removes the dead."""
        self._directory.mkdir(exist_ok=True)
        found = {path.name for path in self._directory.iterdir() if path.is_file()}
        names = {name for name in found if name in self._mine or self._is_alive(name)}
        for name in self._mine.keys() - names:  # somebody cleaned up too well
            self._close(self._mine[name])
            self._mine[name] = self._locked(name)
        return sorted(names | self._mine.keys())

    def is_live(self, member: str) -> bool:
        """Whether a living member entered as this one."""
        line = _line(member)
        if line in self._members.values():
            return True
        for name in self.live():
            with contextlib.suppress(FileNotFoundError):
                if (self._directory / name).read_bytes() == line:
                    return True
        return False

    def _locked(self, name: str) -> int:
        path = self._directory / name
        while True:
            self._directory.mkdir(exist_ok=True)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            except FileNotFoundError:  # the last member of before has just removed the directory
                continue
            _held.add(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Between open and lock it was a file without a lock, which anybody may have removed.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.write(descriptor, self._members[name])
                    return descriptor
            self._close(descriptor)

    def _is_alive(self, name: str) -> bool:
        """A shared lock, so that two that look at the same time do not take each other for the member."""
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _close(self, descriptor: int) -> None:
        _held.discard(descriptor)
        os.close(descriptor)


def _line(member: str) -> bytes:
    return f"{member}\n".encode(errors="replace")


def assign(members: Sequence[str], partitions: int) -> dict[str, frozenset[int]]:
    """Share the partitions among the members: a pure function, the same for everyone who sees the same members.

    Even: two members' shares differ by one at most. Mostly sticky: each partition prefers the members in an order of its
    own, so who comes or goes moves little else.
    """
    shares: dict[str, set[int]] = {member: set() for member in members}
    if not members:
        return {}
    least, larger = divmod(partitions, len(members))
    for partition in range(partitions):
        by_preference = sorted(members, key=lambda member: zlib.crc32(f"{member}/{partition}".encode()))
        owner = next(member for member in by_preference if len(shares[member]) < least + (larger > 0))
        larger -= len(shares[owner]) == least
        shares[owner].add(partition)
    return {member: frozenset(share) for member, share in shares.items()}
