"""The published fields of the events, written a second time: a part of the judge.

Imports nothing of stepfold.
"""

from __future__ import annotations

from typing import Any, cast

import orjson

ENDS = ("completed", "failed", "cancelled")
ANSWERS = ("callback-completed", "callback-failed")
FROM_CHILDREN = ("child-ended", "child-refused")
REQUESTS = ("started", "signal-received", "cancel-requested", *ANSWERS, "callback-heartbeat", *FROM_CHILDREN)
MAX_DEPTH = 210

Json = dict[str, Any]

# The published fields of each type of event, with the types that JSON may give them; "?": may be missing.

_TEXT, _NUMBER, _OBJECT, _ANY = (str,), (int,), (dict,), ()
_TEXT_OR_NULL, _NUMBER_OR_NULL, _OBJECT_OR_NULL = (str, type(None)), (int, type(None)), (dict, type(None))
_RUN = {"v": _NUMBER, "at": _NUMBER, "run_id": _TEXT}
_REQUEST = {**_RUN, "request": _TEXT}
_DECISION = {**_RUN, "claim": _NUMBER, "version?": _TEXT_OR_NULL}
_STEP = {**_DECISION, "step_id": _TEXT}
_ATTEMPT = {**_STEP, "attempt": _NUMBER}
_ERROR = {"type": _TEXT, "message": _TEXT, "traceback?": _TEXT_OR_NULL, "step_id?": _TEXT_OR_NULL}

FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "claim": {"v": _NUMBER, "at": _NUMBER, "prev": _NUMBER, "owner": _TEXT_OR_NULL, "nonce": _TEXT},
    "started": {
        **_REQUEST,
        "workflow": _TEXT,
        "version?": _TEXT_OR_NULL,
        "input": _ANY,
        "trigger?": _OBJECT_OR_NULL,
        "reply_to?": _TEXT_OR_NULL,
        "parent?": _OBJECT_OR_NULL,
    },
    "delivered": {"v": _NUMBER, "at": _NUMBER, "claim": _NUMBER, "through": _OBJECT},
    "signal-received": {**_REQUEST, "signal": _TEXT, "data": _ANY},
    "cancel-requested": {**_REQUEST, "reason?": _TEXT_OR_NULL, "parent?": _OBJECT_OR_NULL},
    "step-completed": {**_ATTEMPT, "result": _ANY},
    "step-failed": {**_ATTEMPT, "error": _OBJECT, "next_at": _NUMBER_OR_NULL, "heartbeat?": _ANY},
    "attempt-started": _ATTEMPT,
    "attempt-lost": _ATTEMPT,
    "step-heartbeat": {**_ATTEMPT, "details": _ANY},
    "step-cancelled": _STEP,
    "sleep-scheduled": {**_STEP, "wake_at": _NUMBER},
    "sleep-completed": _STEP,
    "wait-started": {**_STEP, "signal": _TEXT, "timeout_at": _NUMBER_OR_NULL},
    "wait-timed-out": _STEP,
    "callback-created": {**_STEP, "nonce": _TEXT, "timeout_at": _NUMBER_OR_NULL, "heartbeat_ms": _NUMBER_OR_NULL},
    "callback-completed": {**_REQUEST, "step_id": _TEXT, "nonce": _TEXT, "data": _ANY},
    "callback-failed": {**_REQUEST, "step_id": _TEXT, "nonce": _TEXT, "error": _OBJECT},
    "callback-heartbeat": {**_REQUEST, "step_id": _TEXT, "nonce": _TEXT},
    "callback-timed-out": {**_STEP, "kind": _TEXT},
    "published": {**_DECISION, "key": _TEXT, "value": _ANY, "seq": _NUMBER},
    "condition-started": {**_STEP, "timeout_at": _NUMBER_OR_NULL},
    "condition-polled": {**_ATTEMPT, "poll": _NUMBER, "state": _ANY, "next_at": _NUMBER, "timeout_at": _NUMBER_OR_NULL},
    "condition-timed-out": {**_STEP, "kind": _TEXT, "attempt": _NUMBER_OR_NULL, "poll": _NUMBER, "state": _ANY},
    "child-scheduled": {
        **_STEP,
        "child": _TEXT,
        "workflow": _TEXT,
        "child_version": _TEXT_OR_NULL,
        "input": _ANY,
        "on_parent_close": _TEXT,
        "timeout_at": _NUMBER_OR_NULL,
        "detached": (bool,),
        "shielded": (bool,),
    },
    "child-ended": {
        **_REQUEST,
        "step_id": _TEXT,
        "child": _TEXT,
        "start": _TEXT,
        "state": _TEXT,
        "result?": _ANY,
        "error?": _OBJECT_OR_NULL,
        "reason?": _TEXT_OR_NULL,
    },
    "child-refused": {**_REQUEST, "step_id": _TEXT, "child": _TEXT, "start": _TEXT},
    "child-timed-out": _STEP,
    "workflow-unknown": _DECISION,
    "input-completed": {**_DECISION, "input": _ANY},
    "code-suspected": _DECISION,
    "code-cleared": _DECISION,
    "quarantined": {**_DECISION, "error": _OBJECT},
    "resumed": _DECISION,
    "completed": {**_DECISION, "result": _ANY},
    "failed": {**_DECISION, "error": _OBJECT},
    "cancelled": {**_DECISION, "reason?": _TEXT_OR_NULL},
}
_KINDS = {"callback-timed-out": ("timeout", "heartbeat"), "condition-timed-out": ("timeout", "attempts")}
_MISSING = object()


