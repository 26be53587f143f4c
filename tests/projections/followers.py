"""Processes that follow a log by a script and tell each batch by a line, and are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def environment() -> dict[str, str]:
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}


def killed_after(lines: int, script: str, *arguments: str) -> bool:
    """Whether it was killed before it was done: after so many lines, in whatever came next."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.kill()
    assert "" not in told or "done\n" in told, "it failed"
    return "done\n" not in told
