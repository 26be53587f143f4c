"""A start by HTTP keeps the trace of its caller, and a trace that is not valid hurts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from http_served import served

from stepfold import Client

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(("parent", "kept"), [(HEADER, HEADER), (HEADER.upper(), None), ("00-" + "a" * 5000, None)])
async def test_the_header_of_a_start_is_in_the_history(tmp_path: Path, parent: str, kept: str | None) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db")
    async with served(client) as browser:
        headers = {"traceparent": parent, "tracestate": "vendor=1"}
        started = await browser.put("/v1/runs/r", json={"workflow": "w", "input": 1}, headers=headers)
        other = await browser.post("/v1/runs", json={"workflow": "w", "input": 1})
        assert (started.status_code, other.status_code) == (201, 201)
        [event] = await client.run("r").history()
        [without] = await client.run(other.json()["id"]).history()
    assert event.model_dump()["traceparent"] == kept
    assert event.model_dump()["tracestate"] == (kept and "vendor=1")
    assert without.model_dump()["traceparent"] is None
