"""Spans of runs and attempts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from traced_worker import client_of

from stepfold import Client, Context, NonRetryable, Retry, Step, current_step
from stepfold.client.tracing import named
from stepfold.drivers import MemoryDriver
from stepfold.values.trace import Trace

SECRET = "4111 1111 1111 1111"
HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def provided(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    provider, exporter = TracerProvider(**options), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def shop(provider: object) -> Client:
    client = Client(driver=MemoryDriver(), tracing=provider)

    async def flaky() -> str:
        trace.get_current_span().set_attribute("of.user", 1)
        current_step().log.warning("calling")
        if current_step().attempt == 1:
            raise ConnectionError(SECRET)
        return "done"

    def plain() -> str:
        return format_trace_id(trace.get_current_span().get_span_context().trace_id)

    async def refuse() -> None:
        raise NonRetryable(SECRET)

    @client.workflow(id="order")
    async def order(ctx: Context[str], step: Step) -> str:
        ctx.log.warning("an order")
        await step.run("pay", flaky, retry=Retry(3, backoff="1ms"))
        await step.sleep("rest", "1ms")
        return await step.run("plain", plain)

    @client.workflow(id="refused")
    async def refused(ctx: Context[str], step: Step) -> None:
        await step.run("refuse", refuse)

    return client


def ids(span: ReadableSpan) -> tuple[int, int, int | None]:
    """Trace, span, and parent."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id, None if span.parent is None else span.parent.span_id


async def test_a_run_is_one_trace_with_a_span_for_each_attempt() -> None:
    provider, exporter = provided()
    client = shop(provider)
    async with client, client.worker():
        of_plain = await (await client.start_workflow("order", SECRET, run_id="r")).result()
    pay, again, plain, run = exporter.get_finished_spans()
    assert [one.name for one in (pay, again, plain, run)] == ["step pay", "step pay", "step plain", "run order"]
    trace_id, run_span, parent = ids(run)
    assert parent is None and of_plain == format_trace_id(trace_id)
    assert [ids(one)[::2] for one in (pay, again, plain)] == [(trace_id, run_span)] * 3
    assert pay.attributes == {
        "stepfold.run_id": "r",
        "stepfold.workflow": "order",
        "stepfold.step_id": "pay",
        "stepfold.attempt": 1,
        "of.user": 1,
        "error.type": "ConnectionError",
    }
    assert [one.status.status_code for one in (pay, again, run)] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.UNSET]
    assert run.attributes == {
        "stepfold.run_id": "r",
        "stepfold.workflow": "order",
        "stepfold.version": "1",
        "stepfold.outcome": "completed",
    }
    assert (run.start_time or 0) <= (run.end_time or 0)


async def test_spans_hold_no_payload_and_no_message() -> None:
    provider, exporter = provided()
    client = shop(provider)
    async with client, client.worker():
        for workflow in ("order", "refused"):
            run = await client.start_workflow(workflow, SECRET)
            await asyncio.gather(run.result(), return_exceptions=True)
    spans = exporter.get_finished_spans()
    assert len(spans) == 6 and SECRET not in "".join(one.to_json() for one in spans)
    assert spans[-1].attributes is not None and spans[-1].attributes["error.type"] == "NonRetryable"
    assert spans[-1].status.status_code is StatusCode.ERROR


async def test_a_start_within_a_span_belongs_to_its_trace() -> None:
    provider, exporter = provided()
    client = shop(provider)
    async with client, client.worker():
        with provider.get_tracer("users").start_as_current_span("request") as request:
            starting = client.start_workflow("order", "x")
        await (await starting).result()
    mine = request.get_span_context()
    *_, run = exporter.get_finished_spans()
    assert ids(run)[::2] == (mine.trace_id, mine.span_id)
    assert [link.context.span_id for link in run.links] == [mine.span_id]
    assert {ids(one)[0] for one in exporter.get_finished_spans()} == {mine.trace_id}


async def test_a_trace_that_came_with_a_request_counts_also_for_a_client_without_tracing() -> None:
    client = Client(driver=MemoryDriver())
    token = named.set(Trace.of(HEADER))
    client.workflow(id="w")(_nothing)
    async with client, client.worker():
        run = await client.start_workflow("w", None)
        named.reset(token)
        await run.result()
        [event, *_] = await run.history()
    assert event.model_dump()["traceparent"] == HEADER


