"""Requests from outside: how long a repeat is known, signals that come before their run, places of an inbox, and what is refused.

The judge, which knows the published rule alone, sees the same records each time.
"""

from __future__ import annotations

from typing import Any

import pytest
from histories import RUN, Keeper, Ledger, begun, facts, owned, reloaded, stored
from judge import Judge
from judged import differences

from stepfold import Client, RunNotFound
from stepfold.client.requests import signal_received
from stepfold.client.tail import read_run
from stepfold.core.ended import REMEMBER_MS
from stepfold.core.fold import PartitionState, fold
from stepfold.core.snapshot import pack, unpack
from stepfold.core.state import EXPECTED, RunState
from stepfold.drivers import MemoryDriver
from stepfold.events import FORMAT
from stepfold.log import CLAIM_KEY, partition_of

MEMORY_MS = 1_000


@pytest.fixture(autouse=True)
def _judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a ledger folds, the judge comes to the same."""
    judges: dict[int, Judge] = {}
    write = Ledger.write

    def judged(self: Ledger, event: Any, *, key: str) -> Any:
        judge = judges.setdefault(id(self), Judge(1))
        change = write(self, event, key=key)
        verdict = judge.judge(0, *self.records[-1])
        assert (verdict.void is None) == (change is not None), verdict
        assert differences(judge.partitions[0], self.state) == ""
        return change

    monkeypatch.setattr(Ledger, "write", judged)


def short() -> Ledger:
    """A partition that remembers for a second."""
    ledger = Ledger(stride=1)
    assert ledger.claim(memory_ms=MEMORY_MS) is not None
    return ledger


def place(offset: int, inbox: str = "inbox-1", partition: int = 0) -> dict[str, Any]:
    return {"from": {"inbox": inbox, "partition": partition, "offset": offset}}


def expected(ledger: Ledger, run_id: str = RUN) -> RunState:
    run = ledger.state.runs.peek(run_id)
    assert run.phase == EXPECTED
    return run


def early(ledger: Ledger, data: Any = 1, run_id: str = RUN, **fields: Any) -> None:
    change = ledger.write(ledger.event("signal-received", run_id, **{"signal": "go", "data": data, **fields}), key=run_id)
    assert change is not None and change.run is None and change.early is not None


def refused(ledger: Ledger) -> list[str]:
    return [reason for _, reason in ledger.state.refused]


# For how long a repeat is known.


def test_a_request_is_remembered_for_as_long_as_its_partition_remembers() -> None:
    ledger = short()
    ledger.start()
    ledger.accepts("signal-received", request="a", signal="go", data=1)
    ledger.now_ms += MEMORY_MS - 1
    ledger.rejects("signal-received", request="a", signal="go", data=1)
    assert list(ledger.run.requests) == ["a"]
    ledger.now_ms += 1
    ledger.accepts("signal-received", request="a", signal="go", data=2)
    assert [data for data, _ in ledger.run.signals["go"]] == [1, 2]


def test_whatever_moves_the_runs_time_on_forgets() -> None:
    """The state of a run that talks a lot does not grow with its life."""
    ledger = short()
    ledger.start()
    for number in range(50):
        ledger.accepts("signal-received", signal="go", data=number)
        ledger.now_ms += MEMORY_MS // 10
    assert len(ledger.run.requests) == 10
    ledger.now_ms += MEMORY_MS
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    assert ledger.run.requests == {}


def test_forgetting_looks_at_no_more_than_it_drops() -> None:
    """Each request and each decision of a run comes by here: n requests must not cost n squared."""

    class Watched(dict[str, int]):
        looked_at = 0

        def items(self) -> Any:
            for pair in super().items():
                Watched.looked_at += 1
                yield pair

    run = RunState(RUN, "w", None, None, 0, 0)
    run.requests = Watched((f"request {at}", at) for at in range(1_000))
    run.now = 1_010
    run.forget(1_000)
    assert next(iter(run.requests)) == "request 11"
    assert Watched.looked_at == 12
    run.forget(1_000)
    assert len(run.requests) == 989
    assert Watched.looked_at == 13


def test_what_is_rejected_forgets_nothing() -> None:
    ledger = short()
    ledger.start()
    ledger.accepts("signal-received", request="a", signal="go", data=1)
    ledger.now_ms += MEMORY_MS
    ledger.rejects("step-completed", step_id="a", attempt=7, result=1)
    ledger.now_ms -= 1
    ledger.rejects("signal-received", request="a", signal="go", data=1)


@pytest.mark.parametrize("kind", ["signal-received", "cancel-requested"])
def test_the_request_of_the_start_is_known_for_the_life_of_the_run(kind: str) -> None:
    ledger = short()
    run = ledger.start(request="the start")
    ledger.now_ms += 10 * MEMORY_MS
    ledger.rejects(kind, request="the start", signal="go", data=1)
    assert run.request == "the start"


def test_under_a_claim_of_format_1_nothing_is_forgotten() -> None:
    ledger = Ledger(stride=1)
    ledger.claim(v=1)
    ledger.start()
    ledger.accepts("signal-received", request="a", signal="go", data=1)
    ledger.now_ms += 2 * REMEMBER_MS
    ledger.accepts("step-completed", step_id="a", attempt=1, result=1)
    ledger.rejects("signal-received", request="a", signal="go", data=1)
    ledger.accepts("signal-received", request="b", signal="go", data=1)
    assert list(ledger.run.requests) == ["a", "b"]


# Signals before their start.


def test_a_signal_that_comes_first_is_there_when_its_run_begins() -> None:
    ledger = owned()
    early(ledger, 1)
    ledger.now_ms += 5
    early(ledger, 2)
    assert RUN in ledger.state.runs and expected(ledger).input[0][1]["data"] == 1
    run = ledger.start()
    assert run.phase == "open" and run.input == {"n": 1}
    assert [data for data, _ in run.signals["go"]] == [1, 2]
    run = ledger.accepts("wait-started", step_id="wait", signal="go", timeout_at=None)
    assert run.journal[-1].value[1] == 1


def test_it_counts_once() -> None:
    ledger = owned()
    early(ledger, request="a")
    ledger.rejects("signal-received", request="a", signal="go", data=1)
    ledger.start()
    ledger.rejects("signal-received", request="a", signal="go", data=1)


def test_who_asks_for_a_run_to_come_is_told_of_its_signals() -> None:
    ledger = short()
    assert ledger.state.kept_for(RUN, ledger.now_ms) == 0
    early(ledger, 1)
    first_ms = ledger.now_ms
    ledger.now_ms += 5
    early(ledger, 2)
    assert ledger.state.kept_for(RUN, ledger.now_ms) == 2
    assert ledger.state.kept_for(RUN, first_ms + MEMORY_MS) == 1, "the first is past remembering"
    assert ledger.state.kept_until(ledger.state.runs.peek(RUN)) > ledger.now_ms + MEMORY_MS, "the second, and a margin"
    error = RunNotFound(RUN, "a log", kept=2)
    assert "signals for it have arrived (2)" in str(error)
    assert error.kept == 2
    ledger.start()
    assert ledger.state.kept_for(RUN, ledger.now_ms) == 0


async def test_every_reader_of_a_run_to_come_tells_of_its_signals() -> None:
    async with Client("memory://") as client:
        await client.log.append(
            partition_of(RUN, client.log.partitions), [signal_received(RUN, "go", b"1", request="early", at=1)]
        )
        run = client.run(RUN)
        for ask in (run.status, run.status, run.history, run.result):  # the second time from what is known
            with pytest.raises(RunNotFound) as caught:
                await ask()
            assert caught.value.kept == 1
        with pytest.raises(RunNotFound) as caught:
            (await read_run(client.log, RUN)).found(client.log)
        assert caught.value.kept == 1


def test_nothing_but_signals_can_come_before_a_run() -> None:
    ledger = owned()
    early(ledger)
    for kind in ("cancel-requested", "step-completed", "wait-started", "completed", "workflow-unknown", "quarantined"):
        ledger.rejects(kind, step_id="a", attempt=1, result=1, signal="go", timeout_at=None, error={"type": "T", "message": ""})
    expected(ledger)


def test_it_is_kept_for_the_memory_and_told_when_it_was_in_vain() -> None:
    ledger = short()
    early(ledger, "too early")
    ledger.now_ms += MEMORY_MS - 1
    early(ledger, "early enough")
    ledger.now_ms += 1
    run = ledger.start()
    assert [data for data, _ in run.signals["go"]] == ["early enough"]
    assert len(refused(ledger)) == 1 and "while the signal was kept" in refused(ledger)[0]


def test_one_that_is_past_remembering_makes_way_for_the_next() -> None:
    ledger = short()
    early(ledger, "a")
    ledger.now_ms += MEMORY_MS
    early(ledger, "b")
    assert [event["data"] for _, event in expected(ledger).input] == ["b"] and len(refused(ledger)) == 1
    ledger.now_ms += MEMORY_MS // 2
    early(ledger, "c")
    ledger.now_ms += MEMORY_MS // 2
    early(ledger, "d")
    assert [event["data"] for _, event in expected(ledger).input] == ["c", "d"]


def test_a_run_that_has_ended_takes_none_until_it_is_forgotten() -> None:
    ledger = short()
    ledger.start()
    ledger.accepts("completed", result=1)
    ledger.now_ms += MEMORY_MS - 1
    ledger.rejects("signal-received", signal="go", data=1)
    assert refused(ledger) == [f"run {RUN!r} has ended"]
    ledger.now_ms += 1
    early(ledger, "for the next")
    assert ledger.start().signals["go"][0][0] == "for the next"


def test_a_start_that_the_logs_time_puts_before_its_signal_is_not_older_than_it() -> None:
    ledger = owned()
    early(ledger)
    at = ledger.now_ms
    ledger.now_ms -= 500
    assert ledger.start().started_at == at


@pytest.mark.parametrize("run_id", ["@no-id", "x" * 201])
def test_for_what_can_be_no_run_nothing_is_kept(run_id: str) -> None:
    owned().rejects("signal-received", run_id, signal="go", data=1)


def test_for_a_run_of_another_partition_nothing_is_kept() -> None:
    state = PartitionState(partition=0, partitions=64)
    ledger = owned()
    for run_id in (f"run-{number}" for number in range(200)):
        early(ledger, run_id=run_id)
    for each in ledger.records:
        fold(state, each)
    assert 0 < len(state.runs) < 20


def test_under_a_claim_of_format_1_none_is_kept_and_those_that_were_are_not_heard() -> None:
    ledger = Ledger(stride=1)
    ledger.write(ledger.event("signal-received", signal="go", data=1), key=RUN)
    assert ledger.claim(v=1) is not None
    ledger.rejects("signal-received", signal="go", data=1)
    assert refused(ledger) == [f"there is no run {RUN!r}"]
    assert ledger.start().signals == {}


@pytest.mark.parametrize("away", [True, False])
@pytest.mark.parametrize("again", [1, 2])
async def test_signals_that_came_early_outlive_their_owner(away: bool, again: int) -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    early(ledger, 1)
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    await keeper.load()
    for _ in range(again):
        keeper.fold(ledger.records)
        if away:
            keeper.state.runs.note_idle(keeper.run(RUN).id, True)
            keeper.state.runs.put_away(RUN)
        await stored(ledger, keeper.log)
        await keeper.save()
        early(ledger, 2)
    ledger.start()
    state = await reloaded(ledger, keeper.log)
    assert state.pack() == ledger.state.pack()
    assert [data for data, _ in state.runs.peek(RUN).signals["go"]] == [1, *[2] * again]


async def test_what_nobody_came_for_is_dropped_and_gone_from_the_checkpoint() -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    early(ledger)
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    await keeper.load()
    keeper.fold(ledger.records)
    await keeper.save()
    keeper.checkpoint.touch(RUN, keeper.state)
    keeper.state.drop(RUN)
    assert [event["signal"] for event, _ in keeper.state.refused] == ["go"] and not keeper.state.runs
    await keeper.save()
    loaded = await Keeper(keeper.log).load()
    assert loaded.offset == ledger.state.offset and not loaded.runs and loaded.open_mark == 0


# Places of an inbox.


def test_what_is_not_above_the_highest_place_of_its_inbox_partition_is_void_for_ever() -> None:
    ledger = short()
    ledger.start("a", **place(5))
    ledger.accepts("completed", "a", result=1)
    ledger.now_ms += 1_000 * MEMORY_MS
    ledger.rejects("started", "a", workflow="w", input=1, **place(5))
    ledger.rejects("started", "a", workflow="w", input=1, **place(4))
    assert ledger.state.refused == [], "a repeat is nobody's mistake"
    ledger.start("a", **place(6))


@pytest.mark.parametrize("other", [place(1, inbox="inbox-2"), place(1, partition=1), {}])
def test_other_inboxes_and_their_partitions_have_places_of_their_own(other: dict[str, Any]) -> None:
    ledger = owned()
    ledger.start("a", **place(5))
    ledger.start("b", **other)


def test_the_place_of_a_void_request_counts_too() -> None:
    ledger = short()
    ledger.start("a")
    assert ledger.write(ledger.event("started", "a", workflow="w", input=1, **place(3)), key="a") is None
    ledger.accepts("completed", "a", result=1)
    ledger.now_ms += 2 * MEMORY_MS
    ledger.rejects("started", "a", workflow="w", input=1, **place(3))


@pytest.mark.parametrize("void", [{"v": FORMAT + 1}, {"run_id": "b"}])
def test_so_does_that_of_a_request_that_is_void_for_its_format_or_its_key(void: dict[str, Any]) -> None:
    """Or one that comes again after another run's later place were a repeat to whoever knows that place, and to nobody else."""
    ledger = owned()
    assert ledger.write({**ledger.event("started", "a", workflow="w", input=1, **place(3)), **void}, key="a") is None
    ledger.start("c", **place(4))
    ledger.claim("worker-b")
    ledger.rejects("started", "a", workflow="w", input=1, **place(3))
    alone = PartitionState()
    assert [fold(alone, each) is not None for each in ledger.records if each.key in ("a", CLAIM_KEY)] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("wrong", [None, 1, [], {}, {"inbox": 1, "partition": 0, "offset": 0}, {"inbox": "i", "partition": 0}])
