"""One action on many runs, as a durable job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually

from stepfold import Client, Context, Step
from stepfold.client import bulk
from stepfold.client.bulk import BulkItem, Wanted, find_job, items_of, start_job, the_job
from stepfold.client.requests import Sender
from stepfold.errors import ConfigError, RunAlreadyExists, RunNotFound, WorkflowCancelled

ADA = Sender("ada", "spring cleaning")


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return client_of(tmp_path)


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="waits")
    async def waits(ctx: Context[int], step: Step) -> str:
        await step.wait_for_signal("go", signal="go")
        return "went"

    @client.workflow(id="lingers")
    async def lingers(ctx: Context[int], step: Step) -> None:
        with step.shield():
            await step.wait_for_signal("go", signal="go")

    return client


def cancel(*ids: str, asked: Sender = ADA) -> Wanted:
    return Wanted("cancel", {"ids": list(ids)}, asked)


async def begin(client: Client, count: int) -> list[str]:
    ids = [f"run-{number}" for number in range(count)]
    for run_id in ids:
        await client.start_workflow("waits", 0, run_id=run_id)
    return ids


async def asked_to_end(client: Client, run_id: str) -> list[tuple[str | None, str | None]]:
    """Who and why of each request to cancel that the run's history holds."""
    return [(event.by, event.reason) for event in await client.run(run_id).history() if event.type == "cancel-requested"]


async def test_a_job_asks_each_run_once_and_says_what_became_of_it(client: Client) -> None:
    async with client, client.worker():
        ids = await begin(client, 5)
        await client.run("run-1").signal("go")
        await client.run("run-1").result()
        await client.run("run-2").cancel("by hand", by="bob")
        with pytest.raises(WorkflowCancelled):
            await client.run("run-2").result()
        everything = [*ids[:4], "nobody"]
        run = await start_job(client, "job", cancel(*everything), everything, ["0:7"])
        assert await run.result(60) == {"asked": 2, "ended": 2, "unknown": 1}
        job = await the_job(client, "job")
        assert (job.wanted.count, job.done, job.wanted.by, job.wanted.position) == (5, 5, "ada", ["0:7"])
        assert await items_of(client, job, 0, 10) == [
            BulkItem("run-0", "asked", None),
            BulkItem("run-1", "ended", "it had ended: completed"),
            BulkItem("run-2", "ended", "it had ended: cancelled"),
            BulkItem("run-3", "asked", None),
            BulkItem("nobody", "unknown", "the log has no such run"),
        ]
        assert await asked_to_end(client, "run-0") == [ADA]
        assert await asked_to_end(client, "run-2") == [("bob", "by hand")]
        assert await asked_to_end(client, "run-4") == [], "it is not one of the selection"


async def test_a_run_that_was_asked_before_and_a_job_are_refused(client: Client) -> None:
    async with client, client.worker():
        lingering = await client.start_workflow("lingers", 0, run_id="lingering")
        await lingering.cancel("by hand")
        await start_job(client, "other", cancel("x"), ["x"], [])
        run = await start_job(client, "job", cancel("lingering", "other"), ["lingering", "other"], [])
        assert await run.result(60) == {"refused": 2}
        assert await items_of(client, await the_job(client, "job"), 0, 10) == [
            BulkItem("lingering", "refused", "it was asked to end before"),
            BulkItem("other", "refused", "it is a job of stepfold: abort that itself"),
        ]
        assert await asked_to_end(client, "lingering") == [(None, "by hand")]
        assert await asked_to_end(client, "other") == []


async def test_without_a_worker_a_job_is_pending_and_says_so(client: Client) -> None:
    async with client:
        ids = await begin(client, 2)
        run = await start_job(client, "job", cancel(*ids), ids, [])
        status = await run.status()
        assert (status.state, status.waits[0].kind) == ("pending", "worker")
        assert [one.outcome for one in await items_of(client, await the_job(client, "job"), 0, 10)] == [None, None]
        async with client.worker():
            await run.result(60)
        assert await asked_to_end(client, ids[1]) == [ADA]


