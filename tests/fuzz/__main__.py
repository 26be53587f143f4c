"""Fuzz everything that reads bytes it did not write.

    make fuzz MINUTES=30                 a million inputs and more
    make fuzz SEED=7                     the first inputs of another seed
    python tests/fuzz --seed 7 --only record --number 1234     one input again

Input `number` of a target is made from the seed, the target's name and the number alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from files import FILES
from mutations import mutated
from targets import TARGETS, Target

ALL = [*TARGETS, *FILES]
LONGEST_S = 5.0
"""Of the processor's time, for one input."""
HANGS_S = 60
MOST_BYTES = 400_000_000
"""How much more memory one input may ever need than all before it."""
ROUND_S = 0.2


class Finding(NamedTuple):
    target: str
    number: int
    data: bytes
    error: BaseException

    @property
    def kind(self) -> str:
        """Findings of one kind have one cause, more or less."""
        frames = traceback.extract_tb(self.error.__traceback__)
        ours = [frame for frame in frames if "stepfold" in frame.filename] or frames
        at = f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else ""
        return f"{self.target}: {type(self.error).__name__} at {at}"


def input_of(target: Target, seed: int, number: int) -> bytes:
    corpus = target.corpus()
    return corpus[number] if number < len(corpus) else mutated(Random(f"{seed}/{target.name}/{number}"), corpus)


def run_one(target: Target, seed: int, number: int) -> Finding | None:
    """Run one input; whatever it raises, or needs too much of, is a finding."""
    data = input_of(target, seed, number)
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        target.run(data)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        return Finding(target.name, number, data, error)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if after.ru_utime - before.ru_utime > LONGEST_S:
        return Finding(target.name, number, data, TimeoutError(f"it took {after.ru_utime - before.ru_utime:.1f} s"))
    if (after.ru_maxrss - before.ru_maxrss) * 1024 > MOST_BYTES:
        return Finding(target.name, number, data, MemoryError(f"it took {(after.ru_maxrss - before.ru_maxrss) // 1024} MB"))
    return None


def fuzz(targets: Sequence[Target], seed: int, until: float, counts: Counter[str]) -> Iterator[Finding]:
    """A slice of time for each target in turn, until the time is over."""
    while time.monotonic() < until:
        for target in targets:
            stop = time.monotonic() + ROUND_S
            while time.monotonic() < stop:
                signal.alarm(HANGS_S)
                finding = run_one(target, seed, counts[target.name])
                signal.alarm(0)
                counts[target.name] += 1
                if finding is not None:
                    yield finding


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in ALL], help="one target")
    parser.add_argument("--number", type=int, help="one input of it, again")
    options = parser.parse_args()
    targets = [target for target in ALL if options.only in (None, target.name)]
    logging.getLogger("stepfold").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", ResourceWarning)
    if options.number is not None:
        print(input_of(targets[0], options.seed, options.number))
        targets[0].run(input_of(targets[0], options.seed, options.number))
        return 0
    faulthandler.register(signal.SIGALRM, chain=True)  # an input that hangs ends all, with the line where it does
    counts, kinds = Counter[str](), Counter[str]()
    began = told = time.monotonic()
    for target in targets:
        target.corpus()
    until = began + 60 * options.minutes
    while time.monotonic() < until:
        for finding in fuzz(targets, options.seed, min(until, time.monotonic() + 10), counts):
            kinds[finding.kind] += 1
            if kinds[finding.kind] == 1:
                shown = finding.data if len(finding.data) < 500 else finding.data[:500] + b"..."
                print(f"\n{finding.kind}\n  --seed {options.seed} --only {finding.target} --number {finding.number}\n  {shown!r}")
                traceback.print_exception(finding.error, limit=-6, file=sys.stdout)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{told - began:6.0f} s  {counts.total():>10,} inputs  {len(kinds)} kinds of findings", flush=True)
    print("\n".join(f"{target.name:12} {counts[target.name]:>10,}" for target in targets))
    for kind, times in kinds.most_common():
        print(f"{times:>8,} x {kind}")
    print(f"{counts.total():,} inputs in {time.monotonic() - began:.0f} s, {len(kinds)} kinds of findings")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