def test_what_is_no_place_is_passed_over(wrong: Any) -> None:
    ledger = owned()
    ledger.start("a", **{"from": wrong})
    ledger.accepts("signal-received", "a", signal="go", data=1, **{"from": wrong})
    assert ledger.state.sources == {}


def test_under_a_claim_of_format_1_places_are_seen_and_void_nothing() -> None:
    ledger = Ledger(stride=1)
    ledger.claim(v=1)
    ledger.start("a", **place(5))
    ledger.start("b", **place(4))
    assert ledger.state.sources == {"inbox-1/0": 5}
    ledger.claim("worker-b")
    ledger.rejects("started", "c", workflow="w", input=1, **place(5))


def test_who_reads_one_run_knows_its_repeats_from_its_own_records() -> None:
    ledger = short()
    for offset, run_id in enumerate("abc"):
        ledger.start(run_id, **place(offset))
        ledger.accepts("completed", run_id, result=1)
    ledger.now_ms += 2 * MEMORY_MS
    for offset, run_id in enumerate("abc"):
        ledger.rejects("started", run_id, workflow="w", input=1, **place(offset))
    for run_id in "abc":
        alone = PartitionState()
        taken = [fold(alone, each) is not None for each in ledger.records if each.key in (run_id, CLAIM_KEY)]
        assert taken == [True, True, True, False]


