"""Runs and attempts of steps as spans of OpenTelemetry: one trace a run, whichever workers have it.

Ids of a run's trace and span follow from the record that started it, so all workers agree on them and none must remember: if the
start named a trace, the run is part of that one. The span of a run is made at its end, by the owner that folds its own record of
it; that of an attempt is alive while its function runs, and is the current span there. Neither a replay nor a recovery makes one.
Spans hold ids, names and classes of errors; never payloads or messages.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from contextvars import Context
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..core.lifecycle import ENDS
from ..core.state import RunState
from .attempt import Attempt
from .observer import Observer

MAX_RUNS = 5000
"""The number of runs whose ids are kept; those of others are made again."""
MS = 1_000_000
_propagator = TraceContextTextMapPropagator()


class Ids:
    """The id generator of a tracer. In a block of `given` it gives these ids, in this thread; else those of the provider."""

    def __init__(self, usual: Any) -> None:
        self._usual = usual
        self._given = threading.local()

    def give(self, trace_id: int, span_id: int) -> None:
        self._given.ids = (trace_id, span_id)

    def take_back(self) -> None:
        self._given.ids = None

    def generate_trace_id(self) -> int:
        ids = getattr(self._given, "ids", None)
        return self._usual.generate_trace_id() if ids is None else ids[0]

    def generate_span_id(self) -> int:
        ids = getattr(self._given, "ids", None)
        return self._usual.generate_span_id() if ids is None else ids[1]

    def is_trace_id_random(self) -> bool:
        return getattr(self._given, "ids", None) is None and self._usual.is_trace_id_random()


class RunTrace(NamedTuple):
    """`span`: of the run; `within`: the context in which attempts begin; `caller`: that of the start, maybe without a span."""

    span: SpanContext
    within: TraceContext
    caller: TraceContext

    @property
    def sampled(self) -> bool:
        return self.span.trace_flags.sampled


class Traces(Observer):
    """Makes the spans of one worker with a tracer of the SDK."""

    def __init__(self, tracer: Any) -> None:
        if not isinstance(tracer.id_generator, Ids):  # a provider gives all workers of a process one tracer
            tracer.id_generator = Ids(tracer.id_generator)
        self._tracer = tracer
        self._ids: Ids = tracer.id_generator
        self._runs: OrderedDict[str, tuple[int, RunTrace]] = OrderedDict()

    # -- told by the worker

    def begins(self, attempt: Attempt, context: Context) -> None:
        of = self.of(attempt.run)
        if not of.sampled:
            context.run(otel.attach, of.within)
            return
        attributes: dict[str, str | int] = {
            "stepfold.run_id": attempt.run.id,
            "stepfold.workflow": attempt.run.workflow,
            "stepfold.step_id": attempt.op.id,
            "stepfold.attempt": attempt.number,
        }
        name = f"step {attempt.op.id.partition('#')[0]}"
        attempt.observed = span = self._tracer.start_span(name, of.within, attributes=attributes)
        context.run(otel.attach, trace.set_span_in_context(span, of.within))

    def ended(self, attempt: Attempt) -> None:
        span = cast(Span, attempt.observed)
        if attempt.queued_at is not None and attempt.began_at is not None:
            span.set_attribute("stepfold.queue_ms", attempt.began_at - attempt.queued_at)
        if attempt.ended_as is not None:
            span.set_attribute("error.type", attempt.ended_as)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def resident(self, run: RunState) -> None:
        self.of(run)  # for the lines that its code logs

    def folded(self, run: RunState, event: dict[str, Any]) -> None:
        if event["type"] not in ENDS:
            return
        of = self.of(run)
        del self._runs[run.id]
        if of.sampled:
            self._export(run, event, of)

    def _export(self, run: RunState, event: dict[str, Any], of: RunTrace) -> None:
        attributes = {"stepfold.run_id": run.id, "stepfold.workflow": run.workflow, "stepfold.outcome": run.phase}
        if run.version is not None:
            attributes["stepfold.version"] = run.version
        caller = trace.get_current_span(of.caller).get_span_context()
        links = [Link(caller)] if caller.is_valid else []
        name = f"run {run.workflow}"
        self._ids.give(of.span.trace_id, of.span.span_id)
        try:
            span = self._tracer.start_span(name, of.caller, SpanKind.CONSUMER, attributes, links, start_time=run.started_at * MS)
        finally:
            self._ids.take_back()
        if run.phase == "failed":
            span.set_attribute("error.type", f"{event['error'].get('type')}")
            span.set_status(Status(StatusCode.ERROR))
        span.end((run.ended_at or run.now) * MS)

    # -- ids

    def of(self, run: RunState) -> RunTrace:
        """The ids of a run."""
        known = self._runs.get(run.id)
        if known is None or known[0] != run.start:
            known = self._runs[run.id] = (run.start, self._made(run))
            if len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)
        return known[1]

    def _made(self, run: RunState) -> RunTrace:
        carrier = {} if run.trace is None else run.trace.fields
        caller = _propagator.extract(carrier, TraceContext())
        parent = trace.get_current_span(caller).get_span_context()
        start = f"{run.id}\0{run.request}\0{run.started_at}".encode("utf-8", "surrogatepass")
        ids = blake2b(start, digest_size=24).digest()
        trace_id = parent.trace_id if parent.is_valid else int.from_bytes(ids[:16]) or 1
        verdict = self._tracer.sampler.should_sample(caller, trace_id, f"run {run.workflow}", SpanKind.CONSUMER)
        flags = TraceFlags(TraceFlags.SAMPLED if verdict.decision.is_sampled() else TraceFlags.DEFAULT)
        span = SpanContext(
            trace_id, int.from_bytes(ids[16:]) or 1, is_remote=False, trace_flags=flags, trace_state=verdict.trace_state
        )
        return RunTrace(span, trace.set_span_in_context(NonRecordingSpan(span), TraceContext()), caller)

    # -- log lines

    def known(self, run_id: str) -> SpanContext | None:
        """The span of a run that this worker has; None: it has no such run."""
        known = self._runs.get(run_id)
        return None if known is None else known[1].span


class TraceFields(logging.Filter):
    """Gives records with a `run_id` the fields `trace_id` and `span_id` (hexadecimal), of the attempt that logs or of the run."""

    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self._traces = traces

    def filter(self, record: logging.LogRecord) -> bool:
        span = self._traces.known(getattr(record, "run_id", ""))
        if span is not None:
            current = trace.get_current_span().get_span_context()
            record.trace_id = trace.format_trace_id(span.trace_id)
            record.span_id = trace.format_span_id((current if current.trace_id == span.trace_id else span).span_id)
        return True
