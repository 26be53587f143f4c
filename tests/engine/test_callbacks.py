"""Callbacks: an id is handed out, and somebody outside answers by it, once; or time runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from eventually import eventually
from local_logs import NewLog
from one_run import LIMIT_S, history, outcome, virtual_outcome
from pydantic import BaseModel, Field
from virtually import virtually

from stepfold import (
    CallbackFailed,
    CallbackIdInvalid,
    CallbackTimedOut,
    Client,
    Context,
    InputInvalid,
    PayloadTooLarge,
    Retry,
    Run,
    RunNotFound,
    Step,
    StepFailed,
    WorkflowFailed,
    current_step,
)
from stepfold.drivers import MemoryDriver
from stepfold.log import Ack, Entry
from stepfold.operations.callback import CallbackId
from stepfold.testing import run_virtual, virtual_clock


class Review(BaseModel):
    by: str
    stars: int = 0


def handing_out(ids: list[str], **options: Any) -> Any:
    """A body that puts the id of its callback into `ids` and awaits the answer."""

    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review", **options)
        if callback.id not in ids:
            ids.append(callback.id)
        return await callback

    return body


def catching(ids: list[str], **options: Any) -> Any:
    """The same; the run returns the kind of the callback's time-out, and after how many seconds it came."""

    async def body(ctx: Context[Any], step: Step) -> Any:
        before = ctx.now()
        try:
            return await handing_out(ids, **options)(ctx, step)
        except CallbackTimedOut as error:
            return [error.kind, (ctx.now() - before).total_seconds()]

    return body


async def started(client: Client, body: Any, run_id: str = "r") -> Run[Any]:
    return await client.start_workflow(client.workflow(id="w")(body), run_id=run_id)


async def first(ids: list[str]) -> str:
    async def there() -> bool:
        return bool(ids)

    await eventually(there)
    return ids[0]


async def test_an_answer_reaches_the_code(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids))
        callback_id = await first(ids)
        assert (await run.status()).waiting_on == ["callback 'review'"]
        assert await client.complete_callback(callback_id, {"stars": 5})
        assert await run.result(LIMIT_S) == {"stars": 5}
    assert [event.type for event in await history(client)][1:3] == ["callback-created", "callback-completed"]


async def test_an_id_says_where_the_callback_is_and_cannot_be_guessed(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        await started(client, handing_out(ids), "a")
        await client.start_workflow("w", run_id="b")

        async def both() -> bool:
            return len(ids) == 2

        await eventually(both)
    parsed = sorted(map(CallbackId.parse, ids))
    assert [one[:2] for one in parsed] == [("a", "review"), ("b", "review")]
    assert len({one.nonce for one in parsed}) == 2 and all(len(one.nonce) >= 32 for one in parsed)
    assert not set("".join(ids)) & set("=+/")


async def test_an_answer_may_come_before_the_code_awaits_it(client: Client) -> None:
    ids: list[str] = []

    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review")
        ids.append(callback.id)
        await step.wait_for_signal("go", signal="go")
        return [await callback, await callback]

    async with client.worker():
        run = await started(client, body)
        assert await client.complete_callback(await first(ids), 1)
        await run.signal("go")
        assert await run.result(LIMIT_S) == [1, 1]


@pytest.mark.parametrize("good_first", [True, False])
async def test_of_two_answers_the_first_counts(client: Client, good_first: bool) -> None:
    ids: list[str] = []

    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review")
        ids.append(callback.id)
        await step.wait_for_signal("go", signal="go")
        try:
            return await callback
        except CallbackFailed as error:
            return [error.step_id, error.type, error.message]

    async with client.worker():
        run = await started(client, body)
        callback_id = await first(ids)
        answers = [client.complete_callback(callback_id, "good"), client.fail_callback(callback_id, "bad", "Refused")]
        counted = [await answer for answer in (answers if good_first else reversed(answers))]
        assert counted == [True, False]
        assert not await client.heartbeat_callback(callback_id)
        await run.signal("go")
        assert await run.result(LIMIT_S) == ("good" if good_first else ["review", "Refused", "bad"])
        assert not await client.complete_callback(callback_id, "after the end of the run")


async def test_a_failure_that_the_code_does_not_catch_fails_the_run(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids))
        assert await client.fail_callback(await first(ids), "no time")
        with pytest.raises(WorkflowFailed) as failed:
            await run.result(LIMIT_S)
    assert failed.value.error.type == "CallbackFailed"
    assert failed.value.error.message == "callback 'review' has failed: CallbackFailed: no time"


