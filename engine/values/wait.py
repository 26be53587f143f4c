"""One thing that a run waits for, as people and programs are told. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime

from .times import due, utc


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that a run waits for. Times are in UTC, by the log's clock, but for `until`, which the worker's clock may reach.

    `kind` is the kind of the operation `step_id`. Without an operation it is "worker" (none serves the run), "workflow" (no
    worker knows its code), "fix" (it is quarantined), "clean-up" (it was asked to end), "suspect" (its code runs alone) or "code"
    (its code or a first attempt is under way). `since`: the time of the record with which it began. `until`: when it is due or
    over by itself; None: never. `who`: who must act. `last`, `last_at`: what happened last. `command`: the command that moves
    it; JSON and module:client in it stand for your own. The command of a callback holds its id, which is a secret.
    """

    on: str
    kind: str
    step_id: str | None
    since: datetime
    until: datetime | None
    who: str
    last: str | None = None
    last_at: datetime | None = None
    command: str | None = None


def ending(ms: int | None) -> datetime | None:
    """The `until` of a wait that ends at this time, in ms; None: never."""
    at = due(ms)
    return None if at is None else utc(at)


def showing(run_id: str) -> str:
    """The command that shows a run, quoted for a shell."""
    return f"stepfold run show {'-- ' * run_id.startswith('-')}{shlex.quote(run_id)}"


def sending(verb: str, *arguments: str) -> str:
    """The command that sends data, quoted for a shell."""
    words = shlex.join(arguments)
    if any(argument.startswith("-") for argument in arguments):
        return f"stepfold {verb} --data JSON -- {words}"
    return f"stepfold {verb} {words} --data JSON"
