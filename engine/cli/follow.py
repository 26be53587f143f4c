"""Reads one run for the command line: by the fold, from the claims and the run's own records, never through a worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

from ..core.fold import PartitionState, fold
from ..core.state import RunState
from ..errors import RunNotFound
from ..events import Event, parse
from ..log import CLAIM_KEY, Log, Record, partition_of

NEWS_S = 1.0


class News(NamedTuple):
    """One piece of news. `event`: None if only the owner changed; `run`: its state now; `owner`: the partition's owner or None.

    `past`: later news was already known when this was yielded.
    """

    event: Event | None
    run: RunState
    owner: str | None
    past: bool = False


class _Story:
    """Folds the records of one run, and the claims of its partition, into news."""

    def __init__(self, log: Log, run_id: str) -> None:
        self.run_id = run_id
        self.partition = partition_of(run_id, log.partitions)
        self.state = PartitionState(self.partition, log.partitions)
        self.run: RunState | None = None
        self.owners: dict[int, str | None] = {}  # offset of a claim -> its owner
        self.early: list[Event] = []  # signals that came before the run

    def take(self, records: Iterable[Record]) -> list[News]:
        found: list[News] = []
        for record in records:
            if record.key not in (self.run_id, CLAIM_KEY):
                continue
            change = fold(self.state, record)
            if change is None:
                continue
            if change.early is not None:
                self.early.append(parse(change.event, record.offset, record.timestamp))
                continue
            if change.run is None:
                self.owners[record.offset] = self.state.owner
            if (run := change.run) is not None:
                if run is not self.run:
                    self.run = run
                    found += [News(event, run, self.state.owner) for event in self.early]
                    self.early.clear()
                found.append(News(parse(change.event, record.offset, record.timestamp), run, self.state.owner))
            elif self.run is not None:
                found.append(News(None, self.run, self.state.owner))
        return [news for news in found if news.run is self.run]  # earlier runs under this id ended long ago


class Sight(NamedTuple):
    """A run's state now, its accepted events, its partition's owner (or None), and the owner of each claim by offset."""

    run: RunState
    events: list[Event]
    owner: str | None
    owners: dict[int, str | None]


async def look(log: Log, run_id: str) -> Sight:
    """Read the run as it is now. Raises RunNotFound and LogUnavailable."""
    story = _Story(log, run_id)
    news = story.take(await log.find(story.partition, (run_id, CLAIM_KEY)))
    if story.run is None:
        raise RunNotFound(run_id, log.name, kept=story.state.kept_for(run_id, log.now()))
    return Sight(story.run, [one.event for one in news if one.event is not None], story.state.owner, story.owners)


async def follow(log: Log, run_id: str, *, wait_for_start: bool = False) -> AsyncGenerator[News]:
    """Yield all news of the run from its start, as it comes; stops after the event that ends the run.

    Raises LogUnavailable, and RunNotFound unless `wait_for_start` is set.
    """
    story = _Story(log, run_id)
    _, end = await log.bounds(story.partition)
    past = story.take(await log.find(story.partition, (run_id, CLAIM_KEY)))
    if story.run is None and not wait_for_start:
        raise RunNotFound(run_id, log.name, kept=story.state.kept_for(run_id, log.now()))
    for news in past:
        yield news._replace(past=news is not past[-1])
    reader = log.reader(story.partition, end)
    try:
        while story.run is None or not story.run.ended:
            for news in story.take(await reader.read(1000, NEWS_S)):
                yield news
    finally:
        await reader.close()
