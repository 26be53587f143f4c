"""Worlds of the simulator: always the same ones, fresh ones (three minutes of them in CI), and each the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulate import fresh, tell

HERE = Path(__file__).parent
CI = os.environ.get("CI") == "true"
MINUTES = 3.0 if CI else 0.1
FIXED = range(200 if CI else 20)


def test_the_same_worlds_as_ever() -> None:
    says = subprocess.run(
        [sys.executable, str(HERE), "--seed", *map(str, FIXED)], stdout=subprocess.PIPE, text=True, check=False, timeout=280
    )
    assert says.returncode == 0, says.stdout


@pytest.mark.timeout(600)
def test_fresh_worlds() -> None:
    for seed in fresh(MINUTES, os.cpu_count() or 1).failed:
        tell(seed)
        pytest.fail(f"seed {seed}: see above; `make simulate SEED={seed}` repeats it")


def test_a_world_is_the_same_under_every_hash_seed() -> None:
    hashes = [hashes_of(sys.executable, hash_seed, {}) for hash_seed in ("0", "1", "2")]
    assert hashes[1:] == hashes[:1] * 2


def hashes_of(python: str, hash_seed: str, environment: dict[str, str]) -> list[str]:
    """What `make simulate` prints for some seeds."""
    command = [python, str(HERE), "--seed", *map(str, range(10))]
    env = {**os.environ, **environment, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True).stdout.splitlines()
