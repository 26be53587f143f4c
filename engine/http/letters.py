"""The routes of dead letters: requests of the inbox that could not be served, sent again, or dropped for good."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ..client.requests import Sender
from ..errors import ConfigError
from ..log import DeadLetter, KeepsDeadLetters
from ..values.times import utc
from .models import Asking
from .problems import HttpRefusal
from .requests import sender_of
from .routing import Answer, Caller, HttpCall, Role, Row

logger = logging.getLogger("stepfold.http")
Place = Annotated[str, Field(min_length=1, max_length=300)]
LetterState = Literal["waiting", "sent again", "dropped"]


class LettersWanted(BaseModel, extra="forbid"):
    """The last `limit` dead letters."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class LetterNow(BaseModel):
    """A request that was refused. `origin`: its place in the inbox; `omitted`: the request was too large to be copied; `by`,
    `why`: who sent it again or dropped it, and why. `reason`, `key` and `value` are payload; they are text, with a replacement
    for bytes that are not UTF-8."""

    place: str
    at: datetime
    origin: str
    state: LetterState
    omitted: bool
    by: str | None
    why: str | None
    reason: str | None
    key: str | None
    value: str | None


class LettersNow(BaseModel):
    """Dead letters, the newest first. `inbox`: whether the log has an inbox; without one there are no dead letters."""

    inbox: bool
    letters: list[LetterNow]


class Redrive(Asking):
    """Send requests to the inbox again: those at `places`, or all waiting ones. `value`: sent in place of the letter's own value,
    for a single place."""

    places: Annotated[list[Place], Field(min_length=1, max_length=1000)] | None = None
    value: Annotated[str, Field(max_length=1_000_000)] | None = None


class Drop(Asking):
    """Drop the requests at `places`: they are not sent again, and stay in the list."""

    places: Annotated[list[Place], Field(min_length=1, max_length=1000)]


class RedriveDone(BaseModel):
    """How many requests were sent; and by place, why the others were not."""

    sent: int
    refused: dict[str, str]


def letters_log(call: HttpCall) -> KeepsDeadLetters:
    """The log as one with an inbox. Raises HttpRefusal if it has none."""
    log = call.service.client.connected()
    if not isinstance(log, KeepsDeadLetters):
        raise HttpRefusal(409, "no-inbox", f"{log.name} has no inbox, so it has no dead letters: only logs on Kafka have one")
    return log


def letter_now(caller: Caller, letter: DeadLetter) -> LetterNow:
    """The dead letter, without what the caller may not see."""
    payload = caller.may(Role.PAYLOAD)
    return LetterNow(
        place=letter.place,
        at=utc(letter.timestamp),
        origin=letter.origin,
        state="dropped" if letter.dropped else "sent again" if letter.redriven else "waiting",
        omitted=letter.omitted,
        by=letter.by,
        why=letter.why,
        reason=letter.reason if payload else None,
        key=_text(letter.key) if payload else None,
        value=_text(letter.value) if payload else None,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


async def letters_now(call: HttpCall, limit: int) -> LettersNow:
    """The newest dead letters, for the API and for the page."""
    log = call.service.client.connected()
    if not isinstance(log, KeepsDeadLetters):
        return LettersNow(inbox=False, letters=[])
    return LettersNow(inbox=True, letters=[letter_now(call.caller, one) for one in reversed(await log.dead_letters(limit))])


async def redrive(call: HttpCall, places: Sequence[str] | None, value: str | None, asked: Sender) -> RedriveDone:
    """Send letters again. Raises HttpRefusal for places that the log does not have, and LogUnavailable."""
    log = letters_log(call)
    if value is not None and len(places or ()) != 1:
        raise HttpRefusal(422, "invalid", "`value` needs the place of one request")
    try:
        done = await log.redrive(places, value=None if value is None else value.encode(), by=asked.by, why=asked.why)
    except ConfigError as error:
        raise HttpRefusal(409, "letter-unknown", str(error)) from None
    logger.info("%d dead letters sent again, asked by %s, %s", done.sent, asked.by, asked.why or "no reason given")
    return RedriveDone(sent=done.sent, refused=dict(done.refused))


async def drop(call: HttpCall, places: Sequence[str], asked: Sender) -> None:
    """Drop letters. Raises the same errors as `redrive`."""
    try:
        await letters_log(call).drop_letters(places, by=asked.by, why=asked.why)
    except ConfigError as error:
        raise HttpRefusal(409, "letter-unknown", str(error)) from None
    logger.info("%d dead letters dropped, asked by %s, %s", len(places), asked.by, asked.why or "no reason given")


async def get_letters(call: HttpCall) -> Answer:
    """List the requests of the inbox that could not be served, the newest first."""
    return Answer(await letters_now(call, call.query.limit))


async def post_redrive(call: HttpCall) -> Answer:
    """Send refused requests to the inbox again.

    If the server crashes meanwhile, it may have sent a request twice; two starts with the same run id stay one run.
    """
    asked: Redrive = call.body
    return Answer(await redrive(call, asked.places, asked.value, sender_of(call)))


async def post_drop(call: HttpCall) -> Answer:
    """Drop refused requests: they will not be sent again."""
    asked: Drop = call.body
    await drop(call, list(dict.fromkeys(asked.places)), sender_of(call))
    now = await letters_now(call, 1000)
    return Answer(LettersNow(inbox=now.inbox, letters=[one for one in now.letters if one.place in asked.places]))


ROWS = (
    Row(
        method="GET",
        path="/v1/dead-letters",
        role=Role.VIEW,
        name="list_dead_letters",
        handler=get_letters,
        query=LettersWanted,
        answers={200: LettersNow},
    ),
    Row(
        method="POST",
        path="/v1/dead-letters/redrive",
        role=Role.OPERATE,
        name="redrive_dead_letters",
        handler=post_redrive,
        body=Redrive,
        answers={200: RedriveDone},
    ),
    Row(
        method="POST",
        path="/v1/dead-letters/drop",
        role=Role.OPERATE,
        name="drop_dead_letters",
        handler=post_drop,
        body=Drop,
        answers={200: LettersNow},
    ),
)
