"""Whether the simulator can fail: engines with a bug planted in them, every one of which must be found.

    make simulate BUGS=1        or BUGS="NAME NAME" for some of them

`bugs/NAME.patch` is a diff against the repository; its first line says what is broken, its second what should find it. Each
is applied to a copy of the package, and the worlds of the first seeds are made with that. A process of its own makes them:
this one has imported the package already.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUGS = HERE / "bugs"
FOLDERS = ("engine", "drivers", "projections")
SEEDS = 40
HANGS_S = 120
HANGS = 3
"""The exit status of a process that was stopped because a world went on for longer."""
HASH_SEEDS = ("1", "2")
"""The worlds are made under both where no other difference can be told."""


@dataclass
class Bug:
    """`words`: what is broken; `caught_by`: what should find it."""

    name: str
    words: str
    caught_by: str
    patch: Path

    @classmethod
    def read(cls, patch: Path) -> Bug:
        """Raises ValueError for a patch that does not say what it is for."""
        words, caught_by, empty, *_ = patch.read_text().splitlines()
        if empty or not caught_by.startswith("Caught by: "):
            raise ValueError(f"{patch.name} begins with {words!r}, {caught_by!r}, {empty!r}")
        return cls(patch.stem, words, caught_by.removeprefix("Caught by: "), patch)

    @property
    def needs_hash_seeds(self) -> bool:
        return "PYTHONHASHSEED" in self.caught_by


@dataclass
class Finding:
    """What the worlds of a bug came to: in how many it was found, first in which, and by what."""

    worlds: int = 0
    first: int | None = None
    by: Counter[str] = field(default_factory=Counter[str])

    def add(self, seed: int, failure: str) -> None:
        """One more world; `failure` is empty where nothing was found."""
        self.worlds += 1
        if failure:
            self.by[failure] += 1
            if self.first is None:
                self.first = seed


def bugs(names: Sequence[str] = ()) -> list[Bug]:
    """Those of these names, or all."""
    return [Bug.read(BUGS / f"{name}.patch") for name in names] or [Bug.read(patch) for patch in sorted(BUGS.glob("*.patch"))]


def plant(bug: Bug | None, folder: Path) -> None:
    """Make the package with this bug in a folder. Raises CalledProcessError where the patch does not apply."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        subprocess.run(["git", "apply", str(bug.patch)], cwd=folder, check=True)
    (folder / "package").mkdir()
    (folder / "package/stepfold").symlink_to(folder / "engine")
    for name in FOLDERS[1:]:
        (folder / "engine" / name).symlink_to(folder / name)


def found(bug: Bug | None, seeds: int, *, all_of_them: bool = True) -> Finding:
    """Make the worlds of the first seeds, or those up to the first in which something is found."""
    finding = Finding()
    with tempfile.TemporaryDirectory(prefix="stepfold-bug-") as name:
        folder = Path(name)
        plant(bug, folder)
        under = HASH_SEEDS if bug is None or bug.needs_hash_seeds else HASH_SEEDS[:1]
        for results in zip(*(_worlds(folder, seeds, hash_seed) for hash_seed in under), strict=False):
            seed, _, failure = results[0]
            if not failure and len({trace for _, trace, _ in results}) > 1:
                failure = "another trace under another PYTHONHASHSEED"
            finding.add(seed, failure)
            if failure and not all_of_them:
                break
    return finding


def _worlds(folder: Path, seeds: int, hash_seed: str) -> Iterator[tuple[int, str, str]]:
    """Seed, hash of the trace, and what was found, for each."""
    path = os.pathsep.join([str(folder / "package"), str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(HERE / "planted.py"), str(seeds)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                seed, trace, failure = json.loads(line)
                yield seed, trace, failure
            if process.wait() not in (0, HANGS):
                raise RuntimeError(f"the worlds of {folder} ended with status {process.returncode}")
        finally:
            process.kill()


def main(names: Sequence[str], seeds: int = SEEDS) -> int:
    """Print the table; 1 if a bug was not found, or something was found without one."""
    chosen: list[Bug | None] = [None, *bugs(names)]
    print(f"{'bug':36} {'found in':>10} {'first':>6}  by")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, finding in zip(chosen, pool.map(partial(found, seeds=seeds), chosen), strict=True):
            name = bug.name if bug is not None else "(none)"
            by = ", ".join(f"{what} ({times})" for what, times in finding.by.most_common(3)) or "-"
            first = "-" if finding.first is None else finding.first
            print(f"{name:36} {finding.by.total():>4} of {finding.worlds:<3} {first:>5}  {by}", flush=True)
            failed += (bug is None) == bool(finding.by)
    print(f"\n{len(chosen) - 1} bugs; " + ("all found" if not failed else f"{failed} lines are not as they should be"))
    return 1 if failed else 0


def make_worlds(seeds: int) -> None:
    """In a process of its own: a line of JSON for each world."""
    from check import Broken
    from simulate import Plan, prepare, simulate

    prepare()
    seed = 0

    def hangs(*_: object) -> None:
        print(json.dumps([seed, "", f"the world hangs for {HANGS_S} s"]), flush=True)
        os._exit(HANGS)

    signal.signal(signal.SIGALRM, hangs)
    for seed in range(seeds):  # `hangs` tells which
        signal.alarm(HANGS_S)
        report = simulate(Plan(seed))
        error = report.failure
        if error is None:
            failure = ""
        elif isinstance(error, Broken):
            failure = f"rule {error.rule}"
        else:
            failure = f"the world: {type(error).__name__}: {str(error)[:60]}"
        print(json.dumps([seed, report.hash, failure]), flush=True)


if __name__ == "__main__":
    make_worlds(int(sys.argv[1]))
