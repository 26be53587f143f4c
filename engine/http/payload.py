"""The one place that hides payloads and secrets. A caller without the role `payload` sees metadata only. The id of a callback is
the right to answer it, so it goes only to callers who may operate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from stepfold.projections import Lag

from ..values.wait import Wait
from .routing import Caller, Role

# fmt: off
_OF_EVENTS = frozenset(
    [
        "at", "at_line", "attempt", "began_at", "by", "cause", "child", "child_version", "claim", "detached", "from",
        "heartbeat_ms", "key", "kind", "next_at", "offset", "on_parent_close", "owner", "parent", "poll", "queued_at", "reason",
        "request", "run_id", "seq", "shielded", "signal", "start", "state", "step_id", "timeout_at", "timestamp", "type",
        "v", "version", "wake_at", "why", "workflow",
    ]
)
# fmt: on
_OF_RUNS = ("input", "result", "last_error")
_OF_LINES = ("input", "input_note", "heartbeat")


def event_for(caller: Caller, event: Mapping[str, Any]) -> dict[str, Any]:
    """An event for the caller: without the role `payload` only the fields that are known to hold metadata."""
    shown = dict(event) if caller.may(Role.PAYLOAD) else {name: value for name, value in event.items() if name in _OF_EVENTS}
    if not caller.may(Role.PAYLOAD) and "error" in event:
        shown["error"] = _type_of(event["error"])
    if not caller.may(Role.OPERATE) and "nonce" in shown:
        del shown["nonce"]
    elif caller.may(Role.OPERATE) and "nonce" in event:
        shown["nonce"] = event["nonce"]
    return shown


def run_for(caller: Caller, run: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run, without what the caller may not see; `run`: as `status_json` makes it."""
    shown = dict(run) | {"waits": [wait | _hidden(caller, wait["kind"]) for wait in run["waits"]]}
    if caller.may(Role.PAYLOAD):
        return shown
    waiting_on = [wait["on"] for wait in shown["waits"]]
    return shown | {"input": None, "result": None, "error": _type_of(run["error"]), "waiting_on": waiting_on}


def line_for(caller: Caller, line: Mapping[str, Any]) -> dict[str, Any]:
    """An operation, without what the caller may not see; `line`: as `line_json` makes it."""
    if caller.may(Role.PAYLOAD):
        return dict(line)
    return dict(line) | dict.fromkeys(_OF_LINES) | {"error": _type_of(line["error"])}


def row_for(caller: Caller, row: Mapping[str, Any], included: frozenset[str] = frozenset(_OF_RUNS)) -> dict[str, Any]:
    """A row of the table of runs, with the payloads named in `included` if the caller may see payloads."""
    if caller.may(Role.PAYLOAD):
        return {name: value for name, value in row.items() if name not in _OF_RUNS or name in included}
    shown = {name: value for name, value in row.items() if name not in _OF_RUNS}
    if row["waiting_step"] is not None:
        shown["waiting_on"] = [f"{row['waiting_kind']} {row['waiting_step']!r}"]
    elif row["state"] == "quarantined":
        shown["waiting_on"] = ["a fix"]
    return shown


def waits_for(caller: Caller, waits: Sequence[Wait]) -> list[Wait]:
    """The things that a run waits for, without what the caller may not see."""
    return [replace(wait, **_hidden(caller, wait.kind)) for wait in waits]


def lags_for(caller: Caller, lags: Sequence[Lag]) -> list[Lag]:
    """The lags, without what the caller may not see: the error that stopped a projection may quote a payload."""
    if caller.may(Role.PAYLOAD):
        return list(lags)
    return [lag if lag.stopped is None else lag._replace(stopped="it has stopped") for lag in lags]


def _hidden(caller: Caller, kind: str) -> dict[str, Any]:
    """Replacements for the fields of a wait that the caller may not see."""
    hidden: dict[str, Any] = {}
    if not caller.may(Role.OPERATE):  # the command may hold the id of a callback
        hidden["command"] = None
    if not caller.may(Role.PAYLOAD):
        hidden["last"] = None
        if kind == "fix":
            hidden["on"] = "a fix"
    return hidden


def _type_of(error: Any) -> dict[str, Any] | None:
    if not isinstance(error, dict):
        return None
    return {"type": cast(dict[str, Any], error).get("type"), "message": ""}
