"""A history of records that are accepted and that no database is made for."""

from __future__ import annotations

from typing import Any

import orjson
from histories import Ledger

from stepfold.drivers import MemoryDriver
from stepfold.log import Entry

TEXTS = (
    "\0",
    "a\0b",
    "x" * 5_000,
    "\u202e\u2028\x1b[2J",
    "\U0001f600" * 3_000,
    "\\ud800",
    "'; DROP TABLE stepfold_runs; --",
    "%s",
    "",
)
NUMBERS = (2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -1e-308)
TIMES = (0, -1, 2**31, 253_402_300_800_000, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)


async def strange_log() -> MemoryDriver:
    """Runs `plain`, then of all kinds, then `last`, which completes. The log's own times are odd, too."""
    ledger = Ledger(stride=1)
    ledger.claim("worker\0" + "w" * 300)
    ledger.start("plain")
    for number, text in enumerate(TEXTS):
        run_id = f"text-{number}"
        ledger.start(run_id, input={"t": text}, workflow=text or "-", version=text, trigger={"source": text})
        step = {"step_id": text or "-"}
        error = {"type": text, "message": text, "traceback": text}
        ledger.accepts("step-failed", run_id, **step, attempt=1, error=error, next_at=1, heartbeat=text)
        ledger.accepts("wait-started", run_id, step_id="wait", signal=text, timeout_at=None)
        _write(ledger, "cancel-requested", run_id, reason=text)
        if number % 3 == 0:
            ledger.accepts("failed", run_id, error=error)
        elif number % 3 == 1:
            ledger.accepts("completed", run_id, result={text: [text]})
        else:
            ledger.accepts("quarantined", run_id, error=error)
    for number, value in enumerate(NUMBERS):
        run_id = f"number-{number}"
        ledger.start(run_id, input=value)
        _write(ledger, "step-completed", run_id, step_id="a", attempt=1, result={"n": value})
        _write(ledger, "completed", run_id, result=value)
    for number, value in enumerate(TIMES):
        run_id = f"time-{number}"
        ledger.start(run_id)
        _write(ledger, "sleep-scheduled", run_id, step_id="nap", wake_at=value)
        _write(ledger, "wait-started", run_id, step_id="wait", signal="s", timeout_at=value)
        _write(ledger, "step-failed", run_id, step_id="a", attempt=1, error={"type": "E", "message": ""}, next_at=value)
        _write(ledger, "step-heartbeat", run_id, step_id="a", attempt=2, details=value, at=value)
    deep: Any = 1
    for _ in range(190):
        deep = [deep]
    ledger.start("deep", input=deep)
    ledger.claim(None)
    ledger.claim("x", v=-(2**40))  # a format that no column takes: all below it is void, until the next claim
    ledger.claim("\U0001f600" * 200)
    now_ms = 0
    log = MemoryDriver(clock=lambda: now_ms)
    await log.open()
    for record in ledger.records:
        await log.append(0, [Entry(record.key, record.value)])
    times = (1, 2**33, 2**43, 253_402_300_800_000, 2**61)
    for number, now_ms in enumerate(times):
        claim = {"claim": ledger.state.claim}
        for kind, fields in (("started", {"request": "r", "workflow": "w", "input": 1}), ("completed", {"result": 1, **claim})):
            event = {"type": kind, "v": 1, "run_id": f"at-{number}", "at": now_ms, **fields}
            await log.append(0, [Entry(f"at-{number}", orjson.dumps(event))])
    for kind, fields in (
        ("started", {"request": "r", "workflow": "w", "input": 1}),
        ("completed", {"result": 1, "claim": ledger.state.claim}),
    ):
        await log.append(0, [Entry("last", orjson.dumps({"type": kind, "v": 1, "run_id": "last", "at": 1, **fields}))])
    return log


def _write(ledger: Ledger, kind: str, run_id: str, **fields: Any) -> None:
    """Accepted or not."""
    ledger.write(ledger.event(kind, run_id) | fields, key=run_id)