Shape = list[tuple[str, bool, tuple[type, ...]]]


def _shape(fields: dict[str, tuple[type, ...]]) -> Shape:
    return [(name.removesuffix("?"), name[-1] != "?", kinds) for name, kinds in fields.items()]


_SHAPES = {kind: _shape(fields) for kind, fields in FIELDS.items()}
_ERROR_SHAPE = _shape(_ERROR)
PLACE_SHAPE = _shape({"inbox": _TEXT, "partition": _NUMBER, "offset": _NUMBER})
_CAUSE_SHAPE = _shape({"partition": _NUMBER, "offset": _NUMBER, "n": _NUMBER})
_PARENT_SHAPE = _shape({"run_id": _TEXT, "start": _TEXT, "step_id": _TEXT, "detached?": (bool,)})
_WORDS_OF = {
    "callback-timed-out": ("kind", ("timeout", "heartbeat")),
    "child-scheduled": ("on_parent_close", ("cancel", "abandon")),
    "child-ended": ("state", ENDS),
}
_WITH_ERROR = {kind for kind, fields in FIELDS.items() if "error" in fields}


def fits(event: Json, shape: Shape) -> bool:
    for name, required, kinds in shape:
        value = event.get(name, _MISSING)
        if value is _MISSING:
            if required:
                return False
        elif kinds and type(value) not in kinds:
            return False
    return True


def _too_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    if isinstance(value, dict):
        return left == 0 or any(_too_deep(inner, left - 1) for inner in cast(Json, value).values())
    return isinstance(value, list) and (left == 0 or any(_too_deep(inner, left - 1) for inner in cast(list[Any], value)))


def parse(value: bytes) -> Json | None:
    """The event that a record's value holds; None where it holds none."""
    try:
        event: Json = orjson.loads(value)
    except ValueError:
        return None
    if type(event) is not dict:
        return None
    kind = event.get("type")
    if type(kind) is not str or kind not in _SHAPES or not fits(event, _SHAPES[kind]):
        return None
    if event.get("error") is not None and kind in (*_WITH_ERROR, "child-ended") and not fits(event["error"], _ERROR_SHAPE):
        return None
    if event.get("kind") not in _KINDS.get(kind, (event.get("kind"),)):
        return None
    if kind in _WORDS_OF and event[_WORDS_OF[kind][0]] not in _WORDS_OF[kind][1]:
        return None
    if kind == "delivered" and not all(type(offset) is int for offset in event["through"].values()):
        return None
    if kind in ("started", "cancel-requested") and event.get("parent") is not None and not fits(event["parent"], _PARENT_SHAPE):
        return None
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH and _too_deep(event):
        return None
    return event
