"""Folders to type commands in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell, shell_in


@pytest.fixture(autouse=True)
def _hangup_is_heard() -> Iterator[None]:
    """Under nohup it is ignored, which the processes that we start inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A folder of its own, in which no worker runs."""
    with shell_in(tmp_path) as shell:
        yield shell


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A folder in which a worker serves the shop."""
    with shell_in(tmp_path_factory.mktemp("served")) as shell:
        shell.start("worker", "shop:client")
        yield shell
