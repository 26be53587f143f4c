"""The members of a log on one machine: one locked file per member in one directory.

The operating system drops a lock when its process ends, however it ends. So a file without a lock belongs to a dead member, and
the process that finds it removes it. This needs no clock, no heartbeat and no settings. POSIX only (`flock`), on a local file
system.

The first line of a file holds the member's name, a second line says that the member has retired. Retiring does not rename the
file: a process that looks at the same time would find neither name, and take the member for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

_RETIRED = b"retired\n"

_held: set[int] = set()


def _close_inherited() -> None:
    """Close the locks that a forked child inherits: it would keep the member of a killed parent alive."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


class Roll:
    """The members of one log. Methods raise OSError if the directory cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mine: dict[str, int] = {}
        self._says: dict[str, bytes] = {}

    def enter(self, name: str, member: str) -> None:
        """Take part under a unique name."""
        self._says[name] = _line(member)
        self._mine[name] = self._locked(name)

    def retire(self, name: str) -> None:
        """Take part without a share of the partitions, until the member leaves."""
        if name in self._mine and not _has_retired(self._says[name]):
            os.write(self._mine[name], _RETIRED)  # one write, so that no reader sees half a line
            self._says[name] += _RETIRED

    def leave(self, name: str) -> None:
        descriptor = self._mine.pop(name, None)
        self._says.pop(name, None)
        if descriptor is not None:
            with contextlib.suppress(OSError):  # if the file stays, it has no lock and counts as a dead member's
                (self._directory / name).unlink()
            self._close(descriptor)
        with contextlib.suppress(OSError):
            self._directory.rmdir()  # succeeds if no other member is left

    def close(self) -> None:
        for name in [*self._mine]:
            self.leave(name)

    def sharing(self) -> list[str]:
        """The names of all living members that have not retired, sorted."""
        return sorted(name for name, says in self._living().items() if not _has_retired(says))

    def is_live(self, member: str) -> bool:
        """Whether a living member entered as `member`."""
        line = _line(member)

        def entered(members: Mapping[str, bytes]) -> bool:
            return any(says.startswith(line) for says in members.values())

        return entered(self._says) or entered(self._living())

    def _living(self) -> dict[str, bytes]:
        """The names of all living members, with the contents of their files. Removes the files of dead ones."""
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # the last member has removed the directory
            found = {path.name for path in self._directory.iterdir() if path.is_file()}
        for name in self._mine.keys() - found:  # another process removed our file: make a new one
            before, self._mine[name] = self._mine[name], self._locked(name)
            self._close(before)
        living = {name: self._says[name] for name in self._mine}
        for name in found - self._mine.keys():
            says = self._read(name)
            if says is not None:
                living[name] = says
        return living

    def _locked(self, name: str) -> int:
        path = self._directory / name
        while True:
            with contextlib.suppress(FileExistsError):  # not `exist_ok`: that checks again, and the directory may be gone by then
                self._directory.mkdir()
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            except FileNotFoundError:
                if self._directory.is_symlink():  # a broken link
                    raise
                continue  # the last member has just removed the directory
            _held.add(descriptor)
            with contextlib.ExitStack() as unless_locked:
                unless_locked.callback(self._close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Between open and lock the file had no lock, so any process may have removed it.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        os.write(descriptor, self._says[name])
                        unless_locked.pop_all()
                        return descriptor

    def _read(self, name: str) -> bytes | None:
        """The contents of a living member's file; None if the member is dead, and its file is then removed.

        Takes a shared lock, so that two processes that look at the same time do not take each other for the member.
        """
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return os.read(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        return None

    def _close(self, descriptor: int) -> None:
        _held.discard(descriptor)
        os.close(descriptor)


def _line(member: str) -> bytes:
    return f"{member}\n".encode(errors="replace")


def _has_retired(says: bytes) -> bool:
    return says.endswith(b"\n" + _RETIRED)


def assign(members: Sequence[str], partitions: int) -> dict[str, frozenset[int]]:
    """Share the partitions among the members. A pure function: all processes that see the same members compute the same shares.

    Even: two shares differ by one at most. Mostly sticky: each partition has its own order of preference, so a member that comes
    or goes moves few other partitions.
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