async def test_places_outlive_their_owner() -> None:
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start(**place(7))
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    await keeper.load()
    keeper.fold(ledger.records)
    await keeper.save()
    loaded = await Keeper(keeper.log).load()
    assert loaded.offset == ledger.state.offset and loaded.sources == {"inbox-1/0": 7}


# What is refused is said.


def test_a_start_of_a_taken_id_is_refused_where_it_asks_for_something_else() -> None:
    ledger = begun()
    assert ledger.write(ledger.event("started", workflow="process-order", input={"n": 1}, **place(1)), key=RUN) is None
    assert ledger.state.refused == [], "the same again is no mistake"
    for offset, other in enumerate([{"workflow": "process-order", "input": {"n": 2}}, {"workflow": "other", "input": {"n": 1}}]):
        assert ledger.write(ledger.event("started", **other, **place(2 + offset)), key=RUN) is None
        assert "with another input" in refused(ledger)[0]
    for offset, data in enumerate([{"n": True}, {"n": 1.0}]):
        assert ledger.write(ledger.event("started", workflow="process-order", input=data, **place(4 + offset)), key=RUN) is None
        assert "with another input" in refused(ledger)[0], "for Python, not for JSON, 1 equals both"
    ledger.rejects("started", workflow="other", input=1)
    assert ledger.state.refused == [], "a client reads back what became of its start"


