"""Fixtures for pytest (docs/guides/testing.md). pytest loads this module by itself wherever stepfold is installed.

    stepfold_memory(client)                puts a client on a fresh log in memory until the test ends
    stepfold_virtual(client, main)         the same, runs `await main()` beside a worker in virtual time, then replays each run
    stepfold_replay(client, files)         runs today's code over exported histories

It runs as part of every pytest session of those who have stepfold installed, so it does nothing before a fixture is asked for.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Protocol, TypeVar

import pytest

from ..client.client import Client
from ..errors import RunNotFound
from ..log import CLAIM_KEY, Log
from .virtual import START_MS, run_virtual

T = TypeVar("T")


class InVirtualTime(Protocol):
    """The fixture `stepfold_virtual`."""

    def __call__(self, client: Client, main: Callable[[], Coroutine[Any, Any, T]], *, start_ms: int = START_MS) -> T: ...


Memory = Callable[[Client], Client]
ReplayFiles = Callable[[Client, Iterable[Any]], None]
"""Of the fixture `stepfold_replay`: a client with the workflows, and paths or open binary files."""


@pytest.fixture
def stepfold_memory() -> Generator[Memory]:
    """`stepfold_memory(client)` puts the client on a fresh log in memory, until the test ends."""
    before: list[tuple[Client, Log]] = []

    def on_memory(client: Client) -> Client:
        before.append((client, client.log))
        client.log = Client("memory://").log
        return client

    yield on_memory
    for client, log in reversed(before):
        client.log = log


@pytest.fixture
def stepfold_virtual(stepfold_memory: Memory) -> InVirtualTime:
    """`stepfold_virtual(client, main)` returns what `await main()` returns beside a worker of the client, in virtual time.

    The client gets a fresh log in memory until the test ends. At the end of `main` the code of each run is replayed over its
    history: the test fails for code that does not repeat itself. `start_ms`: the date at which virtual time begins.
    """

    def run(client: Client, main: Callable[[], Coroutine[Any, Any, T]], *, start_ms: int = START_MS) -> T:
        async def beside_a_worker() -> tuple[T, list[bytes]]:
            async with stepfold_memory(client):
                async with client.worker():
                    found = await main()
                return found, await _histories(client)

        found, histories = run_virtual(beside_a_worker(), start_ms=start_ms)
        _replay(client, map(io.BytesIO, histories))
        return found

    return run


@pytest.fixture
def stepfold_replay() -> ReplayFiles:
    """`stepfold_replay(client, files)` fails the test unless today's code does what these exported histories hold.

    `files`: paths or open binary files, as `stepfold run export` writes them. No step is executed. No file at all fails, too.
    """

    def replay_all(client: Client, files: Iterable[Any]) -> None:
        if _replay(client, files) == 0:
            pytest.fail("stepfold_replay was given no file", pytrace=False)

    return replay_all


async def _histories(client: Client) -> list[bytes]:
    """The export of each run that the client's worker has served. A quarantined run is left out: its code is known to differ."""
    from stepfold.projections.audit import export_run

    exports: list[bytes] = []
    reader = client.log.reader(0, 0)
    for run_id in dict.fromkeys(record.key for record in await reader.read(sys.maxsize) if record.key != CLAIM_KEY):
        with contextlib.suppress(RunNotFound):  # a signal that came for no run
            if (await client.run(run_id).status()).state not in ("pending", "quarantined"):
                export = io.BytesIO()
                await export_run(client.log, run_id, export)
                exports.append(export.getvalue())
    return exports


def _replay(client: Client, files: Iterable[Any]) -> int:
    """How many histories agree with the code. Fails the test if one does not."""
    from stepfold.projections.audit import replay

    replays = [replay(file, client) for file in files]
    if wrong := [one.message for one in replays if not one.ok]:
        pytest.fail("replayed over its history, the code does something else:\n" + "\n".join(wrong), pytrace=False)
    return len(replays)
