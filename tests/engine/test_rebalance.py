"""Partitions that go from a worker that is alive to another: nothing is lost, and nothing is counted as lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from eventually import eventually
from one_run import LIMIT_S

from stepfold import Client, Context, LogUnavailable, Run, Step, current_step
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.log import CLAIM_KEY, Membership
from stepfold.testing.suite import checkpoints_of

RUNS = 8


class Steps:
    """Workflows whose one step runs until it is let go, for all workers of a test."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.begun: list[str] = []
        self.go_on = asyncio.Event()

    async def hang(self) -> str:
        run_id = current_step().run_id
        self.begun.append(run_id)
        self.running.add(run_id)
        try:
            await self.go_on.wait()
        finally:
            self.running.discard(run_id)
        return "done"

    def register(self, client: Client, at_most_once: bool) -> Client:
        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> str:
            return await step.run("hang", self.hang, at_most_once=at_most_once)

        return client


@asynccontextmanager
async def a_worker_with_runs(client: Client, steps: Steps, grace: float) -> AsyncGenerator[list[Run[Any]]]:
    """Each run's step runs."""
    async with client.worker(grace=grace):
        runs = [await client.start_workflow("w", run_id=f"run-{number}") for number in range(RUNS)]
        await eventually(lambda: all_run(steps))
        yield runs


async def all_run(steps: Steps) -> bool:
    return len(steps.running) == RUNS


async def owners(client: Client) -> set[str | None]:
    """Who owns the partitions, by the log."""
    log = client.log
    claims = [(await log.find(partition, [CLAIM_KEY]))[-1] for partition in range(log.partitions)]
    return {orjson.loads(claim.value)["owner"] for claim in claims}


async def types(runs: list[Run[Any]]) -> set[str]:
    return {event.type for run in runs for event in await run.history()}


def clients(folder: Path) -> tuple[Client, Client]:
    first, second = (Client(driver=SQLiteDriver(folder / "runs.db", partitions=2)) for _ in range(2))
    return first, second


async def test_steps_that_run_are_finished_before_another_worker_has_their_partition(tmp_path: Path) -> None:
    steps = Steps()
    first, second = (steps.register(client, at_most_once=True) for client in clients(tmp_path))
    async with a_worker_with_runs(first, steps, grace=LIMIT_S) as runs, second.worker() as worker:
        await eventually(lambda: has_a_share(worker.owners))
        assert len(await owners(first)) == 1, "the second waits for its share"
        steps.go_on.set()
        assert {await run.result(LIMIT_S) for run in runs} == {"done"}
        await eventually(lambda: both_own(first))
        assert await types(runs) == {"started", "attempt-started", "step-completed", "completed"}
    assert sorted(steps.begun) == sorted(run.id for run in runs)


async def has_a_share(share: dict[int, Any]) -> bool:
    return len(share) == 1


async def both_own(client: Client) -> bool:
    found = await owners(client)
    return len(found) == 2 and None not in found


async def test_what_does_not_end_in_time_is_abandoned_and_not_counted_as_lost(tmp_path: Path) -> None:
    steps = Steps()
    first, second = (steps.register(client, at_most_once=False) for client in clients(tmp_path))
    async with a_worker_with_runs(first, steps, grace=0.05) as runs, second.worker():
        await eventually(lambda: both_own(first))
        await eventually(lambda: all_run(steps))
        steps.go_on.set()
        assert {await run.result(LIMIT_S) for run in runs} == {"done"}
        assert await types(runs) == {"started", "step-completed", "completed"}
    assert len(steps.begun) > RUNS, "the steps of one partition ran again"


async def test_a_partition_that_comes_back_is_owned_again(tmp_path: Path) -> None:
    steps = Steps()
    first, second = (steps.register(client, at_most_once=False) for client in clients(tmp_path))
    async with a_worker_with_runs(first, steps, grace=LIMIT_S) as runs:
        async with second.worker() as worker:
            await eventually(lambda: has_a_share(worker.owners))
        steps.go_on.set()
        assert {await run.result(LIMIT_S) for run in runs} == {"done"}
        later = [await first.start_workflow("w", run_id=f"later-{number}") for number in range(RUNS)]
        assert {await run.result(LIMIT_S) for run in later} == {"done"}
        assert await types(runs) == {"started", "step-completed", "completed"}
    assert sorted(steps.begun) == sorted(run.id for run in [*runs, *later])


