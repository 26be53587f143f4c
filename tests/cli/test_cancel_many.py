"""`stepfold run cancel`, for one run and for many, with servers and workers as processes of their own."""

from __future__ import annotations

import asyncio
import re

import httpx
from eventually import eventually
from shell import Shell, lines_until

from stepfold import Client
from stepfold.client.bulk import find_job, the_job


def reviewed(shell: Shell, *ids: str) -> None:
    for run_id in ids:
        shell("run", "start", "reviewed", "--app", "shop:client", "--run-id", run_id)


def test_cancel_by_ids_and_by_options(shell: Shell) -> None:
    reviewed(shell, "a", "b", "c")
    shell("run", "start", "order", "--app", "shop:client", "--run-id", "other", "-d", '{"order_id": "1"}')
    preview = shell.json("run", "cancel", "--workflow", "reviewed", "--dry-run")
    assert (preview["count"], preview["would_ask"], preview["states"]) == (3, 3, {"pending": 3})
    assert "3 of 3 would be asked to end" in shell("run", "cancel", "--workflow", "reviewed", "--dry-run").stdout
    some = shell("run", "cancel", "a", "b", "nobody", "--why", "spring cleaning", "--by", "ada")
    job = some.stdout.strip()
    assert "3 runs, asked by a worker" in some.stderr
    assert shell.json("run", "show", job)["state"] == "pending", "no worker is there"
    shell("run", "cancel", "c", "--why", "this one", "--by", "bob")
    shell.start("worker", "shop:client")
    shell("run", "watch", job)
    assert shell.json("run", "show", job)["result"] == {"asked": 2, "unknown": 1}
    for run_id, who, why in (("a", "ada", "spring cleaning"), ("b", "ada", "spring cleaning"), ("c", "bob", "this one")):
        shell("run", "watch", run_id, code=1)
        asked = [event for event in shell.json("run", "history", run_id) if event["type"] == "cancel-requested"]
        assert [(event["by"], event["reason"]) for event in asked] == [(who, why)]
    ended = shell("run", "cancel", "--workflow", "reviewed", "--dry-run").stdout
    assert "0 of 3 would be asked to end" in ended
    assert "3 not, because they have ended: cancelled" in ended
    assert "no run matches" in shell("run", "cancel", "--workflow", "nobody's", code=3).stderr


def test_cancel_needs_either_ids_or_options(shell: Shell) -> None:
    reviewed(shell, "a")
    for wrong in ((), ("a", "--workflow", "reviewed"), ("--dry-run",)):
        assert "either by their ids, or by" in shell("run", "cancel", *wrong, code=2).stderr
    assert "--state nonsense" in shell("run", "cancel", "--state", "nonsense", code=2).stderr
    assert "stepfold's own" in shell("run", "start", "@bulk", code=2).stderr


async def test_a_worker_that_is_killed_in_the_middle_of_a_job_asks_each_run_once(shell: Shell) -> None:
    """The server and the workers are processes; the server has no worker of its own."""
    client = Client(f"sqlite:///{shell.folder}/stepfold.db")
    ids = [f"run-{number}" for number in range(2000)]
    async with client:
        for first in range(0, len(ids), 100):
            await asyncio.gather(*(client.start_workflow("reviewed", run_id=run_id) for run_id in ids[first : first + 100]))
        server = shell.start("serve", "--port", "0", "--url", client.log.url)
        address = re.search(r"http://\S+", lines_until(server, lambda line: "http://" in line)[-1])
        assert address
        async with httpx.AsyncClient(base_url=address[0], timeout=60) as browser:
            wanted = {"action": "cancel", "filter": {"workflow": "reviewed"}, "why": "spring cleaning", "by": "ada"}

            async def counted() -> bool:
                return (await browser.get("/v1/runs/count")).json()["count"] == len(ids)

            await eventually(counted)
            job_id = (await browser.post("/v1/bulk", json=wanted)).json()["id"]
            assert (await browser.get(f"/v1/bulk/{job_id}")).json()["state"] == "pending"
            worker = shell.start("worker", "shop:client", "--url", client.log.url)

            async def some() -> bool:
                return (await the_job(client, job_id)).done > 0

            await eventually(some)
            worker.kill()
            worker.wait()
            job = await find_job(client, job_id)
            assert job is not None
            assert 0 < job.done < len(ids), "it was killed in the middle"
            shell.start("worker", "shop:client", "--url", client.log.url)

            async def over() -> bool:
                job = (await browser.get(f"/v1/bulk/{job_id}")).json()
                return job["state"] == "completed" and job["states"] == {"cancelled": len(ids)}

            await eventually(over)
            shown = (await browser.get(f"/v1/bulk/{job_id}", params={"limit": 1000})).json()
            assert shown["outcomes"] == {"asked": len(ids), "ended": 0, "unknown": 0, "refused": 0, "open": 0}
        for first in range(0, len(ids), 100):
            histories = await asyncio.gather(*(client.run(run_id).history() for run_id in ids[first : first + 100]))
            asked = [[event for event in history if event.type == "cancel-requested"] for history in histories]
            assert [[(event.by, event.reason) for event in one] for one in asked] == [[("ada", "spring cleaning")]] * len(asked)
