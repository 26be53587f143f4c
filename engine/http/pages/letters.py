"""The page of dead letters."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from ...values.times import ms_of
from ..letters import drop, letters_now, redrive
from ..problems import HttpRefusal
from ..routing import HttpCall
from .forms import REFUSALS, RefusedForm, kept, sender
from .render import show, with_query

LETTERS = 100


class LettersQuery(BaseModel, extra="ignore"):
    """`place`: of the letter to show in full; "" for none. `sent`: how many letters the last form has sent."""

    place: str = ""
    sent: str = Field("", max_length=10, pattern="^[0-9]*$")


class LettersForm(BaseModel, extra="ignore"):
    """An action on the letter at `place`, "" for all waiting letters, and why. `value`: an edited value; "" for the letter's own.
    `state`: the letter's state that the page showed; "" for any."""

    do: Literal["redrive", "drop"]
    place: str = ""
    state: str = ""
    value: str = ""
    why: str = ""


async def page(call: HttpCall, refused: RefusedForm | None = None) -> Response:
    """The list of letters, with one of them in full."""
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
        refused=refused,
    )


async def act(call: HttpCall) -> Response:
    """Send letters again, or drop one. The answer redirects to the list, or shows the page with the refused form."""
    form: LettersForm = call.body
    try:
        async with call.service.redriving:  # after a double click the second form sees what the first has done
            sent = await _act(call, form)
    except REFUSALS as error:
        return await page(replace(call, query=LettersQuery(place=form.place, sent="")), kept(form, error))
    return RedirectResponse(call.request.scope.get("root_path", "") + with_query("/dead-letters", sent=sent), 303)


async def _act(call: HttpCall, form: LettersForm) -> int | None:
    """How many letters were sent; None if one was dropped. Raises `REFUSALS`."""
    asked = sender(call, form.why)
    if form.place and form.state:
        letter = next((one for one in (await letters_now(call, LETTERS)).letters if one.place == form.place), None)
        if letter is not None and letter.state != form.state:
            raise HttpRefusal(409, "letter-moved-on", f"it is {letter.state} by now{f', by {letter.by}' if letter.by else ''}")
    if form.do == "drop":
        if not form.place:
            raise HttpRefusal(422, "invalid", "choose the letter to drop")
        await drop(call, [form.place], asked)
        return None
    done = await redrive(call, [form.place] if form.place else None, form.value or None, asked)
    if done.refused:
        raise HttpRefusal(409, "letters-refused", "; ".join(f"{place}: {why}" for place, why in done.refused.items()))
    return done.sent