async def test_a_large_selection_goes_in_parts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PART_IDS", 4)
    monkeypatch.setattr(bulk, "STEP_IDS", 3)
    async with client, client.worker():
        ids = await begin(client, 10)
        run = await start_job(client, "job", cancel(*ids), ids, [])
        assert await run.result(60) == {"asked": 10}
        job = await the_job(client, "job")
        assert [part.count for part in job.wanted.parts] == [4, 4, 2]
        assert [item.run_id for item in await items_of(client, job, 3, 4)] == ids[3:7]
        assert {item.outcome for item in await items_of(client, job, 0, 100)} == {"asked"}
        assert [len(await asked_to_end(client, run_id)) for run_id in ids] == [1] * 10


async def test_a_job_that_is_aborted_asks_nobody_more(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "STEP_IDS", 1)
    async with client, client.worker():
        ids = await begin(client, 50)
        run = await start_job(client, "job", cancel(*ids), ids, [])

        async def some() -> int:
            return (await the_job(client, "job")).done

        await eventually(some)
        await run.cancel("enough", by="bob")
        with pytest.raises(WorkflowCancelled, match="enough"):
            await run.result(60)
        items = await items_of(client, await the_job(client, "job"), 0, 100)
        outcomes = [item.outcome for item in items]
        done = outcomes.index(None)
        assert 0 < done < 50, "it ended in the middle"
        assert outcomes == ["asked"] * done + [None] * (50 - done)
        assert [len(await asked_to_end(client, run_id)) for run_id in ids] == [1] * done + [0] * (50 - done)


async def test_the_same_request_gives_the_same_job(client: Client) -> None:
    async with client:
        ids = await begin(client, 3)
        await start_job(client, "job", cancel(*ids), ids, ["0:1"])
        again = await start_job(client, "job", cancel(*ids), ids[:2], ["0:2"])
        assert (again.id, (await the_job(client, "job")).wanted.count) == ("job", 3)
        with pytest.raises(RunAlreadyExists):
            await start_job(client, "job", cancel(*ids, asked=Sender("ada", "another reason")), ids, ["0:1"])


async def test_a_job_whose_last_part_is_missing_does_not_exist(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the last record: parts ask nobody, and the request can be repeated."""
    monkeypatch.setattr(bulk, "PART_IDS", 2)
    async with client, client.worker():
        ids = await begin(client, 5)
        start = client.start_workflow
        written: list[str] = []

        def crashing(workflow: Any, data: Any, **options: Any) -> Any:
            written.append(str(options["run_id"]))
            if len(written) == 3:
                raise SystemError("killed")
            return start(workflow, data, **options)

        monkeypatch.setattr(client, "start_workflow", crashing)
        with pytest.raises(SystemError):
            await start_job(client, "job", cancel(*ids), ids, [])
        monkeypatch.undo()
        monkeypatch.setattr(bulk, "PART_IDS", 2)
        await asyncio.gather(*(client.run(part).result(60) for part in written[:2]))
        assert await find_job(client, "job") is None
        with pytest.raises(RunNotFound, match="no bulk job"):
            await the_job(client, "job")
        assert [await asked_to_end(client, run_id) for run_id in ids] == [[]] * 5
        run = await start_job(client, "job", cancel(*ids), ids[1:], [])
        assert await run.result(60) == {"asked": 4}
        assert await asked_to_end(client, ids[0]) == [], "the snapshot of the repeat counts"


async def test_a_part_with_other_ids_than_the_job_names_fails_the_job(client: Client) -> None:
    async with client:
        ids = await begin(client, 2)
        await start_job(client, "job", cancel(ids[0]), [ids[0]], [])
        job = await the_job(client, "job")
        wanted = job.wanted.model_copy(update={"parts": [job.wanted.parts[0].model_copy(update={"digest": "other"})]})
        workflow = bulk.built_in(client).find(bulk.JOB, None)
        assert workflow is not None
        forged = await client.start_workflow(workflow, wanted, run_id="forged")
        async with client.worker():
            with pytest.raises(Exception, match="does not hold the run ids of this job"):
                await forged.result(60)


async def test_its_workflows_are_nobody_elses(client: Client) -> None:
    with pytest.raises(ConfigError, match="stepfold's own"):

        @client.workflow(id="@bulk")
        async def mine(ctx: Context[int], step: Step) -> None: ...

    async with client:
        with pytest.raises(ConfigError, match="stepfold's own"):
            await client.start_workflow("@bulk", {})
    assert [one.id for one in client.registry] == ["waits", "lingers"]
