"""Worlds of the simulator: always the same ones, fresh ones (three minutes of them in CI), and each the same everywhere.

Every commit has fresh worlds of its own, so that what CI finds it finds again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreters import THIS_VERSION, VERSIONS, interpreters, recorded
from repository import ROOT
from simulate import Tally, again, fresh
from uv import find_uv_bin

import stepfold

HERE = Path(__file__).parent
CI = os.environ.get("CI") == "true"
FRESH_MINUTES = 3.0 if CI else 0.1
FIXED = 200 if CI else 20
PROCESSES = os.cpu_count() or 1
COMPARED = range(8)
FOUND = {
    137: "a run whose quarantine was lost with an append was taken for one that waits, and its code never ran again",
    1053740216710: "an announced at_most_once attempt was taken for one that waits, by a clock that was behind, and ran again",
    514604582566: "a record that came before the announcement of a run's code was taken for its turn",
    265143320706: "code that had been suspected and was no more had two turns",
    365012700882: "an announcement of a run's code that came twice counted twice",
    305736843295: "silence about a callback was measured by the clock of the owner, which was set back, against the log's",
    617406943: "a cancelled run completed, as if the members of its task group had done their work",
    228532529679: "a repeat of a record that was void counted, and the checker took it for a stranger's decision",
    926076726524: "a snapshot from a checkpoint that was never ended was taken for one of the log that had been put back",
    972269780526: "an announcement that came too late was taken for another owner's of the same attempt, which then ran twice",
    773550254995: "a stranger forged an answer with the nonce of the same callback, made again after the log had been put back",
    1056866410635: "code that had paused between two of many published values was taken for code that came back",
}
NEEDED = ("orjson", "pydantic", "sqlalchemy", "typing-extensions")
"""What a world imports besides the engine."""


def check(tally: Tally) -> None:
    for seed, failure in tally.failed.items():
        subprocess.run([sys.executable, str(HERE), "--seed", str(seed)], check=False)  # tells more, and none of it stays here
        pytest.fail(f"seed {seed}: {failure}; `make simulate SEED={seed}` repeats it")


@pytest.mark.timeout(900)
def test_the_same_worlds_as_ever() -> None:
    tally = again(FIXED, PROCESSES)
    check(tally)
    assert tally.worlds == FIXED


@pytest.mark.parametrize("seed", FOUND)
def test_a_world_that_once_broke(seed: int) -> None:
    [line] = printed(sys.executable, "0", seed)
    assert line.startswith(f"seed {seed}: ")


@pytest.mark.timeout(900)
def test_fresh_worlds() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    check(fresh(FRESH_MINUTES, PROCESSES, int(commit[:10], 16)))


def printed(python: str, hash_seed: str, *seeds: int, **environment: str) -> list[str]:
    """What `make simulate` prints for some seeds. Raises CalledProcessError when one breaks."""
    command = [python, str(HERE), "--seed", *map(str, seeds)]
    env = {**os.environ, **environment, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, stdout=subprocess.PIPE, env=env, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def ours() -> list[str]:
    return printed(sys.executable, "0", *COMPARED)


def test_a_world_is_the_same_under_every_hash_seed(ours: list[str]) -> None:
    assert len(ours) == len(COMPARED)
    assert printed(sys.executable, "1", *COMPARED) == ours
    assert printed(sys.executable, "2", *COMPARED) == ours


@pytest.mark.slow
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != THIS_VERSION])
def test_a_world_is_the_same_in_every_version(version: str, ours: list[str], tmp_path: Path) -> None:
    python = interpreters().get(version)
    said = recorded(version, "worlds")
    if python is None and said is not None:
        assert said.decode().splitlines()[: len(COMPARED)] == ours
        return
    if python is None:
        pytest.skip(f"no Python {version} here")
    home = tmp_path / "env"
    for arguments in (["venv", "--python", python, str(home)], ["pip", "install", "--python", str(home), *NEEDED]):
        pins = {"UV_CONSTRAINT": str(ROOT / "constraints.txt")}
        subprocess.run([find_uv_bin(), "--quiet", *arguments], env={**os.environ, **pins}, check=True)
    package = Path(stepfold.__file__).parents[1]
    assert printed(str(home / "bin" / "python"), "3", *COMPARED, PYTHONPATH=str(package)) == ours
