"""Worlds of the simulator: always the same ones, fresh ones (three minutes of them in CI), and each the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreters import THIS_VERSION, VERSIONS, interpreters
from repository import ROOT
from simulate import Tally, again, fresh, tell
from uv import find_uv_bin

import stepfold

HERE = Path(__file__).parent
CI = os.environ.get("CI") == "true"
FRESH_MINUTES = 3.0 if CI else 0.1
FIXED = 200 if CI else 20
PROCESSES = os.cpu_count() or 1
COMPARED = range(8)
NEEDED = ("orjson", "pydantic", "sqlalchemy", "typing-extensions")
"""What a world imports besides the engine."""


def check(tally: Tally) -> None:
    for seed, failure in tally.failed.items():
        tell(seed)
        pytest.fail(f"seed {seed}: {failure}; `make simulate SEED={seed}` repeats it")


@pytest.mark.timeout(900)
def test_the_same_worlds_as_ever() -> None:
    tally = again(FIXED, PROCESSES)
    check(tally)
    assert tally.worlds == FIXED


@pytest.mark.timeout(900)
def test_fresh_worlds() -> None:
    check(fresh(FRESH_MINUTES, PROCESSES))


def hashes(python: str, hash_seed: str, **environment: str) -> list[str]:
    """What `make simulate` prints for some seeds."""
    command = [python, str(HERE), "--seed", *map(str, COMPARED)]
    env = {**os.environ, **environment, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def ours() -> list[str]:
    return hashes(sys.executable, "0")


def test_a_world_is_the_same_under_every_hash_seed(ours: list[str]) -> None:
    assert len(ours) == len(COMPARED)
    assert hashes(sys.executable, "1") == ours
    assert hashes(sys.executable, "2") == ours


@pytest.mark.slow
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != THIS_VERSION])
def test_a_world_is_the_same_in_every_version(version: str, ours: list[str], tmp_path: Path) -> None:
    python = interpreters().get(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    home = tmp_path / "env"
    for arguments in (["venv", "--python", python, str(home)], ["pip", "install", "--python", str(home), *NEEDED]):
        pins = {"UV_CONSTRAINT": str(ROOT / "constraints.txt")}
        subprocess.run([find_uv_bin(), "--quiet", *arguments], env={**os.environ, **pins}, check=True)
    package = Path(stepfold.__file__).parents[1]
    assert hashes(str(home / "bin" / "python"), "3", PYTHONPATH=str(package)) == ours
