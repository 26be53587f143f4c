"""A log that is put back to an older copy, or has lost its end, while everybody is down. What was made of it stays newer.

The checkpoints may stay, the database of the projections does. Afterwards whoever asked for something asks again, and the
inbox is read from its beginning: what is promised is that what the log holds now counts, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepfold.testing.faulty import Checkpoints

if TYPE_CHECKING:
    from world import World

SHARE = 0.25


class Restoring:
    """When a world's log is put back, if it is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.source("restore")
        self.happens = "restore" not in world.plan.off and self._random.random() < SHARE
        self._at_s = self._random.uniform(0.3, 0.9) * world.faults_s
        self._copied_at_s = self._random.random() * self._at_s
        self._loses_its_end = world.log.kafka and self._random.random() < 0.5
        self._checkpoints_stay = self._random.random() < 0.75
        self.projects = self.happens and self._random.random() < 0.6
        self._copy: list[tuple[int, Checkpoints]] = []

    def plan(self) -> None:
        """At the beginning of the world."""
        if self.happens:
            self._world.after(self._copied_at_s, self._take_copy)
            self._world.after(self._at_s, self._put_back)

    def _take_copy(self) -> None:
        self._copy = [(part.end, list(part.checkpoints)) for part in self._world.log.partitions]

    def _end(self, number: int) -> int:
        """Up to where a partition is left."""
        if not self._loses_its_end:
            return self._copy[number][0]
        part = self._world.log.partitions[number]
        lost = min(self._random.choice((0, 1, 2, 10, 100, 10_000)), len(part.records))
        return part.offsets[-lost] if lost else part.end

    def _put_back(self) -> None:
        world = self._world
        if not world.faulty:
            return
        log = world.log
        how = "has lost its end" if self._loses_its_end else "is put back to an older copy"
        beside = "the checkpoints stay" if self._checkpoints_stay else "the checkpoints, too"
        world.everybody_dies(f"as the log {how}", self._random.choice((0, 4, 30)))
        ends = [self._end(part.number) for part in log.partitions]
        log.put_back(ends, None if self._checkpoints_stay else [checkpoints for _, checkpoints in self._copy])
        for part in log.partitions:
            part.routed = 0
        world.happened("restore", f"the log {how}: it ends at {ends}; {beside}")
        world.tell(lambda eye: eye.put_back(ends, [_latest(part.checkpoints) for part in log.partitions]))
        for agenda in world.agendas:
            for intent in agenda:
                intent.done = False


def _latest(checkpoints: Checkpoints) -> dict[str, bytes]:
    """What the keys say now."""
    said = {key: value for _, key, value in checkpoints}
    return {key: value for key, value in said.items() if value is not None}
