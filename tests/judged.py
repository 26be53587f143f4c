"""The engine's state, and the table of runs, held against what the judge made of the same records.

Imports nothing of stepfold.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, cast

import orjson
from judge import Ownership, Partition, Run
from judged_events import Json


def _ownership(partition: Partition, offset: int) -> Ownership:
    """What held when the record at an offset was to come."""
    return next((claim for claim in reversed(partition.claims) if claim.offset < offset), Ownership(-1, 0, None))


# The engine's state, held against this.


def differences(partition: Partition, state: Any, compared: dict[str, tuple[Any, int]] | None = None) -> str:
    """What a folded PartitionState says otherwise than the records before its offset, in words; empty: nothing.

    `compared`: for states that do not change any more; what was found equal is noted there and not compared again.
    """
    offset: int = state.offset
    ownership = _ownership(partition, offset)
    if (state.claim, state.owner) != (ownership.offset, ownership.owner):
        return f"the claim is {state.claim} of {state.owner}, by the records {ownership.offset} of {ownership.owner}"
    if offset and state.memory_ms != partition.memory_ms and partition.claims[:1] and partition.claims[0].offset < offset:
        return f"the memory is {state.memory_ms}, by the records {partition.memory_ms}"
    theirs: Any = state.runs
    if difference := _early_differences(partition, state):
        return difference
    expected = {run_id for run_id in theirs.ids() if theirs.peek(run_id).phase == "expected"}
    if unknown := [run_id for run_id in theirs.ids() if run_id not in partition.runs and run_id not in expected]:
        return f"runs that no record has started: {sorted(unknown)}"
    ended = b"".join(state.ended.chunks.values()) if compared is not None else b""
    for run_id, run in partition.runs.items():
        if run.changed_at >= offset:
            continue
        before, changed_at = compared.get(run_id, _NEVER) if compared is not None else _NEVER
        if run.end is not None:
            if run_id in theirs and run_id not in expected:
                return f"run {run_id}: it is still open, and ended at offset {run.changed_at}"
            if changed_at == run.changed_at and isinstance(before, bytes) and ended.startswith(before):
                continue  # who remembers more forgets nothing
            if not state.ended.remembers(run_id, run.ended_at, max(partition.memory_ms, 1)):
                return f"run {run_id}: it ended, and its id is forgotten"
            if compared is not None:
                compared[run_id] = ended, run.changed_at
        elif run_id not in theirs or run_id in expected:
            return f"run {run_id}: it is missing, and began at offset {run.start}"
        else:
            found = theirs.peek(run_id)
            if before is found and changed_at == run.changed_at:
                continue
            if difference := _difference(run, found):
                return f"run {run_id}: {difference}"
            if compared is not None:
                compared[run_id] = found, run.changed_at
    return ""


def _early_differences(partition: Partition, state: Any) -> str:
    """Where the state has read all that was judged: the places of the inbox, and what came for runs that have not begun."""
    if state.offset < partition.next_offset:
        return ""
    if state.sources != partition.sources:
        return f"the places of the inbox are {state.sources}, by the records {partition.sources}"
    if (state.senders, state.outbox.targets) != (partition.outbox.seen, partition.outbox.targets):
        owed = f"{state.senders}, {state.outbox.targets}"
        return f"messages are {owed}, by the records {partition.outbox.seen}, {partition.outbox.targets}"
    for run_id, early in partition.early.items():
        found: Any = state.runs.peek(run_id) if run_id in state.runs else None
        if found is None or found.phase != "expected":
            if early.unexpired(partition.latest, partition.memory_ms):
                return f"run {run_id}: the signals that came before it are missing"
        elif (found.now, found.input) != (early.now, early.signals):
            return f"run {run_id}: before it came {found.input}, by the records {early.signals}"
    for run_id in state.runs.ids():
        if run_id not in partition.early and state.runs.peek(run_id).phase == "expected":
            return f"run {run_id}: it is expected, and no signal has come for it since it was not"
    return ""


_NEVER = (None, -1)
_NAMES = {
    "now": "now",
    "started_at": "started_at",
    "workflow": "workflow",
    "version": "version",
    "input": "input",
    "request": "request",
    "parent": "parent",
    "requests": "requests",
    "journal": "journal",
    "waiting": "signals",
    "cancelled": "cancel_requested",
    "reason": "reason",
    "decided": "decided",
    "unserved": "awaits_worker",
    "suspected": "suspected",
    "quarantined": "error",
}
_ours, _theirs = attrgetter(*_NAMES), attrgetter(*_NAMES.values())
_OF_ATTEMPTS = ["attempts", "failures", "lost", "announced", "next_at", "error", "heartbeat", "heartbeat_at"]
_OP_NAMES = {
    "step": _OF_ATTEMPTS,
    "condition": [*_OF_ATTEMPTS, "polls", "state", "timeout_at"],
    "sleep": ["wake_at"],
    "wait": ["signal", "timeout_at"],
    "callback": ["nonce", "timeout_at", "heartbeat_ms", "beat_at"],
    "child": ["child", "workflow", "on_parent_close", "shielded", "timeout_at", "stopped"],
}


def _difference(run: Run, found: Any) -> str:
    all_expected, all_found = _ours(run), _theirs(found)
    if all_found != all_expected:
        for name, expected, value in zip(_NAMES.values(), all_expected, all_found, strict=True):
            if value != expected:
                return f"{name} is {value!r}, by the records {expected!r}"
    if (found.phase == "quarantined") != (run.quarantined is not None):
        return f"it is {found.phase}, by the records {'not ' * (run.quarantined is None)}quarantined"
    if found.kept != ({"published": run.published} if run.published else {}):
        return f"published is {found.kept}, by the records {run.published}"
    if found.done != run.over:
        return f"over are {sorted(found.done)}, by the records {sorted(run.over)}"
    if found.returned != run.returned:
        return f"returned are {sorted(found.returned)}, by the records {sorted(run.returned)}"
    if list(found.open) != list(run.open):
        return f"open are {list(found.open)}, by the records {list(run.open)}"
    for step_id, op in run.open.items():
        other = found.open[step_id]
        if other.kind != op.kind:
            return f"{step_id} is a {other.kind}, by the records a {op.kind}"
        for name in _OP_NAMES[op.kind]:
            expected, value = getattr(op, name), getattr(other, "started" if name == "announced" else name)
            if value != expected:
                return f"{name} of {step_id} is {value!r}, by the records {expected!r}"
    return ""


# A table of runs, held against this.


def row_differences(partition: Partition, position: int, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the rows of `stepfold_runs`, by run id, say otherwise than the records before a position, in words; empty: nothing."""
    owned = _ownership(partition, position).owner is not None
    for run in partition.runs.values():
        if run.changed_at >= position:
            continue
        row = rows.get(run.id)
        if row is None:
            return f"run {run.id}: it has no row, and began at offset {run.start}"
        for name, expected in _row(run, owned).items():
            if row[name] != expected and not _is_beginning(row[name], expected):
                return f"run {run.id}: {name} is {row[name]!r}, by the records {expected!r}"
        named = _waited_for(run, owned)
        words = cast(list[str], orjson.loads(row["waiting_on"]))
        if len(words) != len(named) or not all(name in word for name, word in zip(named, words, strict=True)):
            return f"run {run.id}: it waits for {words}, by the records for {named}"
    return ""


