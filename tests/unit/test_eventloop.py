"""Whose event loop a worker makes for itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from stepfold.worker import eventloop

UVLOOP = """
import asyncio

__version__ = "9.8"


class Loop(asyncio.SelectorEventLoop): ...


def new_event_loop():
    return Loop()
"""


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


@pytest.mark.parametrize(("source", "name"), [(UVLOOP, "uvloop 9.8"), ("import nowhere", "asyncio")])
def test_it_is_uvloops_where_that_is_installed_and_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str
) -> None:
    (tmp_path / "uvloop.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    assert eventloop.name() == name
    assert eventloop.run(module_of_the_loop()).partition(".")[0] == name.partition(" ")[0]
    sys.modules.pop("uvloop", None)
