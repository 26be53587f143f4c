"""What only root may do to this machine for a test. All of it is undone when its block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


def require_root() -> None:
    """Skip the test where it is not permitted; mark it with `pytest.mark.root`, and CI does not allow that."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs to be root on Linux")
    tried = run("unshare", "--mount", "--net", "true", check=False)
    if tried.returncode != 0:
        pytest.skip(f"root may not mount here, nor make networks: {tried.stderr.strip()}")


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)


@contextmanager
def mounted(where: Path, *arguments: str | Path) -> Generator[Path]:
    """Something mounted at `where`, which is made."""
    where.mkdir()
    run("mount", *arguments, where)
    try:
        yield where
    finally:
        run("umount", "--lazy", where)
