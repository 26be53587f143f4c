"""What only root may do to this machine for a test. All of it is undone when its block ends."""

from __future__ import annotations

import os
import random
import shutil
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
    missing = [program for program in ("mount", "unshare", "ip") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"there is no {' or '.join(missing)} on this machine")
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


class Network:
    """A network namespace with a cable to this machine, which has `host` at its end."""

    def __init__(self, name: str, host: str) -> None:
        self.host = host
        self.within = ["ip", "netns", "exec", name]

    def cut(self) -> None:
        """What is sent gets nowhere, and nobody is told."""
        run(*self.within, "ip", "link", "set", "cable", "down")

    def mend(self) -> None:
        run(*self.within, "ip", "link", "set", "cable", "up")


@contextmanager
def network() -> Generator[Network]:
    subnet = random.randrange(1, 255)
    name, host, guest = f"stepfold-{subnet}", f"10.231.{subnet}.1", f"10.231.{subnet}.2"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "cable", "netns", name)
        run("ip", "address", "add", f"{host}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        found = Network(name, host)
        run(*found.within, "ip", "address", "add", f"{guest}/30", "dev", "cable")
        found.mend()
        yield found
    finally:
        run("ip", "link", "delete", name, check=False)
        run("ip", "netns", "delete", name)
