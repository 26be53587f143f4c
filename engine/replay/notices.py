"""Counts the things that the code of a run tells and never waits for, so that a replay tells none of them again. Pure."""

from __future__ import annotations

from ..core.state import RunState
from ..operations.told import Notice
from .loop import DeterministicLoop


class Notices:
    """Counts what the code of a run tells, and keeps what the log does not hold yet until the owner takes it."""

    def __init__(self, run: RunState, loop: DeterministicLoop) -> None:
        self._run = run
        self._loop = loop
        self._numbers: dict[str, dict[str, int]] = {}  # kind -> name -> how many the code has told
        self.untaken: list[tuple[Notice, int]] = []
        self._until_pause = loop.host.max_told

    def add(self, notice: Notice) -> None:
        """The code tells something. Raises what `notice.too_many` returns."""
        numbers = self._numbers.setdefault(notice.kind, {})
        number = numbers.get(notice.name, 0) + 1
        if number == 1 and len(numbers) >= notice.max_names:
            raise notice.too_many()
        numbers[notice.name] = number
        if number > self._in_log(notice.kind, notice.name):
            self.untaken.append((notice, number))
        if self._until_pause is not None:
            self._until_pause -= 1
            if self._until_pause <= 0:
                self._until_pause = self._loop.host.max_told
                self._loop.pause()

    def take(self) -> list[tuple[Notice, int]]:
        """The notices since the last call that the log did not hold then, each with its number."""
        taken = self.untaken
        if taken:
            self.untaken = []
        return taken

    @property
    def missing(self) -> bool:
        """Whether the log lacks something that the code has told."""
        return any(
            number > self._in_log(kind, name) for kind, numbers in self._numbers.items() for name, number in numbers.items()
        )

    def count_on(self) -> None:
        """Count on from what the log holds: code that was changed may have told less by now."""
        for kind, names in self._run.kept.items():
            numbers = self._numbers.setdefault(kind, {})
            for name in names:
                numbers[name] = max(numbers.get(name, 0), self._in_log(kind, name))

    def _in_log(self, kind: str, name: str) -> int:
        """How many records of a name the log holds."""
        last = self._run.kept.get(kind, {}).get(name)
        return 0 if last is None else last[0]
