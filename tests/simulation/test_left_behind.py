"""Worlds leave nothing behind (rule 16): the same ones again and again in one process, and what is there between two rounds."""

from __future__ import annotations

import gc
import multiprocessing
import tracemalloc
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import pytest
from simulate import Plan, prepare, simulate

SEEDS = (0, 3, 6)
"""A world that ends early, one with many deaths, and one with 1,900 events and a projection."""
POLITE = frozenset({"hostile"})
"""Code that never stops is kept for ever on purpose, with all it holds: Python would wait for it at the end of the process."""
WARM_UP = 2
ROUNDS = 3
STRAY_BYTES = 20_000
"""A round leaves 3,000 to 6,000 in Python's own free lists, and one early round 30,000 to 50,000; the records of a round alone
are 500,000. All rounds but one stay below this."""


class Left(NamedTuple):
    """What is there: objects of the engine and of asyncio by type, and bytes of Python's memory."""

    objects: Counter[str]
    size: int


def rounds() -> list[Left]:
    """What each round leaves behind, in a process that does nothing else."""
    tracemalloc.start()
    found: list[Left] = []
    for _ in range(WARM_UP + ROUNDS):
        for seed in SEEDS:
            assert simulate(Plan(seed, off=POLITE)).failure is None
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        kinds = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, gc.get_objects()))
        found.append(
            Left(Counter({k: n for k, n in kinds.items() if k.startswith(("stepfold.", "asyncio.", "_asyncio."))}), size)
        )
    return found[WARM_UP - 1 :]


@pytest.mark.timeout(300)
def test_worlds_leave_nothing_behind() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare) as pool:
        left = pool.submit(rounds).result()
    for before, after in pairwise(left):
        assert after.objects == before.objects
        kept = ("stepfold.core.fold.", "stepfold.worker.owner.", "stepfold.testing.")
        assert not [kind for kind in after.objects if kind.startswith(kept)]
    growth = sorted(after.size - before.size for before, after in pairwise(left))
    assert growth[-2] < STRAY_BYTES, growth
