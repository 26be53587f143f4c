"""What is kept small for the many runs that wait: their packed state, and their timers."""

from __future__ import annotations

import heapq
from random import Random

import pytest
from histories import RUN, Keeper, Ledger, begun, owned, reloaded, stored

from stepfold.core.packing import MAX_SAMPLES, Packer
from stepfold.core.runs import NO_NOTE, Note, Runs
from stepfold.core.snapshot import pack
from stepfold.core.state import RunState
from stepfold.drivers import MemoryDriver
from stepfold.testing.suite import checkpoints_of
from stepfold.worker.heap import SHARED_STEP_IDS, TimerHeap


def asleep(idle: bool = True) -> Ledger:
    """A run that sleeps, put away."""
    ledger = begun()
    ledger.accepts("step-completed", step_id="before", attempt=1, result={"n": 1})
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=ledger.now_ms)
    ledger.run.folded = 7
    runs = ledger.state.runs
    runs.note_stored(RUN, 3)
    runs.note_idle(RUN, idle)
    runs.put_away(RUN)
    return ledger


def value_of(runs: Runs) -> object:
    """Of a run, unpacked: what is kept of it."""
    run = at(runs)
    return pack(run), run.folded, runs.notes.get(RUN, NO_NOTE)


# Runs.


def at(runs: Runs) -> RunState:
    run = runs.get(RUN)
    assert run is not None
    return run


def test_a_run_that_is_put_away_is_still_there() -> None:
    runs = asleep().state.runs
    assert RUN in runs and runs.ids() == [RUN] and len(runs) == 1 and RUN not in runs.unpacked


def test_what_is_asked_for_comes_back_as_it_was() -> None:
    ledger = asleep()
    copy = ledger.state.runs.peek(RUN)
    assert RUN not in ledger.state.runs.unpacked
    run = ledger.run
    assert ledger.state.runs.unpacked == {RUN: run}
    assert ledger.state.runs.get(RUN) is run and ledger.state.runs.peek(RUN) is run
    assert (pack(copy), copy.folded) == (pack(run), run.folded) and run.folded == 7
    assert ledger.state.runs.notes == {RUN: Note(stored=3, idle=True, executed=1)}


@pytest.mark.parametrize("away", [True, False])
@pytest.mark.parametrize("idle", [True, False])
def test_whether_a_run_is_idle_is_known_wherever_it_is(idle: bool, away: bool) -> None:
    runs = asleep(idle).state.runs
    if not away:
        assert at(runs)
    assert runs.is_idle(RUN) is idle
    runs.note_stored(RUN, 99)
    assert runs.is_idle(RUN) is idle and (RUN in runs.unpacked) is not away
    assert (at(runs).folded, runs.stored(RUN), runs.is_idle(RUN)) == (7, 99, idle)


def test_how_much_the_code_of_a_busy_run_has_seen_is_kept() -> None:
    ledger = begun()
    runs = ledger.state.runs
    for executed in (-1, 0, 5):
        runs.note_executed(RUN, executed)
        value = value_of(runs)
        runs.put_away(RUN)
        runs.note_executed(RUN, 1_000)
        assert value_of(runs) == value and runs.executed(RUN) == executed


def test_a_run_that_has_decided_nothing_has_not_been_executed_for_all_we_know() -> None:
    runs = begun().state.runs
    runs.note_idle(RUN, True)
    runs.note_executed(RUN, 0)
    runs.put_away(RUN)
    assert at(runs)
    assert runs.executed(RUN) == -1


def test_who_is_not_there_is_not_found() -> None:
    runs = asleep().state.runs
    assert "other" not in runs and runs.get("other") is None
    assert runs.stored("other") == -1 and not runs.is_idle("other")
    for look in (runs.peek, runs.snapshot, runs.remove):
        with pytest.raises(KeyError):
            look("other")


@pytest.mark.parametrize("away", [True, False])
def test_a_snapshot_is_the_same_wherever_the_run_is(away: bool) -> None:
    ledger = asleep()
    expected = pack(ledger.state.runs.peek(RUN))
    if not away:
        assert ledger.run.id == RUN
    assert ledger.state.runs.snapshot(RUN) == expected
    assert (RUN in ledger.state.runs.unpacked) is not away


@pytest.mark.parametrize("away", [True, False])
def test_where_its_snapshot_is_stored_is_noted_wherever_the_run_is(away: bool) -> None:
    runs = asleep().state.runs
    if not away:
        assert at(runs)
    assert runs.stored(RUN) == 3
    runs.note_stored(RUN, 99)
    assert runs.stored(RUN) == 99 and (RUN in runs.unpacked) is not away
    assert at(runs).folded == 7 and runs.stored(RUN) == 99


@pytest.mark.parametrize("away", [True, False])
def test_a_run_is_taken_out_or_replaced_wherever_it_is(away: bool) -> None:
    runs = asleep().state.runs
    other = begun().run
    if not away:
        assert at(runs).id == RUN
    runs.add(other)
    assert at(runs) is other and len(runs) == 1 and runs.stored(RUN) == -1
    runs.note_stored(RUN, 99)
    if away:
        runs.put_away(RUN)
    runs.remove(RUN)
    assert not runs and RUN not in runs and not runs.notes


def test_nothing_is_noted_of_a_run_that_has_ended() -> None:
    ledger = asleep()
    runs, run = ledger.state.runs, ledger.run
    ledger.accepts("completed", result=1)
    runs.note_executed(RUN, 1)
    runs.note_idle(RUN, False)
    assert run.ended and not runs.notes


