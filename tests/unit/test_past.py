"""A run at any of its events is what the fold of the records up to there gives, however and whenever it was read."""

from __future__ import annotations

from random import Random

import pytest
from histories import RUN, Ledger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.test_fold_properties import BEGINNING, CHOICES, RUNS, Author, Choice

from stepfold.client import past
from stepfold.client.past import Moment, Past
from stepfold.client.story import line_json
from stepfold.client.view import RunHistory, RunView
from stepfold.core.ended import REMEMBER_MS
from stepfold.core.fold import PartitionState
from stepfold.core.snapshot import pack
from stepfold.drivers import MemoryDriver
from stepfold.errors import RunNotFound
from stepfold.events import TYPES
from stepfold.log import CLAIM_KEY, Record

LOG = MemoryDriver()


def folded(run_id: str, records: list[Record]) -> RunHistory:
    alone = RunHistory(run_id, PartitionState())
    for record in records:
        alone.take(record)
    return alone


def check(moment: Moment, alone: RunHistory) -> None:
    """They say the same, whole and in parts."""
    assert moment.run is not None and alone.run is not None
    assert pack(moment.run) == pack(alone.run)
    assert moment.state.pack() == alone.state.pack()
    assert (moment.changed_at, moment.owner, moment.owners) == (alone.changed_at, alone.owner, alone.owners)
    assert list(moment.events) == alone.events
    assert moment.types() == sorted({event.type for event in alone.events})
    lines = [line_json(line) for line in alone.story()]
    assert [line_json(line) for line in moment.story()] == lines
    assert moment.operations == len(lines)
    for first in range(len(lines)):
        assert [line_json(line) for line in moment.story(first, 2)] == lines[first : first + 2]
    for step in {getattr(event, "step_id", "none") for event in alone.events}:
        wanted = [event for event in alone.events if getattr(event, "step_id", None) == step]
        assert list(moment.select(step=step)) == wanted
        kinds = [event.type for event in wanted][:1]
        assert list(moment.select(step=step, types=kinds)) == [event for event in wanted if event.type in kinds]
    for kind in TYPES:
        assert list(moment.select(types=[kind])) == [event for event in alone.events if event.type == kind]
    for at, event in enumerate(alone.events):
        assert event.offset is not None
        assert (moment.events.offset(at), moment.events.from_offset(event.offset)) == (event.offset, at)
        assert moment.events.has(event.offset)
    assert not moment.events.has(10**9)


def check_all(run_id: str, records: list[Record], seed: int) -> None:
    """Read in portions, look at any moment between them, and look again at the end at those that were kept."""
    random, read = Random(seed), Past(RunView(run_id, PartitionState()))
    held: list[tuple[Moment, RunHistory]] = []
    while len(read.records) < len(records):
        read.take(records[: len(read.records) + random.randint(1, 6)])
        known = list(read.records)
        for record in random.sample(known, min(3, len(known))):
            alone = folded(run_id, [one for one in known if one.offset <= record.offset])
            if alone.run is not None:
                held.append((read.at(record.offset, LOG), alone))
        now = folded(run_id, known)
        if now.run is not None:
            held.append((read.now(), now))
    for record in records:
        alone = folded(run_id, [one for one in records if one.offset <= record.offset])
        if alone.run is None:
            with pytest.raises(RunNotFound, match=f"run '{run_id}' had not begun at offset {record.offset}"):
                read.at(record.offset, LOG)
        else:
            held.append((read.at(record.offset, LOG), alone))
    for moment, alone in held:
        check(moment, alone)


@given(CHOICES, st.integers(0, 99), st.sampled_from([(1, 32), (2, 2), (3, 4), (500, 32)]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_is_what_the_records_up_to_there_say(choices: list[Choice], seed: int, places: tuple[int, int]) -> None:
    author = Author()
    author.write(BEGINNING + choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past, "EVERY", places[0])
        patch.setattr(past, "STATES_KEPT", places[1])
        for run_id in RUNS:
            check_all(run_id, [record for record in author.ledger.records if record.key in (run_id, CLAIM_KEY)], seed)


def test_of_an_id_that_was_used_again_each_run_can_be_seen() -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    ledger.accepts("completed", result="first")
    ledger.now_ms += REMEMBER_MS
    for number in range(3):
        ledger.write(ledger.event("signal-received", RUN, signal="go", data=number), key=RUN)
    ledger.start(input={"n": 2})
    ledger.accepts("wait-started", step_id="b", signal="go", timeout_at=None)
    check_all(RUN, ledger.records, 1)


def test_of_a_long_run_a_bounded_number_of_states_is_kept() -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    read = Past(RunView(RUN, PartitionState()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past, "EVERY", 2)
        patch.setattr(past, "STATES_KEPT", 8)
        for number in range(200):
            ledger.accepts("step-completed", step_id=f"s-{number}", attempt=1, result=number)
            read.take(ledger.records)
            assert len(read._kept) <= 8  # pyright: ignore[reportPrivateUsage]  # how many are kept
        for offset in (ledger.records[1].offset, ledger.records[77].offset, ledger.records[-1].offset):
            check(read.at(offset, LOG), folded(RUN, [one for one in ledger.records if one.offset <= offset]))
