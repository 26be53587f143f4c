"""This repository as the tests see it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> list[str]:
    """Paths, from the root, of the files that are in git or would be after `git add`; a pattern's `*` crosses folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", *patterns],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return sorted(path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file())