async def test_what_the_owner_before_stored_at_last_is_removed(tmp_path: Path) -> None:
    """The next one has read what is stored before that, and waits."""
    steps = Steps()
    first, second = (steps.register(client, at_most_once=False) for client in clients(tmp_path))
    async with a_worker_with_runs(first, steps, grace=LIMIT_S) as runs, second.worker() as worker:
        worker.settings = replace(worker.settings, checkpoint_s=0.01)
        await eventually(lambda: has_loaded(worker.owners))
        steps.go_on.set()
        assert {await run.result(LIMIT_S) for run in runs} == {"done"}
        await eventually(lambda: both_own(first))
        for number in range(RUNS):
            await (await first.start_workflow("w", run_id=f"later-{number}")).result(LIMIT_S)
        (partition,) = worker.owners

        async def one_marker() -> bool:
            stored = await checkpoints_of(second.log, partition)
            return [key for key in stored if key.endswith("/m")] == [f"{worker.owners[partition].claim}/m"]

        await eventually(one_marker)


async def has_loaded(share: dict[int, Any]) -> bool:
    return any(owner.state is not None for owner in share.values())


async def test_a_worker_whose_membership_ends_joins_again(request: pytest.FixtureRequest) -> None:
    class Ending:
        def __init__(self, membership: Membership) -> None:
            self.membership = membership

        def __getattr__(self, name: str) -> Any:
            return getattr(self.membership, name)

        async def assigned(self) -> frozenset[int]:
            raise LogUnavailable("this member is no longer known")

    class Log(MemoryDriver):
        joined = 0

        async def join(self, member: str) -> Any:
            self.joined += 1
            if self.joined == 2:
                raise LogUnavailable("nor is anybody else")
            membership = await super().join(member)
            return membership if self.joined > 2 else Ending(membership)

    log = Log(request.node.name)
    client = Client(driver=log)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return await step.run("a", lambda: "served")

    async with client.worker():
        assert await (await client.start_workflow(w)).result(LIMIT_S) == "served"
    assert log.joined == 3


@pytest.mark.parametrize("error", [LogUnavailable("not now"), RuntimeError("a driver's bug")])
async def test_a_worker_that_cannot_retire_stops_all_the_same(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class Stubborn:
        def __init__(self, membership: Membership) -> None:
            self.membership = membership

        def __getattr__(self, name: str) -> Any:
            return getattr(self.membership, name)

        async def retire(self) -> None:
            raise error

    class Log(MemoryDriver):
        async def join(self, member: str) -> Any:
            return Stubborn(await super().join(member))

    log = Log(request.node.name)
    client = Client(driver=log)

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> str:
        return await step.run("a", lambda: "served")

    async with client:
        async with client.worker():
            assert await (await client.start_workflow(w)).result(LIMIT_S) == "served"
        assert await owners(client) == {None}
        async with client.worker():
            assert await (await client.start_workflow(w)).result(LIMIT_S) == "served"
    assert f"retiring: {error}" in caplog.text


async def test_what_cannot_be_given_up_at_once_is_given_up_later(tmp_path: Path) -> None:
    class Log(SQLiteDriver):
        refusals = 0

        async def append(self, partition: int, entries: Any) -> Any:
            if any(key == CLAIM_KEY and orjson.loads(value)["owner"] is None for key, value in entries):
                self.refusals += 1
                if self.refusals <= 2:
                    raise LogUnavailable("not now")
            return await super().append(partition, entries)

    steps = Steps()
    log = Log(tmp_path / "runs.db", partitions=2)
    first, second = (steps.register(Client(driver=driver), True) for driver in (log, SQLiteDriver(tmp_path / "runs.db")))
    async with a_worker_with_runs(first, steps, grace=LIMIT_S) as runs, second.worker() as worker:
        await eventually(lambda: has_a_share(worker.owners))
        steps.go_on.set()
        await eventually(lambda: both_own(first))
        assert log.refusals == 3
        assert {await run.result(LIMIT_S) for run in runs} == {"done"}
