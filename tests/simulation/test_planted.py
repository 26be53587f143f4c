"""The simulator can fail: every planted bug can still be planted, is looked for, and is found.

`make simulate BUGS=1` says in how many worlds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from planted import BUGS, FOLDERS, Bug, bugs, found, likely
from repository import ROOT
from rules import RULES

QUICK = ["resume-before-read-back", "lost-attempt-not-counted", "signals-last-in-first-out", "order-of-a-set"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("path", sorted(BUGS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_bug_can_be_planted_and_says_what_it_is_for(path: Path, package: Path) -> None:
    bug = Bug.read(path)
    before = {change.file: (package / change.file).read_text() for change in bug.changes}
    try:
        bug.plant(package)
        for file, text in before.items():
            assert (package / file).read_text() != text
            compile((package / file).read_text(), file, "exec")
    finally:
        for file, text in before.items():
            (package / file).write_text(text)
    rules = {int(word) for word in bug.caught_by.split() if word.isdigit()}
    assert bug.words.endswith(".")
    assert rules <= RULES.keys()
    assert rules or bug.needs_hash_seeds or (ROOT / bug.caught_by.split()[0]).is_file()


def test_there_are_enough_of_them() -> None:
    assert len(bugs()) >= 20


EACH = [pytest.param(bug, id=bug.name, marks=() if bug.name in QUICK else pytest.mark.slow) for bug in bugs()]
FINDERS = {"its test", "another trace under another PYTHONHASHSEED", *(f"rule {number}" for number in RULES)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", EACH)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    finding = found(bug, likely(bug), all_of_them=False)
    assert finding.by, bug.words
    assert finding.by.keys() <= FINDERS


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    finding = found(None, range(5))
    assert (finding.worlds, finding.by) == (5, {})
