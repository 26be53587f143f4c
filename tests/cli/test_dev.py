"""`stepfold dev` serves the log that the client names, with its options."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stepfold import Client
from stepfold.cli import dev


@pytest.mark.parametrize(
    ("url", "hint"), [("sqlite:///my%20orders.db?durability=normal", True), ("sqlite:///stepfold.db", False)]
)
def test_its_worker_gets_the_url_of_the_log(
    url: str, hint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[str] = []

    async def keep_running(app: str, url: str) -> None:
        given.append(url)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev, "_keep_running", keep_running)
    asyncio.run(dev._develop("app:client", Client(url)))  # pyright: ignore[reportPrivateUsage]  # without its child process
    assert given == [url]
    assert (f"--url '{url}'" in capsys.readouterr().err) == hint
