"""Requests from outside as events of the history: under no claim, idempotent by their `request` id. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from .errors import ConfigError, PayloadTooLarge
from .events import FORMAT, encode
from .fold import valid_run_id
from .log import Entry


def started(
    run_id: str,
    workflow: str,
    version: str | None,
    data: bytes,
    *,
    request: str,
    at: int,
    trigger: dict[str, Any] | None = None,
    reply_to: str | None = None,
) -> Entry:
    """A run begins. `data`: the input as JSON bytes; `request`: what makes a repeat harmless; `at`: ms since 1970.

    Raises ConfigError for what cannot be the id of a run or workflow, or a version.
    """
    for what, value in (("workflow id", workflow), ("version", "-" if version is None else version)):
        if type(value) is not str or not 0 < len(value) <= 200 or not value.isprintable():
            raise ConfigError(f"{value!r} is not a {what}: 1 to 200 printable characters")
    event: dict[str, Any] = {
        "type": "started",
        "v": FORMAT,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "workflow": workflow,
        "version": version,
        "input": orjson.Fragment(data),
    }
    if trigger is not None:
        event["trigger"] = trigger
    if reply_to is not None:
        event["reply_to"] = reply_to
    return Entry(run_id, encode(event))


def signal_received(run_id: str, signal: str, data: bytes, *, request: str, at: int) -> Entry:
    """A signal for a run. `data`: JSON bytes. Raises ValueError for what is no name."""
    if type(signal) is not str or not 0 < len(signal) <= 200 or not signal.isprintable():
        raise ValueError(f"{signal!r} is not the name of a signal: 1 to 200 printable characters")
    event = {
        "type": "signal-received",
        "v": FORMAT,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "signal": signal,
        "data": orjson.Fragment(data),
    }
    return Entry(run_id, encode(event))


def cancel_requested(run_id: str, reason: str | None, *, request: str, at: int) -> Entry:
    """A run shall end. Raises ValueError for a reason that is no text of up to 10,000 characters."""
    if reason is not None and (type(reason) is not str or len(reason) > 10_000 or not _utf8(reason)):
        raise ValueError(f"the reason {str(reason)[:100]!r} is not a text of up to 10,000 characters")
    event = {
        "type": "cancel-requested",
        "v": FORMAT,
        "run_id": checked_run_id(run_id),
        "at": at,
        "request": request,
        "reason": reason,
    }
    return Entry(run_id, encode(event))


def _utf8(text: str) -> bool:
    """Whether a text holds no lone surrogates."""
    return text.encode(errors="ignore").decode() == text


def checked_run_id(run_id: str) -> str:
    """Raises ConfigError for what cannot be a run id."""
    if type(run_id) is not str or not valid_run_id(run_id):
        raise ConfigError(f'{run_id!r} is not a run id: 1 to 200 printable characters, not beginning with "@"')
    return run_id


def check_size(data: bytes, limit_bytes: int, what: str) -> None:
    """Raises PayloadTooLarge."""
    if len(data) > limit_bytes:
        raise PayloadTooLarge(
            f"{what} is {len(data):,} bytes; the limit is {limit_bytes:,}. Store it elsewhere and pass a reference to it"
        )
