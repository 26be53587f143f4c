"""The outbox of a partition, and which messages of others have come."""

from __future__ import annotations

from typing import Any

import pytest
from histories import RUN, Keeper, Ledger, begun, owned, reloaded, stored

from stepfold.core.fold import PartitionState
from stepfold.core.messages import OUTBOX_KEY, Outbox, Owed
from stepfold.drivers import MemoryDriver


def message(offset: int, n: int = 0) -> Owed:
    return Owed(offset, n, {"type": "started", "run_id": "r"})


def outbox(*messages: Owed, target: int = 7) -> Outbox:
    found = Outbox()
    for each in messages:
        found.add(target, each)
    return found


def delivered(ledger: Ledger, through: Any, *, key: str = OUTBOX_KEY, **fields: Any) -> bool:
    event = {"type": "delivered", "v": 2, "at": 1, "claim": ledger.state.claim, "through": through}
    return ledger.write(event | fields, key=key) is not None


def test_messages_stand_in_the_order_of_their_causes_each_once() -> None:
    found = outbox(message(5), message(9, 1), message(5), message(9), message(1))
    assert [one.position for one in found.targets[7]] == [(1, 0), (5, 0), (9, 0), (9, 1)]
    assert len(found) == 4 and Outbox.unpack(found.pack()).targets == found.targets


def test_the_next_messages_are_those_behind_the_last_one() -> None:
    found = outbox(message(5), message(9), message(9, 1))
    assert [one.position for one in found.above(7, None, 2)] == [(5, 0), (9, 0)]
    assert [one.position for one in found.above(7, (9, 0), 2)] == [(9, 1)]
    assert found.above(7, (9, 1), 2) == found.above(8, None, 2) == []


def test_each_target_is_delivered_by_itself() -> None:
    found = outbox(message(5), message(9))
    found.add(8, message(5))
    twin = found.copied()
    found.deliver({"7": 5, "x": 9, "": 9, "9": 9, "99999999999": 9})
    assert {target: len(messages) for target, messages in found.targets.items()} == {7: 1, 8: 1}
    found.deliver({"7": 9, "8": 4})
    assert list(found.targets) == [8] and len(twin) == 3


def test_only_the_owner_says_what_is_delivered() -> None:
    ledger = begun()
    ledger.accepts("child-scheduled", **CHILD)
    end = ledger.records[-1].offset
    assert not delivered(ledger, {"0": end}, key=RUN)
    assert not delivered(ledger, {"0": end}, claim=-1)
    assert not delivered(ledger, {"0": end}, v=99)
    assert len(ledger.state.outbox) == 1
    assert delivered(ledger, {"0": end}) and not ledger.state.outbox.targets


CHILD: dict[str, Any] = {
    "v": 2,
    "step_id": "ship",
    "child": "kid",
    "workflow": "w",
    "child_version": None,
    "input": "x" * 10,
    "on_parent_close": "cancel",
    "timeout_at": None,
    "detached": False,
    "shielded": False,
}


def signalled(ledger: Ledger, partition: int, offset: int, n: int, **fields: Any) -> bool:
    position = {"partition": partition, "offset": offset, "n": n}
    event = ledger.event("signal-received", signal="s", data=1, cause=position) | fields
    return ledger.write(event, key=RUN) is not None


def test_a_message_counts_once_for_ever() -> None:
    ledger = begun()
    assert signalled(ledger, 1, 5, 0) and signalled(ledger, 1, 5, 1) and signalled(ledger, 2, 3, 0)
    ledger.now_ms += 100 * ledger.state.memory_ms
    assert not signalled(ledger, 1, 5, 1) and not signalled(ledger, 1, 4, 9) and signalled(ledger, 1, 6, 0)
    assert signalled(ledger, 1, 0, 0, cause={"partition": 1}), "no position: known by its id"


def test_a_message_that_is_void_has_come_too() -> None:
    ledger = owned()
    assert not signalled(ledger, 1, 5, 0, v=99)
    ledger.start()
    assert not signalled(ledger, 1, 5, 0) and signalled(ledger, 1, 6, 0)


def test_under_format_1_positions_do_not_count() -> None:
    ledger = Ledger()
    ledger.claim(v=1)
    ledger.start()
    assert signalled(ledger, 1, 5, 0) and signalled(ledger, 1, 5, 0)


def test_a_message_to_a_run_that_is_not_there_is_told_to_nobody() -> None:
    ledger = owned()
    ledger.write(ledger.event("cancel-requested", cause={"partition": 1, "offset": 1, "n": 0}), key=RUN)
    assert not ledger.state.refused


def owing() -> Ledger:
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    ledger.accepts("child-scheduled", **CHILD)
    signalled(ledger, 3, 8, 1)
    return ledger


async def kept(ledger: Ledger) -> tuple[MemoryDriver, Keeper]:
    log = await stored(ledger, MemoryDriver())
    keeper = Keeper(log)
    await keeper.load()
    keeper.fold(ledger.records)
    await keeper.save()
    return log, keeper


async def test_a_checkpoint_keeps_what_is_owed_and_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepfold.worker.checkpoint.PIECE_BYTES", 50)
    ledger = owing()
    log, keeper = await kept(ledger)
    state = await Keeper(log).load()
    assert state.pack() == ledger.state.pack() and len(state.outbox) == 1 and state.senders == {"3": (8, 1)}
    delivered(ledger, {"0": 2})
    await stored(ledger, log)
    keeper.fold(ledger.records)
    await keeper.save()
    items = [key async for portion in log.checkpoint_load(0) for key in portion]
    assert not [key for key in items if "/o/" in key], "they are deleted when nothing is owed any more"
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


@pytest.mark.parametrize("spoiled", [None, b"[]"])
async def test_an_outbox_that_cannot_be_read_means_the_fold_from_the_start(spoiled: bytes | None) -> None:
    ledger = owing()
    log, _ = await kept(ledger)
    items = [key async for portion in log.checkpoint_load(0) for key in portion]
    await log.checkpoint_put(0, dict.fromkeys([key for key in items if "/o/" in key], spoiled))
    assert (await Keeper(log).load()).offset == 0
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


async def test_what_a_run_owed_behind_the_marker_is_in_the_unfinished_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot of the run is newer than the marker, so the fold skips the record that owes the message."""
    ledger = Ledger(stride=1)
    ledger.claim()
    ledger.start()
    log, keeper = await kept(ledger)
    ledger.accepts("child-scheduled", **CHILD)
    await stored(ledger, log)
    keeper.fold(ledger.records)
    put = log.checkpoint_put

    async def no_marker(partition: int, items: Any) -> None:
        await put(partition, {key: value for key, value in items.items() if not key.endswith("/m") and value is not None})

    monkeypatch.setattr(log, "checkpoint_put", no_marker)
    await keeper.save()
    state = await Keeper(log).load()
    assert state.offset == 2 and len(state.outbox) == 1
    assert (await reloaded(ledger, log)).pack() == ledger.state.pack()


def test_a_state_without_its_runs_keeps_its_messages() -> None:
    ledger = owing()
    twin = ledger.state.without_runs()
    ledger.state.outbox.deliver({"0": 2**40})
    assert isinstance(twin, PartitionState) and len(twin.outbox) == 1 and twin.senders == ledger.state.senders
