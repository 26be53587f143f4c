"""Branches side by side: `step.map`, `step.parallel` and `step.race`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from operator import itemgetter
from typing import Any

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome, virtual_outcome

from stepfold import (
    BatchFailed,
    BatchResult,
    Client,
    Completion,
    Context,
    NonRetryable,
    Step,
    WorkflowCancelled,
    WorkflowFailed,
)


async def halve(number: int) -> float:
    if number < 0:
        raise NonRetryable(f"{number} is below 0")
    return number / 2


async def halved(step: Step, number: int) -> float:
    return await step.run("halve", halve, number)


def statuses(result: BatchResult[Any]) -> list[str]:
    return [item.status for item in result.items]


async def test_each_item_is_a_branch_with_a_scope_of_its_own(client: Client) -> None:
    async def named_alike(step: Step, item: dict[str, str]) -> float:
        return await halved(step, 2)

    async def body(ctx: Context, step: Step) -> list[float]:
        done = await step.map("sizes", [4, 6, 8], halved)
        assert (done.succeeded, done.failed, done.reason, done.errors()) == (3, 0, "all-completed", [])
        assert [item.key for item in done.items] == ["0", "1", "2"]
        named = await step.map("named", [{"name": "a"}], named_alike, key=itemgetter("name"))
        assert named.items[0].key == "a"
        return done.results()

    assert await outcome(client, body) == [2, 3, 4]
    steps = [event.step_id for event in await history(client) if event.type == "step-completed"]
    assert steps == ["sizes/0/halve", "sizes/1/halve", "sizes/2/halve", "named/a/halve"]


async def test_a_failed_branch_does_not_stop_the_others(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> str:
        done = await step.map("sizes", [4, -1, 8], halved)
        assert statuses(done) == ["completed", "failed", "completed"]
        assert done.successes() == [2, 4]
        [error] = done.errors()
        assert error is done.items[1].error
        with pytest.raises(BatchFailed, match="of the 3 branches of 'sizes' 1 failed and 0 did not end; branch '1'") as failed:
            done.results()
        assert failed.value.__cause__ is error
        return str(error)

    assert "-1 is below 0" in await outcome(client, body)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_at_most_so_many_branches_run_at_a_time(concurrency: int) -> None:
    running: list[int] = []
    most: list[int] = []

    async def body(ctx: Context, step: Step) -> int:
        async def branch(step: Step, item: int) -> int:
            running.append(item)
            most.append(len(running))
            await step.sleep("nap", "1s" if item else "3s")
            running.remove(item)
            return item

        done = await step.map("naps", range(7), branch, concurrency=concurrency)
        assert done.results() == list(range(7))
        return max(most)

    assert virtual_outcome(body) == concurrency


@pytest.mark.parametrize(
    ("complete", "reason", "started"),
    [
        (Completion(tolerated_failures=1), "failures-exceeded", 3),
        (Completion(tolerated_failures=2), "failures-exceeded", 4),
        (Completion(tolerated_failures=3), "all-completed", 6),
        (Completion(tolerated_failure_ratio=0.5), "all-completed", 6),
        (Completion(tolerated_failure_ratio=0.3), "failures-exceeded", 3),
        (Completion(min_successful=1), "min-successful", 1),
        (Completion(min_successful=3), "all-completed", 6),
        (Completion(min_successful=3, tolerated_failures=0), "failures-exceeded", 2),
    ],
)
def test_a_batch_ends_early_as_told(complete: Completion, reason: str, started: int) -> None:
    async def body(ctx: Context, step: Step) -> list[str]:
        done = await step.map("sizes", [2, -1, -2, -3, 4, 6], halved, concurrency=1, complete=complete)
        assert done.reason == reason
        return statuses(done)

    outcomes = ["completed", "failed", "failed", "failed", "completed", "completed"]
    assert virtual_outcome(body) == outcomes[:started] + ["not-started"] * (6 - started)


async def test_an_early_end_cancels_what_runs_and_the_log_knows(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> list[str]:
        async def wait(step: Step) -> None:
            await step.wait_for_signal("never", signal="never")

        async def quick(step: Step) -> None:
            await step.sleep("nap", 0)

        done = await step.parallel("both", {"slow": wait, "quick": quick}, complete=Completion(min_successful=1))
        assert done.successes() == [None]
        with pytest.raises(BatchFailed, match="0 failed and 1 did not end"):
            done.results()
        await step.sleep("after", 0)  # else the end of the run says that it is over
        return [f"{item.key} {item.status}" for item in done.items]

    assert await outcome(client, body) == ["slow cancelled", "quick completed"]
    assert [event.step_id for event in await history(client) if event.type == "step-cancelled"] == ["both/slow/never"]


def test_a_branch_in_a_shield_leaves_it_before_an_early_end() -> None:
    async def body(ctx: Context, step: Step) -> list[str]:
        seen: list[str] = []

        async def shielded(step: Step) -> None:
            with step.shield():
                await step.sleep("one", "5s")
                seen.append("one")
                await step.sleep("two", "5s")
                seen.append("two")
            await step.sleep("three", "5s")
            seen.append("three")

        async def quick(step: Step) -> None:
            await step.sleep("nap", "1s")

        with step.shield():  # branches inherit it, and are cancelled all the same
            done = await step.parallel("both", [shielded, quick], complete=Completion(min_successful=1))
        return [*seen, *statuses(done)]

    assert virtual_outcome(body) == ["one", "two", "cancelled", "completed"]


async def test_the_first_branch_wins_a_race(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> list[Any]:
        async def nap(step: Step, seconds: float) -> float:
            await step.sleep("nap", seconds)
            return seconds

        async def no(step: Step) -> float:
            return await halved(step, -4)

        won = await step.race("first", {"slow": lambda step: nap(step, 3600), "quick": lambda step: nap(step, 0.01)})
        with pytest.raises(Exception, match="-4 is below 0"):
            await step.race("second", {"slow": lambda step: nap(step, 3600), "fails": no})
        await step.sleep("after", 0)
        return [*won]

    assert await outcome(client, body) == ["quick", 0.01]
    cancelled = [event.step_id for event in await history(client) if event.type == "step-cancelled"]
    assert cancelled == ["first/slow/nap", "second/slow/nap"]


async def test_a_cancelled_run_cancels_its_branches_which_clean_up(client: Client) -> None:
    cleaned: list[int] = []

    async def body(ctx: Context, step: Step) -> None:
        async def branch(step: Step, item: int) -> None:
            try:
                await step.wait_for_signal("never", signal="never")
            finally:
                with step.shield():
                    await step.run("clean", cleaned.append, item)

        await step.map("all", range(3), branch)

    workflow = client.workflow(id="w")(body)
    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await eventually(lambda: waits(client, 3))
        await run.cancel("enough")
        with pytest.raises(WorkflowCancelled, match="enough"):
            await run.result(LIMIT_S)
    assert sorted(cleaned) == [0, 1, 2]


async def waits(client: Client, count: int) -> bool:
    return len((await client.run("r").status()).waits) == count


async def test_a_branch_that_cancels_itself_has_failed_and_a_time_out_ends_all(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> list[str]:
        async def cancels_itself(step: Step) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await step.sleep("nap", 10)

        async def waits(step: Step) -> None:
            await step.wait_for_signal("never", signal="never")

        done = await step.parallel("one", [cancels_itself, lambda step: step.sleep("nap", 0)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await step.parallel("two", [waits, waits])
        return [*statuses(done), str(done.errors()[0])]

    assert await outcome(client, body) == ["failed", "completed", "branch '0' of 'one' was cancelled"]


async def test_a_new_worker_comes_to_the_same_result(new_log: NewLog) -> None:
    """A worker ends in the middle of the batch; the next one replays it and goes on."""

    def client_of() -> tuple[Client, Any]:
        client = Client(driver=new_log())

        @client.workflow(id="w")
        async def w(ctx: Context, step: Step) -> list[str]:
            async def branch(step: Step, item: int) -> int:
                if item % 50 == 7:
                    await step.wait_for_signal("go", signal=f"go-{item}")
                if item % 100 == 3:
                    return int(await halved(step, -item))
                return int(await halved(step, 2 * item))

            done = await step.map("all", range(300), branch, concurrency=20, complete=Completion(tolerated_failures=3))
            return [done.reason, *(f"{item.key} {item.status} {item.result}" for item in done.items)]

        return client, w

    client, w = client_of()
    async with client, client.worker():
        await client.start_workflow(w, run_id="r")
        await eventually(lambda: waits(client, 6))
    client, w = client_of()
    async with client, client.worker():
        for item in range(7, 300, 50):
            await client.run("r").signal(f"go-{item}")
        first = await client.run("r").result(LIMIT_S)
    assert first[0] == "all-completed"
    assert [line for line in first[1:] if "failed" in line] == ["3 failed None", "103 failed None", "203 failed None"]


def itself(one: Any) -> Any:
    return one


def at_x(_one: Any) -> str:
    return "@x"


MISUSED: dict[str, Callable[[Any], Any]] = {
    "ValueError: concurrency=0: give a whole number, 1 or more": lambda step: step.map("a", [1], halved, concurrency=0),
    "ValueError: two branches of 'a' have the key '1'": lambda step: step.map("a", [1, 1], halved, key=str),
    "ValueError: 1 .int. is not a key of 'a'": lambda step: step.map("a", [1], halved, key=itself),
    "ValueError: .*@a. is not a step id": lambda step: step.map("@a", [1], halved),
    "ValueError: .*@x. is not a step id": lambda step: step.map("a", [1], halved, key=at_x),
    "ValueError: step.map.'a'. was given more than 100,000 items": lambda step: step.map("a", count(), halved),
    "TypeError: step.map.'a'. was given None": lambda step: step.map("a", [1], None),
    "TypeError: branch 'b' of 'a' is 3": lambda step: step.parallel("a", {"b": 3}),
    "ValueError: step.race.'a'. was given no branch": lambda step: step.race("a", {}),
    "ValueError: min_successful=2 can never": lambda step: step.map("a", [1], halved, complete=Completion(min_successful=2)),
    "ValueError: Completion.tolerated_failures=-1": lambda step: Completion(tolerated_failures=-1),
    "ValueError: Completion.min_successful=0": lambda step: Completion(min_successful=0),
    "ValueError: Completion.tolerated_failure_ratio=1.1": lambda step: Completion(tolerated_failure_ratio=1.1),
}


@pytest.mark.parametrize("error", MISUSED)
def test_misuse_is_named(error: str) -> None:
    async def body(ctx: Context, step: Step) -> None:
        await MISUSED[error](step)

    with pytest.raises(WorkflowFailed, match=error):
        virtual_outcome(body)


def test_a_plain_function_is_not_a_branch() -> None:
    async def body(ctx: Context, step: Step) -> str:
        branches: Any = [itself]
        return str((await step.parallel("a", branches)).errors()[0])

    assert virtual_outcome(body).startswith("branch '0' of 'a' returned <stepfold")


def test_an_empty_batch_is_over_at_once() -> None:
    async def body(ctx: Context, step: Step) -> list[Any]:
        done = await step.map("none", list[int](), halved)
        return [done.reason, done.results()]

    assert virtual_outcome(body) == ["all-completed", []]
