"""`examples/progress.py`: an import whose progress is streamed and queried, over the death of its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from repository import ROOT

PROGRESS = ROOT / "examples" / "progress.py"
SHOWN = ["4 of 12", "8 of 12", "12 of 12", "completed", "last: {'done': 12, 'of': 12}", "batches: [0, 4, 8]"]


def shown(folder: Path, *arguments: str) -> list[str]:
    """The lines that it prints, but for states before the end: how many there are depends on which process was quicker."""
    done = subprocess.run([sys.executable, PROGRESS, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if arguments else 0), done.stderr
    return [line for line in done.stdout.splitlines() if line not in ("pending", "running", "waiting")]


def test_it_shows_the_progress(tmp_path: Path) -> None:
    assert shown(tmp_path) == SHOWN


def test_after_a_crash_it_goes_on_where_it_was(tmp_path: Path) -> None:
    before = shown(tmp_path, "crash")
    assert before in ([], SHOWN[:1])
    assert [*before, *shown(tmp_path)] == SHOWN