def test_what_the_start_gave_is_compared_not_what_was_made_of_it() -> None:
    ledger = owned()
    ledger.start(input={"n": 1}, **place(0))
    ledger.accepts("input-completed", input={"n": 1, "made": "anew"})
    stored_run = unpack(pack(ledger.run))
    assert (stored_run.start_input, stored_run.input) == ({"n": 1}, {"n": 1, "made": "anew"})
    ledger.write(ledger.event("started", workflow="process-order", input={"n": 1}, **place(1)), key=RUN)
    assert ledger.state.refused == []


@pytest.mark.parametrize("asked", ["from an inbox", "by a client"])
def test_a_start_of_a_run_that_has_ended_is_compared_as_well(asked: str) -> None:
    ledger = owned()
    ledger.start(input={"b": 2, "a": 1}, **(place(0) if asked == "from an inbox" else {}))
    ledger.accepts("completed", result=1)
    same = ledger.event("started", workflow="process-order", input={"a": 1, "b": 2}, **place(1))
    assert ledger.write(same, key=RUN) is None
    assert len(refused(ledger)) == (asked == "by a client"), "how that was started is not kept"
    ledger.write(ledger.event("started", workflow="process-order", input={"a": 2, "b": 2}, **place(2)), key=RUN)
    assert refused(ledger) == [f"a run {RUN!r} has ended, of another workflow or input"]


def test_a_cancellation_that_finds_no_run_is_refused() -> None:
    ledger = owned()
    ledger.rejects("cancel-requested", reason="why")
    assert refused(ledger) == [f"there is no run {RUN!r}"]
    ledger.start()
    ledger.accepts("cancel-requested", reason="why")
    ledger.rejects("cancel-requested", reason="why")
    assert ledger.state.refused == [], "it was asked for already"
    ledger.accepts("cancelled", reason="why")
    ledger.rejects("cancel-requested", reason="why")
    assert refused(ledger) == [f"run {RUN!r} has ended"]


def test_what_was_refused_is_no_part_of_the_state() -> None:
    ledger = owned()
    before = facts(ledger.state)
    ledger.rejects("cancel-requested", reason="why")
    assert ledger.state.refused and facts(ledger.state) == before
