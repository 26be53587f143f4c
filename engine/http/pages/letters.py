"""The page of dead letters."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from ...client.requests import Sender
from ...values.times import ms_of
from ..letters import drop, letters_now, redrive
from ..problems import HttpRefusal
from ..routing import HttpCall
from .actions import NAMELESS
from .render import show, with_query

LETTERS = 100


class LettersQuery(BaseModel, extra="ignore"):
    """`place`: of the letter that is open; "" for none. `sent`: how many the last form has sent."""

    place: str = ""
    sent: str = Field("", max_length=10, pattern="^[0-9]*$")


class LettersForm(BaseModel, extra="ignore"):
    """An action on the letter at `place`, "" for all that wait, and why. `value`: edited; "" for its own."""

    do: Literal["redrive", "drop"]
    place: str = ""
    value: str = ""
    why: str = ""


async def page(call: HttpCall) -> Response:
    query: LettersQuery = call.query
    now = await letters_now(call, LETTERS)
    letters = now.letters
    rows = [(one, ms_of(one.at), with_query("/dead-letters", place=one.place)) for one in letters]
    return show(
        call,
        "letters.html",
        active="/dead-letters",
        has_inbox=now.inbox,
        rows=rows,
        most=LETTERS,
        waiting=sum(1 for one in letters if one.state == "waiting" and not one.omitted),
        opened=next((row for row in rows if query.place == row[0].place), None),
        sent=query.sent,
    )


async def act(call: HttpCall) -> Response:
    """Send letters again, or drop one; the answer leads back to the list."""
    form: LettersForm = call.body
    asked = Sender(call.caller.name or NAMELESS, form.why.strip() or None)
    sent: int | None = None
    if form.do == "redrive":
        done = await redrive(call, [form.place] if form.place else None, form.value or None, asked)
        if done.refused:
            raise HttpRefusal(409, "letters-refused", "; ".join(f"{place}: {why}" for place, why in done.refused.items()))
        sent = done.sent
    elif form.place:
        await drop(call, [form.place], asked)
    else:
        raise HttpRefusal(422, "invalid", "choose the letter to drop")
    return RedirectResponse(call.request.scope.get("root_path", "") + with_query("/dead-letters", sent=sent), 303)
