"""What can go wrong between two who take themselves for the owner, case by case; every reader must judge alike.

There is no conditional append: both writers succeed, and only the fold decides.
"""

from __future__ import annotations

import pytest
from histories import RUN, Keeper, Ledger, begun, facts, reloaded, stored

from stepfold.core.fold import PartitionState
from stepfold.drivers import MemoryDriver
from stepfold.testing.suite import checkpoints_of


def test_1_a_paused_owner_finds_its_record_void_after_another_claimed() -> None:
    """A pauses, B claims, A's record lands and its append succeeds: void for everyone, A included."""
    ledger = begun()
    late = ledger.event("step-completed", step_id="charge", attempt=1, result="of A")
    assert ledger.claim("worker-b") is not None
    ledger.rejects_value(late)
    run = ledger.accepts("step-completed", step_id="charge", attempt=1, result="of B")
    assert [delivery.value for delivery in run.journal] == ["of B"]


def test_2_until_the_new_claim_is_in_the_log_the_old_owner_decides() -> None:
    """B is assigned, but its claim has not landed; A still writes: valid."""
    ledger = begun()
    ledger.accepts("step-completed", step_id="charge", attempt=1, result="of A")
    assert ledger.claim("worker-b") is not None
    ledger.rejects("step-completed", step_id="charge", attempt=1, result="of B")
    assert [delivery.value for delivery in ledger.run.journal] == ["of A"]


def test_3_a_claim_that_lands_late_does_not_win() -> None:
    """A's retried claim lands after B's. "The latest claim wins" would give the partition to a dead owner."""
    ledger = begun()
    before = ledger.state.claim
    assert ledger.claim("worker-b", prev=before) is not None
    assert ledger.claim("worker-a", prev=before) is None
    assert ledger.state.owner == "worker-b"
    ledger.accepts("step-completed", step_id="charge", attempt=1, result="of B")


def test_4_of_two_claims_on_the_same_claim_the_first_in_the_log_wins() -> None:
    for first, second in (("worker-b", "worker-c"), ("worker-c", "worker-b")):
        ledger = begun()
        before = ledger.state.claim
        assert ledger.claim(first, prev=before) is not None
        won = ledger.state.claim
        assert ledger.claim(second, prev=before) is None
        assert (ledger.state.owner, ledger.state.claim) == (first, won)


def test_5_what_lands_between_a_decision_and_its_append_is_judged_by_the_fold() -> None:
    """`cancel` lands after the owner has decided `completed` and before that is in the log: the run completes all the same.
    The other way about, the request finds no run."""
    ledger = begun()
    decided = ledger.event("completed", result=1)
    ledger.accepts("cancel-requested", reason="late")
    change = ledger.write(decided, key=RUN)
    assert change is not None and change.run is not None and change.run.phase == "completed"

    ledger = begun()
    request = ledger.event("cancel-requested", reason="late")
    ledger.accepts("completed", result=1)
    ledger.rejects_value(request)


def test_6_what_a_new_producer_sends_again_is_accepted_once() -> None:
    ledger = begun()
    ledger.accepts("step-failed", step_id="a", attempt=1, error={"type": "E", "message": ""}, next_at=ledger.now_ms)
    ledger.accepts("sleep-scheduled", step_id="nap", wake_at=ledger.now_ms)
    ledger.accepts("signal-received", signal="go", data=1)
    ledger.accepts("wait-started", step_id="w", signal="go", timeout_at=None)
    ledger.accepts("sleep-completed", step_id="nap")
    ledger.accepts("step-completed", step_id="a", attempt=2, result=1)
    ledger.accepts("step-completed", step_id="b", attempt=1, result=1)
    ledger.accepts("cancel-requested", reason=None)
    for sent in ledger.records[:]:
        ledger.rejects_value(sent.value, key=sent.key)
    ledger.accepts("completed", result=1)
    for sent in ledger.records[:]:
        ledger.rejects_value(sent.value, key=sent.key)


@pytest.mark.parametrize("saved", ["before the other's checkpoint", "after it", "twice"])
async def test_7_a_zombies_checkpoint_loses_nothing(saved: str) -> None:
    """A has folded a prefix, B claimed and keeps checkpoints of its own; A saves what it has, late."""
    ledger = Ledger(stride=1)
    ledger.claim("worker-a")
    for run_id in ("a", "b", "c"):
        ledger.start(run_id)
    log = await stored(ledger, MemoryDriver())
    zombie = Keeper(log)
    await zombie.load()
    zombie.fold(ledger.records)
    if saved == "twice":
        await zombie.save()
    ledger.accepts("signal-received", "a", signal="go", data=1)
    zombie.fold(ledger.records)

    ledger.claim("worker-b")
    ledger.accepts("signal-received", "a", signal="go", data=2)
    ledger.accepts("completed", "b", result=1)
    ledger.start("d")
    owner = Keeper(await stored(ledger, log))
    await owner.load()
    owner.fold(ledger.records)
    if saved == "before the other's checkpoint":
        await zombie.save()
        await owner.save()
    else:
        await owner.save()
        await zombie.save()
    ledger.accepts("signal-received", "d", signal="go", data=1)
    again = await reloaded(ledger, log)
    assert again.pack() == ledger.state.pack() and facts(again) == facts(ledger.state)
    owner.fold(ledger.records)
    await owner.save()
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


async def test_8_a_log_that_was_made_again_under_the_same_name_is_read_from_its_beginning() -> None:
    """Its offsets begin again, so the old checkpoints speak of other records."""
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    keeper = Keeper(await stored(ledger, MemoryDriver()))
    keeper.fold(ledger.records)
    await keeper.save()

    recreated = await stored(ledger, MemoryDriver())
    await recreated.checkpoint_put(0, await checkpoints_of(keeper.log, 0))
    assert (await Keeper(recreated).load()).pack() == PartitionState().pack()
