"""Turns a run into bytes and back, for checkpoints, for projections, and for runs that are put away; and copies one. Pure."""

from __future__ import annotations

from copy import copy
from typing import Any

import orjson

from ..operations import OPEN
from .messages import Parent
from .state import EXPECTED, Delivery, RunState

_delivery = Delivery._make  # costs half as much as the constructor


def pack(run: RunState) -> bytes:
    """Compact bytes from which `unpack` makes an equal run."""
    return orjson.dumps(
        [
            run.id,
            run.workflow,
            run.version,
            run.input,
            run.trigger,
            run.start,
            run.started_at,
            run.now,
            run.phase,
            run.decided,
            run.awaits_worker,
            run.cancel_requested,
            [tuple(delivery) for delivery in run.journal],
            sorted(run.done - {delivery.step_id for delivery in run.journal}),
            [[step_id, op.kind, op.since, *(getattr(op, name) for name in op.kept)] for step_id, op in run.open.items()],
            [[name, waiting] for name, waiting in run.signals.items()],
            list(run.requests.items()),
            run.result,
            run.error,
            run.reason,
            run.ended_at,
            run.request,
            run.digest,
            [run.suspected, run.suspected_by] if run.suspected else None,
            None if run.start_input is run.input else [run.start_input],
            sorted(run.returned) or None,
            run.held_at,
            *_last(run),
        ]
    )


def _last(run: RunState) -> tuple[Any, ...]:
    """The fields that few runs have."""
    trace = None if run.trace is None else [*run.trace]
    if run.parent is not None:
        return trace, run.kept, [*run.parent]
    return (trace, run.kept) if run.kept else () if trace is None else (trace,)


def unpack(data: bytes) -> RunState:
    """The run that `pack` packed. Raises ValueError, TypeError or LookupError for other bytes."""
    fields = orjson.loads(data)
    run = RunState(fields[0], fields[1], fields[2], fields[3], fields[5], fields[6])
    (run.trigger, run.now, run.phase, run.decided, run.awaits_worker, run.cancel_requested) = (fields[4], *fields[7:12])
    run.journal = list(map(_delivery, fields[12]))
    run.done = {delivery.step_id for delivery in run.journal if delivery.step_id}
    run.done.update(fields[13])
    for step_id, kind, since, *values in fields[14]:
        shape = OPEN[kind]
        op = run.open[step_id] = shape.__new__(shape)
        op.since = since
        for name, value in zip(op.kept, values, strict=True):
            setattr(op, name, value)
    run.done.difference_update(run.open)  # an open operation may have had a delivery
    run.signals = dict(fields[15])
    run.requests = dict(fields[16])
    (run.result, run.error, run.reason, run.ended_at, run.request, run.digest) = fields[17:23]
    if fields[23] is not None:
        run.suspected, run.suspected_by = fields[23]
    if fields[24] is not None:
        [run.start_input] = fields[24]
    run.returned.update(fields[25] or ())
    run.held_at = fields[26]
    if len(fields) > 27 and fields[27] is not None:
        run.traced(*fields[27])
    if len(fields) > 28:
        run.kept = fields[28]
    if len(fields) > 29:
        run.parent = Parent(*fields[29])
    return run


def copied(run: RunState, journal: list[Delivery]) -> RunState:
    """A run that is equal but for its journal, and does not change with this one. They share the values that no rule changes."""
    twin = copy(run)
    twin.journal = journal
    twin.done = set(run.done)
    twin.returned = set(run.returned)
    twin.open = {step_id: copy(op) for step_id, op in run.open.items()}
    twin.signals = {name: [list(signal) for signal in waiting] for name, waiting in run.signals.items()}
    twin.requests = dict(run.requests)
    twin.kept = {kind: dict(names) for kind, names in run.kept.items()}
    if run.phase == EXPECTED:
        twin.input = twin.start_input = list(run.input)
    return twin
