"""What somebody writes who has access to the topics and no idea, or bad intentions: nothing of it may have an effect."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from stepfold.codec import dumps
from stepfold.log import CLAIM_KEY, Entry, Record

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
