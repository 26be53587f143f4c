"""The simulator can fail: every planted bug can still be planted, and a few of them are looked for and found.

All of them are looked for by `make simulate BUGS=1`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from check import RULES
from planted import BUGS, Bug, bugs, found
from repository import ROOT

QUICK = ["resume-before-read-back", "lost-attempt-not-counted", "signals-last-in-first-out", "order-of-a-set"]


@pytest.mark.parametrize("patch", sorted(BUGS.glob("*.patch")), ids=lambda patch: patch.stem)
def test_the_patch_applies_and_says_what_it_is_for(patch: Path) -> None:
    bug = Bug.read(patch)
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, check=True)
    rules = {int(word) for word in bug.caught_by.split() if word.isdigit()}
    assert bug.words.endswith(".")
    assert rules <= RULES.keys()
    assert rules or bug.needs_hash_seeds


def test_there_are_enough_of_them() -> None:
    assert len(bugs()) >= 20


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(name: str) -> None:
    [bug] = bugs([name])
    finding = found(bug, 30, all_of_them=False)
    assert finding.by, bug.words
    assert finding.by.keys() <= {*(f"rule {number}" for number in RULES), "another trace under another PYTHONHASHSEED"}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    finding = found(None, 5)
    assert (finding.worlds, finding.by) == (5, {})
