"""Whether the simulator can fail: engines with a bug planted in them, every one of which must be found.

    make simulate BUGS=1        or BUGS="NAME NAME" for some of them

`bugs/NAME.txt` says in its first line what is broken, in its second what should find it: a rule, or a test where no world has
what it takes. Then come the changes: `=== file`, a text that stands in the file once, `=== becomes`, and another text. A copy of
the package is changed, and worlds are made with that, from seed 0 on. A process of its own makes them: this one has imported the
package already. `bugs/first.json` keeps the first world that found each bug, to look there first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUGS = HERE / "bugs"
FOLDERS = ("engine", "drivers", "projections")
FIRST = BUGS / "first.json"
SEEDS = 80
HANGS_S = 120
HANGS = 3
"""The exit status of a process that was stopped because a world went on for longer."""
HASH_SEEDS = ("1", "2")
"""The worlds are made under both where no other difference can be told."""


class Change(NamedTuple):
    file: str
    old: str
    becomes: str
    new: str


@dataclass
class Bug:
    """`words`: what is broken; `caught_by`: what should find it."""

    name: str
    words: str
    caught_by: str
    changes: list[Change]

    @classmethod
    def read(cls, path: Path) -> Bug:
        """Raises ValueError for a file that does not say what it is for, or what it changes."""
        head, *parts = re.split(r"^=== (.*)\n", path.read_text(), flags=re.MULTILINE)
        lines = head.splitlines()
        if len(lines) != 3 or lines[2] or not lines[1].startswith("Caught by: "):
            raise ValueError(f"{path.name} begins with {head!r}")
        changes = [Change(*parts[at : at + 4]) for at in range(0, len(parts), 4)]
        if not changes or {change.becomes for change in changes} != {"becomes"}:
            raise ValueError(f"{path.name}: what is changed is not `=== file`, a text, `=== becomes`, a text")
        return cls(path.stem, lines[0], lines[1].removeprefix("Caught by: "), changes)

    def plant(self, folder: Path) -> None:
        """Change the files of a folder. Raises ValueError where a text does not stand in its file, or more than once."""
        for change in self.changes:
            path = folder / change.file
            text = path.read_text()
            if text.count(change.old) != 1:
                raise ValueError(f"{self.name}: {text.count(change.old)} times, not once, in {change.file}:\n{change.old}")
            path.write_text(text.replace(change.old, change.new))

    @property
    def needs_hash_seeds(self) -> bool:
        return "PYTHONHASHSEED" in self.caught_by

    @property
    def by_test(self) -> bool:
        """Where no world has what it takes, it is a test that must fail: `tests/...`, as pytest takes it."""
        return self.caught_by.startswith("tests/")


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
    return [Bug.read(BUGS / f"{name}.txt") for name in names] or [Bug.read(path) for path in sorted(BUGS.glob("*.txt"))]


def plant(bug: Bug | None, folder: Path) -> None:
    """Make the package with this bug in a folder. Raises ValueError where it cannot be planted."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        bug.plant(folder)
    (folder / "package").mkdir()
    (folder / "package/stepfold").symlink_to(folder / "engine")
    for name in FOLDERS[1:]:
        (folder / "engine" / name).symlink_to(folder / name)


def likely(bug: Bug) -> list[int]:
    """The seeds of worlds that should find a bug, beginning with the one that did before."""
    first: int = json.loads(FIRST.read_text()).get(bug.name, 0)
    return [first, *(seed for seed in range(SEEDS) if seed != first)]


def found(bug: Bug | None, seeds: Iterable[int], *, all_of_them: bool = True) -> Finding:
    """Make the worlds of these seeds, or those up to the first in which something is found."""
    finding = Finding()
    with tempfile.TemporaryDirectory(prefix="stepfold-bug-") as name:
        folder = Path(name)
        plant(bug, folder)
        if bug is not None and bug.by_test:
            finding.add(0, "its test" if _fails(folder, bug.caught_by.split()) else "")
            return finding
        seeds = list(seeds)
        under = HASH_SEEDS if bug is None or bug.needs_hash_seeds else HASH_SEEDS[:1]
        for results in zip(*(_worlds(folder, seeds, hash_seed) for hash_seed in under), strict=False):
            seed, _, failure = results[0]
            if not failure and len({trace for _, trace, _ in results}) > 1:
                failure = "another trace under another PYTHONHASHSEED"
            finding.add(seed, failure)
            if failure and not all_of_them:
                break
    return finding


def _fails(folder: Path, tests: Sequence[str]) -> bool:
    """Whether tests fail with the package in a folder. Raises RuntimeError where they cannot be run."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "package"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.returncode == 1


def _worlds(folder: Path, seeds: Iterable[int], hash_seed: str) -> Iterator[tuple[int, str, str]]:
    """Seed, hash of the trace, and what was found, for each."""
    path = os.pathsep.join([str(folder / "package"), str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(HERE / "planted.py"), *map(str, seeds)]
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


def main(names: Sequence[str]) -> int:
    """Print the table, and keep which world found each first; 1 if a bug was not found, or something was found without one."""
    chosen: list[Bug | None] = [None, *bugs(names)]
    firsts: dict[str, int] = json.loads(FIRST.read_text())
    print(f"{'bug':36} {'found in':>10} {'first':>6}  by")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for bug, finding in zip(chosen, pool.map(partial(found, seeds=range(SEEDS)), chosen), strict=True):
            name = bug.name if bug is not None else "(none)"
            by = ", ".join(f"{what} ({times})" for what, times in finding.by.most_common(3)) or "-"
            first = "-" if finding.first is None else finding.first
            print(f"{name:36} {finding.by.total():>4} of {finding.worlds:<3} {first:>5}  {by}", flush=True)
            failed += (bug is None) == bool(finding.by)
            if bug is not None and finding.first is not None and not bug.by_test:
                firsts[bug.name] = finding.first
    FIRST.write_text(json.dumps(firsts, indent=2, sort_keys=True) + "\n")
    print(f"\n{len(chosen) - 1} bugs; " + ("all found" if not failed else f"{failed} lines are not as they should be"))
    return 1 if failed else 0


def make_worlds(seeds: Iterable[int]) -> None:
    """In a process of its own: a line of JSON for each world."""
    from rules import Broken
    from simulate import Plan, prepare, simulate

    prepare()
    seed = 0

    def hangs(*_: object) -> None:
        print(json.dumps([seed, "", f"the world hangs for {HANGS_S} s"]), flush=True)
        os._exit(HANGS)

    signal.signal(signal.SIGALRM, hangs)
    for seed in seeds:  # `hangs` tells which
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
    make_worlds(map(int, sys.argv[1:]))
