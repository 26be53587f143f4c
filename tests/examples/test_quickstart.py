"""`examples/quickstart.py`: the program of the README's first screen, run as a user runs it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from repository import ROOT

QUICKSTART = ROOT / "examples" / "quickstart.py"


def test_it_is_the_program_of_the_readme() -> None:
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first is not None
    assert ast.dump(ast.parse(first[1])) == ast.dump(ast.parse(QUICKSTART.read_text()))


def test_it_says_the_same_when_it_is_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, QUICKSTART], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "payment-42 done\n"
    assert (tmp_path / "orders.db").exists()
