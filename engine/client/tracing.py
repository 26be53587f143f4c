"""The trace in which a request is made: that of the caller's code, if the client traces, or the one that its caller named."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ..errors import ConfigError
from ..values.same import shown
from ..values.trace import Trace

named: ContextVar[Trace | None] = ContextVar("stepfold_trace", default=None)
"""The context that came with the request which this code serves."""


def provider_of(tracing: object) -> Any:
    """The tracer provider of the option `tracing`; None: no traces. Raises ConfigError, and TypeError for another value."""
    if tracing is False:
        return None
    try:
        from opentelemetry.trace import get_tracer_provider
    except ImportError as error:
        raise ConfigError(f"tracing= needs more packages ({error}): pip install 'stepfold[otel]'") from None
    if tracing is True:
        return get_tracer_provider()
    if not hasattr(tracing, "get_tracer"):
        raise TypeError(f"Client(tracing={shown(tracing)}): it must be True, or a TracerProvider of OpenTelemetry")
    return tracing


def trace_now(traces: bool) -> Trace | None:
    """The context for a request that is made now. Never raises: a request matters more than its trace."""
    if traces:
        carrier: dict[str, str] = {}
        try:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            TraceContextTextMapPropagator().inject(carrier)
        except Exception:  # noqa: BLE001  # as it says
            carrier.clear()
        current = Trace.of(carrier.get("traceparent"), carrier.get("tracestate"))
        if current is not None:
            return current
    return named.get()
