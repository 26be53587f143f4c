"""What goes wrong in a world by the clock, each kind by a chance of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import strangers

from stepfold.log import CLAIM_KEY, partition_of
from stepfold.testing.faulty import Transaction

if TYPE_CHECKING:
    from world import World

HOUR_MS = 3_600_000
SET_BACK_MS = HOUR_MS // 6
SETS_BACK = 8


def kill(world: World, random: Random) -> None:
    world.died(random.choice(world.lives).process, "at random")


def pause(world: World, random: Random) -> None:
    world.pause(random.choice(world.lives).process)


def leave(world: World, random: Random) -> None:
    world.leave(random.randrange(len(world.lives)))


def jump(world: World, random: Random) -> None:
    process = random.choice(world.lives).process
    world.set_clock(process, random.choice((0, -30_000, -500, 700, 45_000, -3 * HOUR_MS, 2 * HOUR_MS)))
    world.happened("clock", f"{process.name} is {process.skew_ms} ms off")


def set_back(world: World) -> None:
    """When the faults are over the clocks of all workers are set back, several times: what was begun since lasts no longer."""
    random = world.source("set-back")
    if "set-back" in world.plan.off or random.random() < 0.5:
        return

    def now() -> None:
        for life in world.lives:
            world.set_clock(life.process, life.process.skew_ms - SET_BACK_MS)
        world.happened("set-back", f"the workers' clocks by {SET_BACK_MS} ms")

    for number in range(SETS_BACK):
        world.after(number * 20 + random.random() * 20, now)


def broker_clock(world: World, random: Random) -> None:
    world.log.clock_ms = random.choice((0, -5_000, -100, 150, 4_000, -2 * HOUR_MS, HOUR_MS))
    world.happened("broker-clock", f"{world.log.clock_ms} ms off")


def rebalance(world: World, random: Random) -> None:
    world.happened("rebalance", "partitions are moved")
    world.log.group.rebalance(shuffle=True)


def outage(world: World, random: Random) -> None:
    for_s = random.choice((0.2, 3.0, 25.0))
    world.happened("outage", f"for {for_s} s")
    world.log.down_until = world.loop.time() + for_s


def roll(world: World, random: Random) -> None:
    """New code on those that start from now on, or the old one again; and a worker that restarts with it."""
    world.versions = random.choice((("1",), ("1", "2"), ("2", "1")))
    world.happened("versions", f"workers that start know {', '.join(world.versions)}")
    world.leave(random.randrange(len(world.lives)))


def stranger(world: World, random: Random) -> None:
    """Somebody with write access who should not have it."""
    part = random.choice(world.log.partitions)
    run_id = random.choice(world.runs).id if world.runs else "nobody"
    known = [one for one in world.answering.known.values() if partition_of(one.run_id, world.partitions) == part.number]
    if known and random.random() < 0.3:
        what, entry = strangers.answer(random, known, part.by_key, run_id, world.loop.clock())
    else:
        what, entry = strangers.record(random, part.records, part.by_key.get(CLAIM_KEY, []), run_id, world.loop.clock())
    world.happened("stranger", f"partition {part.number}: {what}")
    world.log.put(part.number, [entry], "stranger", world.loop.clock())


def foreigner(world: World, random: Random) -> None:
    """Somebody puts something into the inbox that is no request, or one that concerns nobody."""
    if world.log.kafka:
        run_id = random.choice(world.runs).id if world.runs else "nobody"
        known = list(world.answering.known.values())
        if known and random.random() < 0.3:
            record = b"key", strangers.about_callbacks(random, known), ()
        else:
            record = strangers.odd(random, run_id) if random.random() < 0.5 else (b"key", strangers.request(random, run_id), ())
        world.happened("foreign", world.log.put_inbox(random.randrange(world.partitions), *record))


def transaction(world: World, random: Random) -> None:
    """A foreign producer asks in a transaction for what nobody wants, and takes it back; it may hang before that. Another one
    commits what does no harm."""
    if not world.log.kafka or not world.runs:
        return
    commits = random.random() < 0.3
    for_s = random.choice((0, 0.5, 5, 40))
    transactions = Transaction(world.log)
    known = list(world.answering.known.values())
    for _ in range(random.choice((1, 2, 4))):
        run_id = random.choice(world.runs).id
        value = strangers.request(random, run_id) if commits else strangers.given_up(random, run_id, known)
        transactions.put(random.randrange(world.partitions), None, value)
    world.happened("transaction", f"open for {for_s} s, then it {'commits' if commits else 'aborts'}")
    world.after(for_s, transactions.end, commits)


def reread(world: World, random: Random) -> None:
    """The positions in the inbox are lost: it is read again from its beginning."""
    for part in world.log.partitions:
        part.routed = 0
    world.log.group.rebalance(shuffle=True)
    world.happened("reread", "the inbox is read again")


ALL: dict[str, tuple[float, Callable[[World, Random], None]]] = {
    "kill": (10, kill),
    "pause": (12, pause),
    "leave": (12, leave),
    "clock": (8, jump),
    "broker-clock": (8, broker_clock),
    "rebalance": (8, rebalance),
    "outage": (15, outage),
    "stranger": (1, stranger),
    "foreign": (4, foreigner),
    "versions": (12, roll),
    "reread": (40, reread),
    "transaction": (8, transaction),
}
"""By kind: so many seconds lie between two on average, at an intensity of 1; and what happens."""
