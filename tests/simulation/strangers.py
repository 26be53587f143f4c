"""What somebody writes who has access to the topics and no idea, or bad intentions: nothing of it may have an effect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from stepfold.log import CLAIM_KEY, Entry, Record
from stepfold.values.codec import dumps

LIVELY = 6
"""One of the last so many claims may be current, and a claim that follows it would be a good one."""


def record(random: Random, records: Sequence[Record], claims: Sequence[Record], run_id: str, now_ms: int) -> tuple[str, Entry]:
    """A record of the history, and what it is in words."""
    kind = random.random()
    if kind < 0.5 and records:
        old = random.choice(records[-50:])
        return f"{old.offset} again", Entry(old.key, old.value)
    if kind < 0.7 and len(claims) > LIVELY:
        prev = random.choice([-1, *(claim.offset for claim in claims[:-LIVELY])])
        claim = {"type": "claim", "v": 1, "at": now_ms, "prev": prev, "owner": "stranger", "nonce": "n"}
        return f"a claim that follows {prev}", Entry(CLAIM_KEY, dumps(claim))
    decision = {"v": 1, "run_id": run_id, "at": now_ms, "claim": -2 - random.randrange(3)}
    request = {"v": 1, "run_id": run_id, "at": now_ms, "request": "of a stranger"}
    value = random.choice(
        (
            b"",
            b"\xff\xfe",
            b"[]",
            b'{"type":"nothing"}',
            b'{"type":"step-completed"}',
            b"[" * 1000,
            dumps({"type": "completed", **decision, "result": 1}),
            dumps({"type": "step-completed", **decision, "step_id": "a", "attempt": 1, "result": 1}),
            dumps({"type": "signal-received", **request, "v": 9, "signal": "x", "data": 1}),
            dumps({"type": "started", **request, "run_id": "another", "workflow": "program", "input": 1}),
        )
    )
    return "garbage", Entry(random.choice((run_id, run_id, CLAIM_KEY, "@odd", "")), value)


def request(random: Random, run_id: str) -> bytes | None:
    """The value of an inbox record that starts nothing and ends nothing."""
    to_nobody = {"run_id": run_id, "signal": "unknown"}
    return random.choice(
        (
            None,
            b"",
            b"{",
            b'{"type":"start"}',
            b'{"type":"event","event":"x"}',
            dumps({"type": "signal", **to_nobody, "data": random.random()}),
            dumps({"type": "signal", "run_id": "nobody", "signal": "x"}),
            dumps({"specversion": "1.0", "type": "stepfold.signal", "source": "s", "id": "1", "data": to_nobody}),
        )
    )


def given_up(random: Random, run_id: str) -> bytes:
    """The value of an inbox record of a transaction that is aborted: it would change what becomes of a run."""
    return random.choice(
        (
            dumps({"type": "start", "workflow": "program", "run_id": run_id, "data": ["seq", []]}),
            dumps({"type": "start", "workflow": "program", "run_id": f"{run_id}-given-up", "data": ["seq", []]}),
            dumps({"type": "signal", "run_id": run_id, "signal": random.choice("xyz"), "data": "given up"}),
            dumps({"type": "cancel", "run_id": run_id, "reason": "given up"}),
        )
    )


_ODD: list[Any] = [
    None,
    "",
    "\x00",
    "@odd",
    "x" * 300,
    "\u202e",
    0,
    -1,
    2**63,
    1e400,
    True,
    [],
    {},
    [1, [2]],
    "\ud800",
]


def odd(random: Random, run_id: str) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]:
    """An inbox record that is nearly a request: something in its key, its value or its headers is not as it should be."""
    fields: dict[str, Any] = {"type": random.choice(("signal", "cancel", "start")), "signal": "unknown", "data": random.random()}
    fields["run_id"] = run_id if fields["type"] == "signal" else "nobody"
    broken = random.choice(("type", "run_id", "workflow", "version", "reply_to", "nothing"))
    if fields["type"] == "start":
        fields["run_id"], fields["workflow"] = run_id, 5  # else it would start
    if broken != "nothing":
        fields[broken] = random.choice(_ODD)
        if fields["type"] == "start":
            fields["workflow"] = random.choice((None, "", 5, []))
    value = json.dumps(fields).encode()
    if random.random() < 0.3:
        at = random.randrange(len(value))
        value = value[:at] + random.randbytes(1 + random.randrange(4)) + value[at + 1 :]
    names = ("ce_type", "ce_id", "ce_source", "ce_specversion", "content-type", "\udcff", "")
    count = random.choice((0, 0, 1, 4))
    headers = tuple((random.choice(names), random.choice((None, b"", b"\xff", b"stepfold.signal", b"1.0"))) for _ in range(count))
    return random.choice((None, b"", b"\xff\xfe", run_id.encode())), value, headers