async def _nothing(ctx: Context[None], step: Step) -> None: ...


async def test_a_caller_that_is_not_sampled_makes_no_spans() -> None:
    provider, exporter = provided()
    client = shop(provider)
    async with client, client.worker():
        token = named.set(Trace.of(HEADER[:-1] + "0"))
        run = await client.start_workflow("order", "x")
        named.reset(token)
        assert await run.result() == HEADER.split("-")[1], "code in a step passes the trace on"
    assert exporter.get_finished_spans() == ()


async def test_the_sampler_decides_once_for_a_run() -> None:
    provider, exporter = provided(sampler=ParentBased(ALWAYS_OFF))
    client = shop(provider)
    async with client, client.worker():
        await (await client.start_workflow("order", "x")).result()
    assert exporter.get_finished_spans() == ()


async def test_a_replay_makes_no_spans() -> None:
    provider, exporter = provided()
    client = shop(provider)

    @client.workflow(id="long")
    async def long(ctx: Context[None], step: Step) -> None:
        await step.run("one", asyncio.sleep, 0)
        await step.wait_for_signal("go", signal="go")
        await step.run("two", asyncio.sleep, 0)

    async with client:
        async with client.worker():
            run = await client.start_workflow("long", None)
            while not exporter.get_finished_spans():
                await asyncio.sleep(0)
        async with client.worker(live_runs=0):
            await run.signal("go", None)
            await run.result()
    assert [one.name for one in exporter.get_finished_spans()] == ["step one", "step two", "run long"]
    assert len({ids(one)[0] for one in exporter.get_finished_spans()}) == 1


async def test_log_lines_have_the_ids_of_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    provider, exporter = provided()
    client = shop(provider)
    async with client, client.worker():
        await (await client.start_workflow("order", "x", run_id="r")).result()
    pay, again, _, run = exporter.get_finished_spans()
    trace_id, run_span, _ = ids(run)
    of_run = [one for one in caplog.records if one.name == "stepfold.run" and getattr(one, "run_id", "") == "r"]
    assert {vars(one)["trace_id"] for one in of_run} == {format_trace_id(trace_id)}
    assert [vars(one)["span_id"] for one in of_run if one.getMessage() == "calling"] == [
        format_span_id(ids(one)[1]) for one in (pay, again)
    ]
    assert [vars(one)["span_id"] for one in of_run if one.getMessage() == "an order"] == [format_span_id(run_span)]
    filters = [kind for one in ("run", "worker") for kind in logging.getLogger(f"stepfold.{one}").filters]
    assert "TraceFields" not in {type(one).__name__ for one in filters}, "they end with the worker"


async def test_without_a_provider_of_the_sdk_runs_go_on(caplog: pytest.LogCaptureFixture) -> None:
    client = shop(trace.NoOpTracerProvider())
    async with client, client.worker():
        await (await client.start_workflow("order", "x")).result()
    assert any("there are no traces" in one for one in caplog.messages)


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match="TracerProvider"):
        Client(driver=MemoryDriver(), tracing="yes")


async def test_a_run_is_one_trace_also_when_its_worker_is_killed(tmp_path: Path) -> None:
    client = client_of(tmp_path)

    def work() -> subprocess.Popen[bytes]:
        program = Path(__file__).parents[1] / "traced_worker.py"
        return subprocess.Popen([sys.executable, program, tmp_path], env={**os.environ, "PYTHONPATH": str(program.parent)})

    async with client:
        first = work()
        try:
            run = await client.start_workflow("job", None, run_id="r")
            while not (tmp_path / "held").exists():
                await asyncio.sleep(0.05)
            first.send_signal(signal.SIGKILL)
        finally:
            first.kill()
            first.wait()
        (tmp_path / "go").touch()
        second = work()
        try:
            assert await run.result(60) == "done"
        finally:
            second.terminate()
            second.wait()
    spans = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    assert [one["name"] for one in spans] == ["step first", "step hold", "step last", "run job"]
    assert {one["context"]["trace_id"] for one in spans} == {spans[-1]["context"]["trace_id"]}
    assert {one["parent_id"] for one in spans[:-1]} == {spans[-1]["context"]["span_id"]}
    assert [one["attributes"].get("stepfold.attempt") for one in spans] == [1, 2, 1, None]
    assert {one["resource"]["attributes"]["service.instance.id"] for one in spans} == {str(first.pid), str(second.pid)}