async def test_a_forged_id_does_not_count(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids))
        true = CallbackId.parse(await first(ids))
        for forged in (true._replace(nonce="0" * 32), true._replace(step_id="another")):
            assert not await client.complete_callback(str(forged), "forged")
            assert not await client.heartbeat_callback(str(forged))
        assert await client.complete_callback(str(true), "true")
        assert await run.result(LIMIT_S) == "true"


async def test_an_id_of_nothing_is_an_error(client: Client) -> None:
    async with client:
        for text in ("", "x", "not an id", cast(str, 5)):
            with pytest.raises(CallbackIdInvalid, match="is not the id of a callback"):
                await client.complete_callback(text)
        with pytest.raises(RunNotFound):
            await client.heartbeat_callback(str(CallbackId("nobody", "review", "0" * 32)))


async def test_answers_are_checked_before_they_are_written(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids))
        callback_id = await first(ids)
        with pytest.raises(InputInvalid, match="the data of the callback"):
            await client.complete_callback(callback_id, object())
        with pytest.raises(PayloadTooLarge):
            await client.complete_callback(callback_id, "x" * 1_000_000)
        with pytest.raises(ValueError, match="is not the type of an error"):
            await client.fail_callback(callback_id, "message", "")
        with pytest.raises(ValueError, match="is not a text"):
            await client.fail_callback(callback_id, "x" * 10_001)
        data = {"at the call": True}
        answer = client.complete_callback(callback_id, data)
        data.clear()
        assert await answer
        assert await run.result(LIMIT_S) == {"at the call": True}


async def test_data_are_made_by_the_schema(client: Client) -> None:
    ids: list[str] = []
    got: list[Any] = []

    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review", schema=Review)
        ids.append(callback.id)
        review = await callback
        got.append(review)
        second = await step.callback("review", schema=Review)
        ids.append(second.id)
        try:
            await second
        except InputInvalid as error:
            return [review.stars, list(error.errors[0]["loc"])]

    async with client.worker():
        run = await started(client, body)
        assert await client.complete_callback(await first(ids), Review(by="ada", stars=4))

        async def asked_again() -> bool:
            return len(ids) == 2

        await eventually(asked_again)
        assert CallbackId.parse(ids[1]).step_id == "review#2"
        assert await client.complete_callback(ids[1], {"stars": 1})
        assert await run.result(LIMIT_S) == [4, ["by"]]
    assert got == [Review(by="ada", stars=4)]


async def test_a_schema_that_makes_a_value_anew_quarantines_the_run(client: Client) -> None:
    class Made(BaseModel):
        id: UUID = Field(default_factory=uuid4)

    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids, schema=Made))
        assert await client.complete_callback(await first(ids), {})

        async def quarantined() -> bool:
            return (await run.status()).state == "quarantined"

        await eventually(quarantined)
        assert "the data of callback 'review' do not fix `id`" in str((await run.status()).error)


def test_nobody_answers_in_time() -> None:
    async def body(ctx: Context[Any], step: Step) -> Any:
        before = ctx.now()
        callback = await step.callback("review", timeout="2d")
        try:
            return await callback
        except CallbackTimedOut as error:
            return [error.step_id, error.kind, (ctx.now() - before).total_seconds()]

    assert virtual_outcome(body) == ["review", "timeout", 2 * 86_400]
    assert issubclass(CallbackTimedOut, TimeoutError)


def test_heartbeats_put_the_end_off_and_their_silence_ends_it() -> None:
    async def body(ctx: Context[Any], step: Step) -> Any:
        before = ctx.now()
        callback = await step.callback("review", timeout="2d", heartbeat="1h")
        ids.append(callback.id)
        try:
            return await callback
        except CallbackTimedOut as error:
            return [error.kind, round((ctx.now() - before).total_seconds())]

    async def main(client: Client) -> Any:
        async with client.worker():
            run = await started(client, body)
            callback_id = await first(ids)
            beats: list[bool] = []
            for _ in range(3):
                await asyncio.sleep(3000)
                beats.append(await client.heartbeat_callback(callback_id))
            return [await run.result("365d"), beats, await client.heartbeat_callback(callback_id)]

    ids: list[str] = []
    result, beats, late = virtually(main)
    assert result[0] == "heartbeat" and abs(result[1] - 3 * 3000 - 3600) <= 1
    assert beats == [True] * 3 and not late


class Skewed(MemoryDriver):
    """A log whose users' clocks are `off_ms` ahead of its own."""

    off_ms = 0

    def now(self) -> int:
        return super().now() + self.off_ms


