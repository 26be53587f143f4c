"""What somebody writes who has access to the topics and no idea, or bad intentions: nothing of it may have an effect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, cast

import orjson

from stepfold.core.fold import PartitionState, fold
from stepfold.log import CLAIM_KEY, Entry, Record
from stepfold.operations.callback import CallbackId
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


ANSWERS: tuple[dict[str, Any], ...] = (
    {"type": "callback-completed", "data": "of a stranger"},
    {"type": "callback-failed", "error": {"type": "E", "message": "of a stranger"}},
    {"type": "callback-heartbeat"},
)
_NOT_TEXTS: tuple[Any, ...] = (None, 5, True, [], {})
_ODD_FIELDS: dict[str, tuple[Any, ...]] = {
    "v": (9, None, "2", 2.5, True),
    "at": (None, "now", 1.5, []),
    "run_id": _NOT_TEXTS,
    "request": _NOT_TEXTS,
    "step_id": (*_NOT_TEXTS, "", "a/b/c"),
    "nonce": _NOT_TEXTS,
    "error": (
        None,
        5,
        "no",
        [],
        {},
        {"type": "E"},
        {"message": "m"},
        {"type": 5, "message": "m"},
        {"type": "E", "message": None},
    ),
}
_GONE = object()


def answer(
    random: Random, known: Sequence[CallbackId], by_key: Mapping[str, Sequence[Record]], run_id: str, now_ms: int
) -> tuple[str, Entry]:
    """A record of the history about a callback, by somebody who may read everything, and what is wrong with it in words.

    `by_key`: the records of the callback's partition. `run_id`: another run, perhaps.
    """
    callback = random.choice(known)
    records = by_key.get(callback.run_id, ())
    fields: dict[str, Any] = {"v": 2, "at": now_ms, "request": f"stranger {random.random()}", **callback._asdict()}
    fields |= random.choice(ANSWERS)
    key, wrong = callback.run_id, random.choice(("nonce", "request", "before", "after", "run", "key", "field", "field"))
    start = next((event for event in map(_event, records) if event.get("type") == "started" and event.get("run_id") == key), None)
    if wrong == "request" and start is not None:  # which its run remembers for ever
        fields["request"] = start["request"]
    elif wrong == "before":
        fields["step_id"] = f"{callback.step_id}#{random.randrange(2, 9)}"
    elif wrong == "after" and _is_over(callback, [*by_key.get(CLAIM_KEY, ()), *records]):
        pass
    elif wrong == "run" and run_id != key:
        key = fields["run_id"] = run_id
    elif wrong == "key":
        key = random.choice(("", CLAIM_KEY, f"{key} ", "another"))
    elif wrong == "field":
        name = random.choice([name for name in _ODD_FIELDS if name in fields] + ["data"] * ("data" in fields))
        fields[name] = random.choice((_GONE, *_ODD_FIELDS.get(name, ())))
        if fields[name] is _GONE:
            del fields[name]
    else:
        wrong = "nonce"
        others = [other.nonce for other in known if (other.run_id, other.step_id) != (callback.run_id, callback.step_id)]
        fields["nonce"] = random.choice(("", callback.nonce[:-1], f"{callback.nonce}=", "forged", *others[-3:]))
    return f"{fields.get('type')} with a wrong {wrong}", Entry(key, dumps(fields))


def _event(record: Record) -> dict[str, Any]:
    try:
        event = orjson.loads(record.value)
    except ValueError:
        return {}
    return cast(dict[str, Any], event) if isinstance(event, dict) else {}


def _is_over(callback: CallbackId, records: Sequence[Record]) -> bool:
    """Whether the callback has ended, by the records of its run and the claims."""
    state = PartitionState()
    for record in sorted(records):
        fold(state, record)
    run = state.runs.get(callback.run_id)
    return run is not None and callback.step_id not in run.open


def about_callbacks(random: Random, known: Sequence[CallbackId]) -> bytes:
    """The value of an inbox record about a callback, with something in it that is not as it should be."""
    callback = random.choice(known)
    forged = callback._replace(nonce=random.choice(("forged", callback.nonce[:-1], callback.nonce * 2)))
    elsewhere = callback._replace(run_id=random.choice(("nobody", "x" * 200)))
    later = callback._replace(step_id=f"{callback.step_id}#{random.randrange(2, 9)}")
    to_it = random.choice(({"data": "of a stranger"}, {"error": {"message": "of a stranger"}}, {"heartbeat": True}))
    ids = (None, 5, "", "id", f"{callback}=", f"{callback}"[:-2], callback.nonce, [f"{callback}"])
    contents: tuple[dict[str, Any], ...] = ({}, {"data": 1, "heartbeat": True}, {"heartbeat": False}, {"error": "no"})
    errors: tuple[dict[str, Any], ...] = ({}, {"message": 5}, {"type": "E"}, {"type": 5, "message": "m"})
    fields = random.choice(
        (
            *({"id": f"{other}", **to_it} for other in (forged, elsewhere, later)),
            *({"id": odd, **to_it} for odd in ids),
            *({"id": f"{callback}", **odd} for odd in contents),
            *({"id": f"{callback}", "error": odd} for odd in errors),
        )
    )
    if random.random() < 0.5:
        return dumps({"type": "callback", **fields})
    event = {"specversion": "1.0", "type": "stepfold.callback", "source": "stranger", "id": f"{random.random()}", "data": fields}
    return dumps(event)


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


def given_up(random: Random, run_id: str, known: Sequence[CallbackId]) -> bytes:
    """The value of an inbox record of a transaction that is aborted: it would change what becomes of a run."""
    if known and random.random() < 0.3:
        to_it = random.choice(({"data": "given up"}, {"error": {"message": "given up"}}, {"heartbeat": True}))
        return dumps({"type": "callback", "id": str(random.choice(known)), **to_it})
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
