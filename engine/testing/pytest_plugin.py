"""Fixtures for pytest (docs/guides/testing.md). pytest loads this module by itself wherever stepfold is installed.

    stepfold_memory(client)                puts a client on a fresh log in memory until the test ends
    stepfold_virtual(client, main)         the same, runs `await main()` beside a worker in virtual time, then replays each run
    stepfold_replay(client, files)         runs today's code over exported histories

Every pytest session loads this module, so it does nothing until a test uses a fixture.
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
    """The type of the fixture `stepfold_virtual`."""

    def __call__(self, client: Client, main: Callable[[], Coroutine[Any, Any, T]], *, start_ms: int = START_MS) -> T: ...


Memory = Callable[[Client], Client]
ReplayFiles = Callable[[Client, Iterable[Any]], None]
"""The type of the fixture `stepfold_replay`. It takes a client with the workflows, and paths or open binary files."""


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
    """`stepfold_virtual(client, main)` returns the result of `await main()`, run beside a worker of the client in virtual time.

    The client gets a fresh log in memory until the test ends. After `main` the fixture replays the code of each run over its
    history: the test fails if the code does not repeat itself. `start_ms`: the date at which virtual time begins.
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
    """`stepfold_replay(client, files)` fails the test unless today's code agrees with these exported histories.

    `files`: paths or open binary files, as `stepfold run export` writes them. The replay executes no step. An empty `files`
    fails the test, too.
    """

    def replay_all(client: Client, files: Iterable[Any]) -> None:
        if _replay(client, files) == 0:
            pytest.fail("stepfold_replay needs a file", pytrace=False)

    return replay_all


async def _histories(client: Client) -> list[bytes]:
    """The exports of all runs that the client's worker has served, except quarantined ones, whose code is known to differ."""
    from stepfold.projections.audit import export_run

    exports: list[bytes] = []
    reader = client.log.reader(0, 0)
    for run_id in dict.fromkeys(record.key for record in await reader.read(sys.maxsize) if record.key != CLAIM_KEY):
        with contextlib.suppress(RunNotFound):  # only a signal has come for this id, and no start
            if (await client.run(run_id).status()).state not in ("pending", "quarantined"):
                export = io.BytesIO()
                await export_run(client.log, run_id, export)
                exports.append(export.getvalue())
    return exports


def _replay(client: Client, files: Iterable[Any]) -> int:
    """The number of histories. Fails the test if one of them disagrees with the code."""
    from stepfold.projections.audit import replay

    replays = [replay(file, client) for file in files]
    if wrong := [one.message for one in replays if not one.ok]:
        pytest.fail("replayed over its history, the code behaves differently:\n" + "\n".join(wrong), pytrace=False)
    return len(replays)
