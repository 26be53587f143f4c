"""One run, read from its records: the last run of its id, its events, and the signals that came before it."""

from __future__ import annotations

import pytest
from histories import RUN, Ledger, stored

from stepfold import RunNotFound
from stepfold.client.tail import News, follow, read_run
from stepfold.client.view import RunHistory
from stepfold.core.fold import PartitionState
from stepfold.drivers import MemoryDriver
from stepfold.log import Log

MEMORY_MS = 1_000


def told(ledger: Ledger) -> RunHistory:
    history = RunHistory(RUN, PartitionState())
    for record in ledger.records:
        history.take(record)
    return history


def types(history: RunHistory) -> list[str]:
    return [event.type for event in history.events]


def early(ledger: Ledger, data: int) -> None:
    assert ledger.write(ledger.event("signal-received", RUN, signal="go", data=data), key=RUN) is not None


def test_a_run_is_told_by_its_accepted_records() -> None:
    ledger = Ledger(stride=1)
    assert told(ledger).run is None and told(ledger).story() == []
    ledger.claim("a")
    ledger.start()
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=0)
    ledger.rejects("sleep-scheduled", step_id="nap", wake_at=0)
    ledger.claim("b")
    ledger.accepts("sleep-completed", step_id="nap")
    history = told(ledger)
    assert types(history) == ["started", "sleep-scheduled", "sleep-completed"]
    assert history.owner == "b" and list(history.owners.values()) == ["a", "b"]
    [nap] = history.story()
    assert (nap.became, nap.worker) == ("done", "b")


def test_the_last_run_of_an_id_counts_with_the_signals_that_came_before_it() -> None:
    ledger = Ledger(stride=1)
    ledger.claim(memory_ms=MEMORY_MS)
    early(ledger, 1)
    ledger.start()
    ledger.accepts("completed", result=1)
    ledger.now_ms += MEMORY_MS
    early(ledger, 2)
    assert types(told(ledger)) == ["signal-received", "started", "completed"]
    ledger.start()
    assert types(told(ledger)) == ["signal-received", "started"]
    assert getattr(told(ledger).events[0], "data") == 2  # noqa: B009  # only signals have data


def test_a_signal_that_was_forgotten_before_its_run_began_did_not_happen_to_it() -> None:
    ledger = Ledger(stride=1)
    ledger.claim(memory_ms=MEMORY_MS)
    early(ledger, 1)
    ledger.now_ms += MEMORY_MS - 1
    early(ledger, 2)
    ledger.now_ms += 1
    ledger.start()
    history = told(ledger)
    assert history.run is not None and len(history.run.signals["go"]) == 1
    assert types(history) == ["signal-received", "started"]


async def heard(log: Log, run_id: str = RUN) -> list[News]:
    return [news async for news in follow(log, run_id)]


async def test_who_follows_a_run_hears_of_its_events_and_owners() -> None:
    ledger = Ledger(stride=1)
    ledger.claim("a", memory_ms=0)
    ledger.start()
    ledger.accepts("completed", result=1)
    ledger.start("other")
    ledger.start()
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=0)
    ledger.claim("b")
    ledger.accepts("completed", result=2)
    log = await stored(ledger, MemoryDriver())
    news = await heard(log)
    kinds = [None if one.event is None else one.event.type for one in news]
    assert kinds == ["started", "sleep-scheduled", None, "completed"], "nothing of the first run"
    assert [one.owner for one in news] == ["a", "a", "b", "b"]
    assert [one.past for one in news] == [True] * 3 + [False]
    assert news[0].history.events == (await read_run(log, RUN)).events
    with pytest.raises(RunNotFound):
        await heard(log, "no such run")