def _row(run: Run, owned: bool) -> Json:
    end = run.end or {}
    return {
        "workflow": run.workflow,
        "version": run.version,
        "state": _state(run, owned),
        "partition": run.partition,
        "started_at": run.started_at,
        "updated_at": run.now,
        "ended_at": run.ended_at if end else None,
        "steps_completed": sum(entry.kind == "result" for entry in run.journal),
        "attempts_failed": run.failures.total(),
        "last_error": None if run.last_error is None else _without_nul(_error(run.last_error)),
        "input": orjson.dumps(run.input).decode(),
        "result": orjson.dumps(end["result"]).decode() if end.get("type") == "completed" else None,
    }


def _state(run: Run, owned: bool) -> str:
    if run.end is not None:
        return run.end["type"]
    if run.quarantined is not None:
        return "quarantined"
    if run.unserved or not (run.decided or owned):
        return "pending"
    return "waiting" if run.open else "running"


def _waited_for(run: Run, owned: bool) -> list[str]:
    """What the words that tell what a run waits for have to mention, each in its turn."""
    if run.end is not None:
        return []
    if run.quarantined is not None:
        return [_error(run.quarantined)]
    if run.unserved:
        return [repr(run.workflow)]
    return [repr(step_id) for step_id in run.open] or ["step" if owned else "worker"]


def _error(error: Json) -> str:
    return f"{error['type']}: {error['message']}" if error["message"] else error["type"]


def _without_nul(text: str) -> str:
    """As databases can hold it."""
    return text.replace("\0", "\ufffd")


def _is_beginning(found: Any, expected: Any) -> bool:
    """A long text is cut."""
    return isinstance(found, str) and isinstance(expected, str) and found[-1:] == "…" and expected.startswith(found[:-1])
