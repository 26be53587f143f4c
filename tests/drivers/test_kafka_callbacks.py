# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The foreign producer is aiokafka's, which ships no types.
"""Callbacks on a real broker: answered by the client, and by anybody through the inbox."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from eventually import eventually

from stepfold import CallbackFailed, CallbackTimedOut, Client, Context, Retry, Run, Step, current_step
from stepfold.drivers.kafka import KafkaDriver
from stepfold.operations.callback import CallbackId

pytestmark = pytest.mark.kafka


async def ask(ctx: Context[Any], step: Step) -> Any:
    callback = await step.callback("review", **(ctx.input.data or {}))
    await step.wait_for_signal("go", signal="go")
    try:
        return await callback
    except CallbackFailed as error:
        return [error.type, error.message]
    except CallbackTimedOut as error:
        return error.kind


async def callback_id(client: Client, run: Run[Any]) -> str:
    """The id, as a reader of the log makes it."""
    found: list[Any] = []

    async def created() -> bool:
        found[:] = [event for event in await run.history() if event.type == "callback-created"]
        return bool(found)

    await eventually(created)
    return str(CallbackId(run.id, "review", found[0].nonce))


async def test_the_first_answer_counts_and_others_do_not(kafka_namespace: str) -> None:
    client = Client(kafka_namespace)
    client.workflow("ask")(ask)
    async with client.worker():
        for good_first in (True, False):
            run = await client.start_workflow("ask")
            asked = await callback_id(client, run)
            forged = str(CallbackId.parse(asked)._replace(nonce="0" * 32))
            assert not await client.complete_callback(forged, "forged")
            assert await client.heartbeat_callback(asked)
            answers = [client.complete_callback(asked, {"stars": 5}), client.fail_callback(asked, "no", "Refused")]
            assert [await answer for answer in (answers if good_first else reversed(answers))] == [True, False]
            await run.signal("go")
            assert await run.result() == ({"stars": 5} if good_first else ["Refused", "no"])
            assert not await client.heartbeat_callback(asked)


async def test_an_open_callback_outlives_its_worker(kafka_namespace: str) -> None:
    client = Client(kafka_namespace)
    client.workflow("ask")(ask)
    async with client:
        async with client.worker():
            run = await client.start_workflow("ask", {"timeout": "1h", "heartbeat": "30m"})
            asked = await callback_id(client, run)
        assert await client.heartbeat_callback(asked)
        assert await client.complete_callback(asked, 1)
        await run.signal("go")
        async with client.worker():
            assert await run.result() == 1


async def test_silence_ends_it(kafka_namespace: str) -> None:
    client = Client(kafka_namespace)
    client.workflow("ask")(ask)
    async with client.worker():
        silent = await client.start_workflow("ask", {"heartbeat": "10ms"})
        late = await client.start_workflow("ask", {"timeout": "10ms"})
        for run, kind in ((silent, "heartbeat"), (late, "timeout")):
            await run.signal("go")
            assert await run.result() == kind


async def test_a_retried_submitter_gets_one_id(kafka_namespace: str) -> None:
    client = Client(kafka_namespace)
    submitted: list[str] = []

    async def submit(callback_id: str) -> None:
        submitted.append(callback_id)
        if current_step().attempt < 5:
            raise OSError("not there yet")
        assert await client.complete_callback(callback_id, "answered")

    @client.workflow("submits")
    async def submits(ctx: Context[Any], step: Step) -> Any:
        return await step.wait_for_callback("review", submit, retry=Retry(5, backoff=0))

    async with client.worker():
        run = await client.start_workflow(submits)
        assert await run.result() == "answered"
    assert len(submitted) == 5 and len(set(submitted)) == 1


async def test_answers_through_the_inbox(kafka_namespace: str) -> None:
    """Forged, late and malformed ones go to the dead letters with the reason."""
    driver = KafkaDriver.from_url(kafka_namespace)
    client = Client(driver=driver)
    client.workflow("ask")(ask)
    producer = AIOKafkaProducer(bootstrap_servers=driver.bootstrap)
    await producer.start()

    async def put(**fields: Any) -> None:
        await producer.send_and_wait(driver.namespace.inbox, json.dumps({"type": "callback", **fields}).encode(), b"r")

    async with client.worker():
        runs = [await client.start_workflow("ask") for _ in range(2)]
        first, second = [await callback_id(client, run) for run in runs]
        forged = str(CallbackId.parse(first)._replace(nonce="0" * 32))
        await put(id=forged, data="forged")
        await put(id="no id", data=1)
        await put(id=first, heartbeat=True)
        await put(id=first, data={"stars": 5})
        await put(id=first, data="late")
        cloud = {"id": second, "error": {"type": "Refused", "message": "no"}}
        headers = [("ce_specversion", b"1.0"), ("ce_type", b"stepfold.callback"), ("ce_source", b"s"), ("ce_id", b"1")]
        for _ in range(2):  # the second is a repeat, and not a mistake
            await producer.send_and_wait(driver.namespace.inbox, json.dumps(cloud).encode(), b"r", headers=headers)
        letters: list[Any] = []

        async def told() -> bool:
            letters[:] = await driver.dead_letters()
            return len(letters) >= 3

        await eventually(told)  # before the runs end: then the reason of a late answer would be another
        for run in runs:
            await run.signal("go")
        assert [await run.result() for run in runs] == [{"stars": 5}, ["Refused", "no"]]
        reasons = sorted(letter.reason for letter in letters)
        assert len(reasons) == 3
        assert reasons[0].startswith("the callback is over") and reasons[1] == reasons[0]
        assert "'no id' is not the id of a callback" in reasons[2]
        again = [json.loads(letter.value) for letter in letters if letter.reason == reasons[0]]
        assert {"type": "callback", "id": forged, "data": "forged"} in again
    await producer.stop()
