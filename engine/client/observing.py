"""The observers of a worker, as its options say. They need packages of the extras `metrics` and `otel`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from ..authoring.workflow import Registry
from ..errors import ConfigError
from ..worker.observer import Observer, Observers
from ..worker.worker import Worker

logger = logging.getLogger("stepfold.worker")

Begin = Callable[[Worker], None]


@asynccontextmanager
async def observing(registry: Registry, metrics: str | None, provider: Any) -> AsyncGenerator[tuple[Observer | None, Begin]]:
    """Yields the observer for a worker, and a function for the worker when it has started.

    `metrics`: the address of its metrics; `provider`: of the tracer of its spans; None: none. Raises ConfigError.
    """
    observers: list[Observer] = []
    begin: Begin = lambda worker: None
    async with AsyncExitStack() as stack:
        if metrics is not None:
            counts, begin = await stack.enter_async_context(_measuring(registry, metrics))
            observers.append(counts)
        if provider is not None:
            observers += stack.enter_context(_tracing(provider))
        yield (Observers(observers) if observers else None), begin


@asynccontextmanager
async def _measuring(registry: Registry, at: str) -> AsyncGenerator[tuple[Observer, Begin]]:
    try:
        from ..worker.metrics import Address, Metrics, MetricsServer
    except ImportError as error:
        raise ConfigError(f"metrics= needs more packages ({error}): pip install 'stepfold[metrics]'") from None
    counts = Metrics(lambda workflow: any(one.id == workflow for one in registry))
    server = MetricsServer(counts, Address.parse(at))
    try:
        logger.info("metrics at %s/metrics", server.at)
        yield counts, counts.begin
    finally:
        counts.end()
        await server.close()


@contextmanager
def _tracing(provider: Any) -> Generator[list[Observer]]:
    """Without the SDK, or where it is switched off, a tracer makes no spans, and there is nothing to tell it."""
    from ..worker.traces import TraceFields, Traces

    tracer = provider.get_tracer("stepfold")
    tracer = getattr(tracer, "_tracer", tracer)  # the API's stand-in for a provider that was set after it
    if not hasattr(tracer, "id_generator"):
        logger.warning("there are no traces: OpenTelemetry has no tracer provider of its SDK, or it is switched off")
        yield []
        return
    traces = Traces(tracer)
    fields = TraceFields(traces)
    loggers = [logging.getLogger(name) for name in ("stepfold.run", "stepfold.worker")]
    for one in loggers:
        one.addFilter(fields)
    try:
        yield [traces]
    finally:
        for one in loggers:
            one.removeFilter(fields)