def timed_out(off_ms: int, beats: int, every_s: float, **options: Any) -> Any:
    """The kind of a callback's time-out, and after how many seconds it came: on a worker whose clock is `off_ms` ahead of the
    log's, after some heartbeats, all of which count.
    """

    async def main() -> Any:
        driver = Skewed(clock=virtual_clock)
        driver.off_ms = off_ms
        client = Client(driver=driver)
        async with client, client.worker():
            run = await started(client, catching(ids, **options))
            callback_id = await first(ids)
            for _ in range(beats):
                await asyncio.sleep(every_s)
                assert await client.heartbeat_callback(callback_id)
            return await run.result("365d")

    ids: list[str] = []
    return run_virtual(main())


@pytest.mark.parametrize("off_ms", [-5_000_000, 5_000_000])
def test_silence_is_measured_by_the_log_whatever_the_clock_of_the_owner_says(off_ms: int) -> None:
    kind, lasted_s = timed_out(off_ms, 3, 3000, heartbeat="1h")
    assert kind == "heartbeat" and abs(lasted_s - 3 * 3000 - 3600) <= 1


@pytest.mark.parametrize("off_ms", [-5_000_000, 0, 5_000_000])
def test_heartbeats_do_not_put_the_time_out_off_whatever_the_clock_of_the_owner_says(off_ms: int) -> None:
    kind, lasted_s = timed_out(off_ms, 5, 600, timeout="1h", heartbeat="30m")
    assert kind == "timeout" and abs(lasted_s - 3600) <= 1


def test_a_heartbeat_just_before_the_end_of_the_silence_leaves_it_a_timer() -> None:
    class Late(MemoryDriver):
        """Somebody's heartbeat comes to the log just before the first decision that there was none."""

        client: Client
        late = 0

        async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
            if not self.late and any(b'"callback-timed-out"' in value for _, value in entries):
                self.late += 1
                assert await self.client.heartbeat_callback(ids[0])
            return await super().append(partition, entries)

    async def main() -> Any:
        driver = Late(clock=virtual_clock)
        driver.client = Client(driver=driver)
        async with driver.client as client, client.worker():
            run = await started(client, catching(ids, heartbeat="1h"))
            return [await run.result("365d"), driver.late]

    ids: list[str] = []
    (kind, lasted_s), late = run_virtual(main())
    assert late == 1 and kind == "heartbeat" and abs(lasted_s - 2 * 3600) <= 6


def test_a_heartbeat_without_a_heartbeat_time_out_counts_and_changes_nothing() -> None:
    ids: list[str] = []

    async def main(client: Client) -> Any:
        async with client.worker():
            run = await started(client, handing_out(ids, timeout="1h"))
            assert await client.heartbeat_callback(await first(ids))
            return await run.result("365d")

    with pytest.raises(WorkflowFailed, match="nobody answered in time"):
        virtually(main)


def test_a_time_out_of_the_codes_own_leaves_the_callback_open() -> None:
    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review")
        ids.append(callback.id)
        missed = 0
        while True:
            try:
                async with asyncio.timeout(60):
                    return [missed, await callback]
            except TimeoutError:
                missed += 1

    async def main(client: Client) -> Any:
        async with client.worker():
            run = await started(client, body)
            callback_id = await first(ids)
            await asyncio.sleep(150)
            assert await client.complete_callback(callback_id, "late, and in time")
            return await run.result("1d")

    ids: list[str] = []
    assert virtually(main) == [2, "late, and in time"]


async def test_callbacks_side_by_side(client: Client) -> None:
    ids: list[str] = []

    async def body(ctx: Context[Any], step: Step) -> Any:
        callbacks = [await step.callback(name) for name in "abc"]
        ids.extend(callback.id for callback in callbacks)
        found = await asyncio.gather(*callbacks, callbacks[0], return_exceptions=True)
        return [str(one) for one in found]

    async with client.worker():
        run = await started(client, body)
        await first(ids)
        assert await client.complete_callback(ids[2], 3)
        assert await client.fail_callback(ids[1], "two", "Error")
        assert await client.complete_callback(ids[0], 1)
        assert await run.result(LIMIT_S) == ["1", "callback 'b' has failed: Error: two", "3", "1"]


