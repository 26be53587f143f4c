"""`examples/order_saga.py`: an order of two children that undoes what it has done, over the death of its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from repository import ROOT

SAGA = ROOT / "examples" / "order_saga.py"
DONE = ["lamp: stock reserved", "lamp: charged 1900 cents", "lamp: courier booked"]
LAMP = ["order-lamp completed: parcel-lamp", "payment completed, shipping completed"]
BEFORE = ["piano: stock reserved", "piano: charged 250000 cents"]
UNDONE = ["payment-piano: refunded", "piano: stock released"]


def shown(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, SAGA, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if arguments else 0), done.stderr
    return done.stdout.splitlines()


def test_an_order_that_cannot_be_delivered_is_undone(tmp_path: Path) -> None:
    lines = shown(tmp_path)
    assert lines[:-2] == [*DONE, *LAMP, *BEFORE, *UNDONE]
    assert lines[-2].startswith("order-piano failed: ") and lines[-2].endswith("no courier carries 300 kg")
    assert lines[-1] == "payment completed, shipping failed"


def test_after_a_crash_it_undoes_the_rest(tmp_path: Path) -> None:
    assert shown(tmp_path, "crash") == [*DONE, *LAMP, *BEFORE]
    lines = shown(tmp_path)
    assert sorted(lines[:-2]) == sorted([*LAMP, *UNDONE])
    assert lines[-1] == "payment completed, shipping failed"
