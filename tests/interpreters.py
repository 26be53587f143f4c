"""The Pythons of this machine: what must be the same in every version is compared over those that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from repository import ROOT

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
THIS_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def interpreters() -> dict[str, str]:
    """The Pythons of this machine by version, as far as they start."""
    found = {THIS_VERSION: sys.executable}
    homes = [Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"]
    homes.append(Path("~/.local/share/uv/python").expanduser())
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}")]
        candidates += [str(path) for home in homes for path in sorted(home.glob(f"*{version}.*/bin/python{version}"))]
        for candidate in filter(None, candidates):
            says = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            tried = subprocess.run(says, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
            if tried.stdout.strip() == version:
                found.setdefault(version, candidate)
    return found


def recorded(version: str, name: str) -> bytes | None:
    """What a Python said that is not on this machine itself, if CI has let it speak (see .ci/next)."""
    folder = os.environ.get("STEPFOLD_NEXT")
    file = ROOT / folder / version / name if folder else None
    return file.read_bytes() if file is not None and file.exists() else None