async def test_a_callback_that_the_code_never_awaits(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is nobody's; the run ends without it, and says nothing of it."""
    ids: list[str] = []

    async def body(ctx: Context[Any], step: Step) -> Any:
        ids.extend([(await step.callback(name)).id for name in ("answered", "open")])
        await step.wait_for_signal("go", signal="go")
        return "done"

    async with client.worker():
        run = await started(client, body)
        assert await client.fail_callback(await first(ids), "nobody hears this")
        await run.signal("go")
        assert await run.result(LIMIT_S) == "done"
    cancelled = [event.step_id for event in await history(client) if event.type == "step-cancelled"]
    assert cancelled == ["open"]
    assert not caplog.records


async def test_a_cancelled_run_leaves_its_await(client: Client) -> None:
    ids: list[str] = []
    async with client.worker():
        run = await started(client, handing_out(ids))
        callback_id = await first(ids)
        await run.cancel()

        async def over() -> bool:
            return (await run.status()).state == "cancelled"

        await eventually(over)
        assert not await client.complete_callback(callback_id, "too late")


async def test_the_id_stays_the_same_for_the_next_worker(new_log: NewLog) -> None:
    """Also its heartbeats count on, whoever owns the run."""
    ids: list[str] = []
    seen: set[str] = set()

    async def body(ctx: Context[Any], step: Step) -> Any:
        callback = await step.callback("review", timeout="1h", heartbeat="30m")
        seen.add(callback.id)
        ids.append(callback.id)
        return await callback

    client = Client(driver=new_log())
    async with client:
        async with client.worker():
            run = await started(client, body)
            callback_id = await first(ids)
        assert await client.heartbeat_callback(callback_id)
        async with client.worker():
            assert await client.heartbeat_callback(callback_id)
            assert await client.complete_callback(callback_id, "good")
            assert await run.result(LIMIT_S) == "good"
        assert not await client.complete_callback(callback_id, "late")
    assert seen == {callback_id}


async def test_the_submitter_gets_the_same_id_at_each_attempt(client: Client) -> None:
    submitted: list[str] = []

    async def submit(callback_id: str) -> None:
        submitted.append(callback_id)
        assert await client.heartbeat_callback(callback_id), "the callback is in the log before anybody has its id"
        if current_step().attempt < 5:
            raise OSError("not there yet")
        assert await client.complete_callback(callback_id, "answered")

    async def body(ctx: Context[Any], step: Step) -> Any:
        return await step.wait_for_callback("review", submit, retry=Retry(5, backoff=0), timeout="1h")

    assert await outcome(client, body) == "answered"
    assert len(submitted) == 5 and len(set(submitted)) == 1
    found = await history(client)
    assert {event.step_id for event in found if event.type == "step-failed"} == {"review/submit"}
    assert [event.type for event in found].count("callback-created") == 1


async def test_a_submitter_that_fails_ends_the_callback(client: Client) -> None:
    submitted: list[str] = []

    def submit(callback_id: str) -> None:
        submitted.append(callback_id)
        raise OSError("nobody there")

    async def body(ctx: Context[Any], step: Step) -> Any:
        try:
            await step.wait_for_callback("review", submit, retry=Retry(1))
        except StepFailed as error:
            await step.wait_for_signal("go", signal="go")
            return error.error.message

    async with client.worker():
        run = await started(client, body)

        async def over() -> bool:
            return (await run.status()).waiting_on == ["signal 'go' (step 'go')"]

        await eventually(over)
        assert not await client.complete_callback(submitted[0])
        await run.signal("go")
        assert await run.result(LIMIT_S) == "nobody there"


def test_a_time_out_around_wait_for_callback_ends_the_callback() -> None:
    async def body(ctx: Context[Any], step: Step) -> Any:
        try:
            async with asyncio.timeout(60):
                await step.wait_for_callback("review", ids.append)
        except TimeoutError:
            await step.sleep("pause", "1h")
            return "given up"

    async def main(client: Client) -> Any:
        async with client.worker():
            run = await started(client, body)
            await asyncio.sleep(120)
            return [await client.complete_callback(await first(ids)), await run.result("1d")]

    ids: list[str] = []
    assert virtually(main) == [False, "given up"]


@pytest.mark.parametrize("options", [{"timeout": -1}, {"heartbeat": "soon"}])
async def test_a_bad_duration_is_an_error_at_the_call(client: Client, options: Any) -> None:
    async def body(ctx: Context[Any], step: Step) -> Any:
        with pytest.raises(ValueError, match="duration"):
            await step.callback("review", **options)
        with pytest.raises(TypeError, match="not a function"):
            await step.wait_for_callback("review", cast(Any, "submit"))
        with pytest.raises(TypeError, match="Retry"):
            await step.wait_for_callback("review", print, retry=cast(Any, 5))

    await outcome(client, body)