def test_a_record_finds_a_run_that_was_put_away() -> None:
    ledger = asleep()
    run = ledger.accepts("sleep-completed", step_id="nap")
    assert [entry.step_id for entry in run.journal] == ["before", "nap"]
    ledger.accepts("completed", result=1)
    assert not ledger.state.runs and ledger.state.open_mark == 0


def test_a_run_that_was_put_away_cannot_be_started_again() -> None:
    asleep().rejects("started", workflow="process-order", version="1", input=1)


def test_where_a_run_is_does_not_change_the_state() -> None:
    ledger = asleep()
    packed = ledger.state.pack()
    assert ledger.run.id == RUN
    assert ledger.state.pack() == packed


async def test_checkpoints_hold_what_was_put_away() -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    for name in "abc":
        ledger.start(name)
        ledger.accepts("sleep-scheduled", name, step_id="nap", wake_at=ledger.now_ms)
    keeper = Keeper(await stored(ledger, MemoryDriver(clock=lambda: ledger.now_ms)))
    keeper.fold(ledger.records)
    keeper.state.runs.note_idle(keeper.run("a").id, True)
    keeper.state.runs.put_away("a")
    await keeper.save()
    assert not keeper.state.runs.unpacked.get("a")
    second = Keeper(keeper.log)
    loaded = await second.load()
    assert list(loaded.runs.unpacked) == ["b", "c"] and loaded.pack() == ledger.state.pack()
    ledger.claim("worker-b")
    ledger.accepts("completed", "a", result=1)
    await stored(ledger, keeper.log)
    second.fold(ledger.records)
    await second.save()
    assert sorted(await checkpoints_of(keeper.log, 0)) == [
        "0/r/b",
        "0/r/c",
        f"{ledger.state.claim}/e/0",
        f"{ledger.state.claim}/m",
    ]
    assert (await reloaded(ledger, keeper.log)).pack() == ledger.state.pack()


def test_an_idle_run_is_small() -> None:
    ledger = owned()
    runs: Runs = ledger.state.runs
    for number in range(200):
        run_id = f"order-{number:08}-of-a-customer"
        run = ledger.start(run_id, input={"order": number, "customer": f"customer-{number}"})
        ledger.accepts("sleep-scheduled", run_id, step_id="until-the-end-of-the-month", wake_at=ledger.now_ms + number)
        plain = len(pack(run))
        runs.put_away(run_id)
        assert number == 0 or len(runs._packed[run_id]) * 3 < plain  # pyright: ignore[reportPrivateUsage]  # its purpose


# Packer.


def test_what_is_packed_is_unpacked_whatever_it_is() -> None:
    packer, random = Packer(), Random(7)
    values = [(f"kind-{n % 400}", f"key-{n}-ключ", random.randbytes(n) if n % 2 else b"[1,2,3]" * n) for n in range(800)]
    packed = [packer.pack(kind, key, value) for kind, key, value in values]
    assert len(packed) > MAX_SAMPLES
    assert [packer.unpack(key, each) for (_, key, _), each in zip(values, packed, strict=True)] == [each for *_, each in values]


# Timers.


def test_the_earliest_comes_first() -> None:
    random, timers, model = Random(42), TimerHeap(), list[int]()
    for _ in range(5_000):
        if model and random.random() < 0.4:
            due = heapq.heappop(model)
            assert timers.first == due
            assert timers.pop() == (due, f"run-{due}", f"step-{due}")
        else:
            due = random.randrange(1_000)
            heapq.heappush(model, due)
            timers.push(due, f"run-{due}", f"step-{due}")
        assert len(timers) == len(model)
    assert [timers.pop()[0] for _ in range(len(timers))] == sorted(model)


def test_timers_of_runs_that_are_gone_are_not_kept() -> None:
    random, there = Random(42), set[str]()
    timers = TimerHeap(there.__contains__)
    for number in range(20_000):
        run_id = f"run-{number}"
        there.add(run_id)
        timers.push(random.randrange(1_000), run_id, "approval")
        if len(there) > 100:
            there.remove(random.choice(sorted(there)) if number % 100 == 0 else run_id)
        assert len(timers) <= 2 * len(there) + 2
    left = [timers.pop() for _ in range(len(timers))]
    assert [at for at, *_ in left] == sorted(at for at, *_ in left)
    assert there <= {run_id for _, run_id, _ in left}


def test_the_only_timer_of_a_run_that_is_gone_is_not_kept() -> None:
    timers = TimerHeap(lambda run_id: False)
    timers.push(1, "run", "step")
    assert not timers


def test_step_ids_are_shared_but_not_for_ever() -> None:
    timers = TimerHeap()
    for number in range(SHARED_STEP_IDS + 2):
        timers.push(number, "run", f"step-{number}")
    timers.push(-2, "run", "-".join(("step", str(SHARED_STEP_IDS + 1))))
    timers.push(-1, "run", "-".join(("step", str(SHARED_STEP_IDS + 1))))
    assert timers.pop()[2] is timers.pop()[2]


def test_cleared_timers_are_gone() -> None:
    timers = TimerHeap()
    timers.push(1, "run", "step")
    timers.clear()
    assert not timers
    timers.push(2, "run", "step")
    assert timers.pop() == (2, "run", "step")
