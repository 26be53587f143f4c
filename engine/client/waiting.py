"""Why is a run waiting? The answer for all who show a run, from its folded state. Pure."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from ..core.state import RunState
from ..errors import ErrorInfo
from ..values.times import ms_of, said, utc
from ..values.wait import Wait
from ..values.words import Beside, iso, joined, span

_WORKER = "stepfold worker module:client"


def waits(run: RunState, owned: bool) -> list[Wait]:
    """The things that the run waits for: first those that hold the whole run. `owned`: whether a worker owns its partition.

    A step that runs its first attempt is among them only if the log holds a record of the attempt.
    """
    if run.ended:
        return []
    if run.phase == "quarantined":
        return [_fix(run)]
    if run.awaits_worker:
        return [_workflow(run)]
    waiting: list[Wait] = []
    if not owned:
        on, who = "a worker: none serves the run's partition", "somebody who starts a worker"
        waiting.append(Wait(on, "worker", None, utc(run.now), None, who, command=_WORKER))
    if run.cancel_requested:
        waiting.append(_clean_up(run))
    if run.suspected:
        waiting.append(_suspect(run))
    waiting += [op.wait(run.id, step_id) for step_id, op in run.open.items()]
    if owned and not run.open and not run.suspected:
        waiting.append(_code(run))
    return waiting


def _fix(run: RunState) -> Wait:
    error = ErrorInfo.from_json(run.error)
    if error.type == "NonDeterminism":
        who, command = "somebody who mends the code: a worker that has it resumes the run", _WORKER
    else:
        who, command = "somebody who reads the error: the run does not go on by itself", None
    return Wait(f"a fix: {error}", "fix", None, utc(run.held_at), None, who, command=command)


def _workflow(run: RunState) -> Wait:
    version = f" version {run.version!r}" if run.version is not None else ""
    on = f"a worker that knows workflow {run.workflow!r}{version}"
    return Wait(on, "workflow", None, utc(run.held_at), None, "somebody who starts a worker with that code", command=_WORKER)


def _clean_up(run: RunState) -> Wait:
    asked = utc(next(delivery.now for delivery in run.journal if delivery.outcome == "cancel"))
    last = joined("it was asked to end", run.reason or "")
    return Wait("the end of its clean-up", "clean-up", None, asked, None, "the run's code", last, asked)


def _suspect(run: RunState) -> Wait:
    on = "its code, which runs alone: workers have died, perhaps because of it"
    last = f"announcement {run.suspected} that its code is about to run"
    return Wait(on, "suspect", None, utc(run.held_at), None, "a worker that survives it", last)


def _code(run: RunState) -> Wait:
    on, last = "a step that runs or waits for a slot", "a record of the run, and none since"
    return Wait(on, "code", None, utc(run.now), None, "the worker that serves the run", last, utc(run.now))


def sentence(wait: Wait, now: datetime, beside: Beside = lambda ms, _: said(ms)) -> str:
    """One thing that a run waits for, for people: since when, until when, who must act, what happened last, and the command.

    `beside`: the form of times, next to `now`.
    """
    now_ms = ms_of(now)
    began = ms_of(wait.since)
    end = last = ""
    if wait.until is not None:
        end = f", {'until' if wait.until > now else 'which was due at'} {beside(ms_of(wait.until), now_ms)}"
    if wait.last is not None:
        at = "" if wait.last_at is None else f", at {beside(ms_of(wait.last_at), now_ms)}"
        last = f"last{at}: {wait.last}"
    return joined(
        f"waits for {wait.on}, since {beside(began, now_ms)} ({span(max(now_ms - began, 0))}){end}",
        f"must act: {wait.who}",
        last,
        "" if wait.command is None else f"command: {wait.command}",
    )


def wait_json(wait: Wait) -> dict[str, Any]:
    """One thing that a run waits for, for programs."""
    times = {"since": wait.since, "until": wait.until, "last_at": wait.last_at}
    return asdict(wait) | {name: None if at is None else iso(ms_of(at)) for name, at in times.items()}
