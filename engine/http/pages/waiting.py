"""The things that a run waits for, as its page says them."""

from __future__ import annotations

from dataclasses import replace

from ...client.waiting import waits
from ...core.state import RunState
from ...values.wait import Wait


def waits_of(run: RunState, owner: str | None, *, payload: bool, secrets: bool) -> list[Wait]:
    """The waits, as far as the caller may know them. A wait may quote an error, and a command may hold the id of a callback."""
    found = waits(run, owner is not None)
    if not secrets:
        found = [replace(wait, command=None) for wait in found]
    if not payload:
        found = [replace(wait, on=wait.on if wait.kind != "fix" else "a fix", last=None) for wait in found]
    return found
