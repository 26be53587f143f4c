"""`make simulate SEED=n` repeats one world byte for byte; `make simulate MINUTES=m` makes fresh ones on all cores; `make worlds`
prints one hash of the first 200, which a change that only moves code does not change.

A world that breaks a promise is made again without whatever is not needed for that, and told as a trace.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import count, islice, takewhile

import planted
from check import Checker
from world import KINDS, Plan, Report, World

BATCH = 10
BATCHES = 3
"""So many a process makes: code that never stops stays in memory, and its world with it."""
TELL_S = 10
SHRINK_S = 60.0
TRACE_LINES = 150


def simulate(plan: Plan) -> Report:
    """One world, and its checker."""
    world = World(plan)
    world.observer = Checker(world.partitions, world.latest, world.loop.clock)
    return world.run()


def prepare() -> None:
    """For a process that makes many worlds. They leave dead processes behind, which are collected between two worlds only, and
    what their clean-up says then is not heard."""
    sys.unraisablehook = lambda _: None
    logger = logging.getLogger("stepfold")
    logger.setLevel(logging.ERROR)
    logger.propagate = False  # a world listens itself
    logger.addHandler(logging.NullHandler())
    gc.collect()
    gc.freeze()
    gc.disable()


@dataclass(slots=True)
class Tally:
    """What came of some worlds."""

    worlds: int = 0
    events: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    failed: dict[int, str] = field(default_factory=dict[int, str])
    traces: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def hash(self) -> str:
        """Of all that happened in all of them."""
        lines = [f"{seed} {trace}\n" for seed, trace in sorted(self.traces.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def add(self, other: Tally) -> None:
        """Take in other worlds."""
        self.worlds += other.worlds
        self.events += other.events
        self.counts.update(other.counts)
        self.failed.update(other.failed)
        self.traces.update(other.traces)


def batch(seeds: range) -> Tally:
    """These worlds, one after the other."""
    tally = Tally()
    for seed in seeds:
        report = simulate(Plan(seed))
        tally.worlds += 1
        tally.events += report.events
        tally.traces[seed] = report.hash
        tally.counts.update(report.counts)
        if report.failure is not None:
            tally.failed[seed] = words(report.failure)
        gc.collect()
    return tally


def words(error: BaseException) -> str:
    """What went wrong, in one line."""
    return f"{type(error).__name__}: {error}"


def fresh(minutes: float, processes: int, first: int | None = None) -> Tally:
    """Worlds from seed `first` on, else worlds nobody has seen, on so many processes; ends early when one has failed."""
    until = time.monotonic() + minutes * 60
    if first is None:
        first = int.from_bytes(os.urandom(5))
    return _all(takewhile(lambda _: time.monotonic() < until, _batches(first)), processes)


def again(worlds: int, processes: int) -> Tally:
    """The worlds from 0 on, the same each time."""
    return _all((seeds[: worlds - seeds[0]] for seeds in takewhile(lambda seeds: seeds[0] < worlds, _batches(0))), processes)


def _batches(first: int) -> Iterator[range]:
    return (range(seed, seed + BATCH) for seed in count(first, BATCH))


def _all(batches: Iterator[range], processes: int) -> Tally:
    start = told = time.monotonic()
    os.environ["PYTHONNODEBUGRANGES"] = "1"  # a tenth of the time would go into the carets under the lines of tracebacks
    total = Tally()
    running: set[Future[Tally]] = set()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, prepare, max_tasks_per_child=BATCHES) as pool:
        while True:
            ahead = 0 if total.failed else 2 * processes - len(running)
            running |= {pool.submit(batch, seeds) for seeds in islice(batches, ahead)}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                total.add(one.result())
            now = time.monotonic()
            if now - told >= TELL_S:
                told = now
                print(f"{now - start:6.0f} s  {rates(total, now - start)}", flush=True)
    print(f"\n{rates(total, time.monotonic() - start)}")
    for kind, number in total.counts.most_common():
        print(f"{number:12,}  {kind}")
    return total


def rates(tally: Tally, spent_s: float) -> str:
    """How much and how fast."""
    return (
        f"{tally.worlds:,} worlds ({tally.worlds / spent_s:.1f} seeds/s), {tally.events:,} events ({tally.events / spent_s:,.0f} "
        f"events/s), {len(tally.failed)} failed"
    )


def shrunk(report: Report, failure: BaseException) -> Plan:
    """The same failure with as little as possible: without kinds of faults, runs, and time that it does not need."""
    plan = Plan(report.seed)
    wanted = _kind(failure)
    until = time.monotonic() + SHRINK_S

    def try_instead(other: Plan) -> bool:
        nonlocal plan
        if time.monotonic() > until:
            return False
        found = simulate(other).failure
        if found is None or _kind(found) != wanted:
            return False
        plan = other
        return True

    faults_s = report.faults_s
    while faults_s > 0.5 and try_instead(replace(plan, faults_s=faults_s / 2)):
        faults_s /= 2
    for kind in KINDS:
        try_instead(replace(plan, off=plan.off | {kind}))
    runs = report.runs
    size = len(runs)
    while size > 1:
        size = (size + 1) // 2
        for first in range(0, len(runs), size):
            fewer = runs[:first] + runs[first + size :]
            if try_instead(replace(plan, runs=frozenset(fewer))):
                runs = fewer
                break
        if size == 1:
            break
    return plan


def _kind(error: BaseException) -> str:
    """What two failures of the same sort have in common."""
    return " ".join(re.sub(r"[\w./#-]*\d[\w./#-]*", "", words(error)).split()[:6])


def tell(seed: int) -> None:
    """A failure, for a person."""
    report = simulate(Plan(seed))
    if report.failure is None:
        print(f"seed {seed} does not fail again: the simulator itself is not deterministic")
        return
    print(
        f"\nseed {seed}: {words(report.failure)}\n`make simulate SEED={seed}` repeats it. Looking for what it needs ...",
        flush=True,
    )
    plan = shrunk(report, report.failure)
    report = simulate(replace(plan, trace=True))
    happened = [kind for kind in KINDS if report.counts[kind]]
    runs = "all" if plan.runs is None else ", ".join(map(str, sorted(plan.runs)))
    print(f"\nNeeded: faults {', '.join(happened)}; runs {runs}. The last {TRACE_LINES} lines:\n")
    print("\n".join(line[:400] for line in report.lines[-TRACE_LINES:]))
    assert report.failure is not None
    print(f"\n{''.join(traceback.format_exception(report.failure, limit=-4))}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", help="repeat these worlds")
    parser.add_argument("--worlds", type=int, help="instead: so many worlds from 0 on, and one hash of all")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument("--bugs", nargs="*", metavar="NAME", help="instead: plant these bugs, or all of bugs/, and look for them")
    args = parser.parse_args()
    if args.bugs is not None:
        return planted.main(args.bugs)
    prepare()
    failed: list[int] = []
    if args.worlds is not None:
        made = again(args.worlds, args.processes)
        failed += list(made.failed)[:1]
        print(f"\n{made.hash}  {made.worlds} worlds")
    elif args.seed is None:
        failed += list(fresh(args.minutes, args.processes).failed)[:1]
    for seed in args.seed or ():
        report = simulate(Plan(seed, trace=args.trace))
        if args.trace:
            print("\n".join(report.lines))
        print(f"seed {seed}: {report.hash}  {report.events} events, {sum(report.counts.values())} faults")
        if report.failure is not None:
            failed.append(seed)
    for seed in failed:
        tell(seed)
    return 1 if failed else 0
