"""A worker in a process of its own, whose spans go into a file as they end: `python traced_worker.py FOLDER`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from stepfold import Client, Context, Step


class ToFile(SpanExporter):
    """A line for each span."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self.file.open("a") as out:
            out.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


def client_of(folder: Path, tracing: object = False) -> Client:
    """A client of the folder's log. The step `hold` goes on only when there is a file `go`."""
    client = Client(f"sqlite:///{folder}/log.db", tracing=tracing)

    async def hold() -> None:
        (folder / "held").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(0.05)

    @client.workflow(id="job")
    async def job(ctx: Context[None], step: Step) -> str:
        await step.run("first", asyncio.sleep, 0)
        await step.run("hold", hold)
        await step.run("last", asyncio.sleep, 0)
        return "done"

    return client


if __name__ == "__main__":
    here = Path(sys.argv[1])
    provider = TracerProvider(resource=Resource({"service.instance.id": str(os.getpid())}))
    provider.add_span_processor(SimpleSpanProcessor(ToFile(here / "spans")))
    client_of(here, provider).run_worker()
