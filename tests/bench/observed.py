"""The rate of runs with metrics and traces on, beside the rate without: all ways in turns, in one process, by CPU time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from figures import Figure, client_with_workflows, runs
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from stepfold import Client
from stepfold.drivers import MemoryDriver, SQLiteDriver
from stepfold.log import Log

ROUNDS = 7
SAMPLED = 0.1


class Nowhere(SpanExporter):
    """Takes spans and drops them: what an exporter does with them is its own cost."""

    def export(self, spans: Any) -> SpanExportResult:
        assert all(isinstance(span, ReadableSpan) for span in spans)
        return SpanExportResult.SUCCESS


def provider(share: float) -> TracerProvider:
    made = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
    made.add_span_processor(BatchSpanProcessor(Nowhere()))
    return made


async def rates(make: Callable[[str], Log], count: int, ways: dict[str, tuple[str | None, float | None]]) -> dict[str, float]:
    """The median rate of each way: metrics at an address, and the share of runs with traces."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for name, (metrics, share) in ways.items():
            client = client_with_workflows(make(name), tracing=False if share is None else provider(share))
            await stack.enter_async_context(client)
            worker = await stack.enter_async_context(client.worker(metrics=metrics))
            while not worker.owners or not worker.caught_up:
                await runs(client, 64, 64)
            clients[name] = client
        for _ in range(ROUNDS):
            for name, client in clients.items():
                found[name].append((await runs(client, count, 64))[0])
    return {name: statistics.median(of) for name, of in found.items()}


WAYS: dict[str, tuple[str | None, float | None]] = {
    "nothing": (None, None),
    "metrics": ("0", None),
    "metrics, and traces of a tenth of the runs": ("0", SAMPLED),
    "metrics, and traces of all runs": ("0", 1.0),
}


async def observed(folder: Path) -> list[Figure]:
    figures: list[Figure] = []
    logs: dict[str, Callable[[str], Log]] = {
        "memory driver": lambda name: MemoryDriver(),
        "SQLite FULL": lambda name: SQLiteDriver(folder / f"{name}.db"),
    }
    for log, make in logs.items():
        of = await rates(make, 640, WAYS)
        bare = of.pop("nothing")
        for name, rate in of.items():
            case = f"{log}, 64 at a time, with {name}"
            holds = rate >= 0.9 * bare
            figures.append(
                Figure(
                    case, f"{rate:,.0f} runs/s", f"{bare:,.0f} runs/s without", f"{rate / bare:.2f} x", "at least 0.9 x", holds
                )
            )
    return figures
