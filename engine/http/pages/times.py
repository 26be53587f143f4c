"""Times inside texts: marked where a text is made, shown in the zone of the browser where it stands in a page."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from ...values.text import shown
from ...values.times import NEVER_MS, ms_of, said, utc
from ...values.words import Beside, iso
from .look import Look

_MARK = "\N{WORD JOINER}"
_MARKED = re.compile(f"{_MARK}(-?[0-9]{{1,16}}){_MARK}")
_SAID = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} UTC")
_TIME = Markup('<time datetime="{0}" title="{0}" data-clock>{1}</time>')


def marked(ms: int) -> str:
    """A time for a text that `timed` shows."""
    return said(ms) if ms >= NEVER_MS else f"{_MARK}{ms}{_MARK}"


beside: Beside = lambda ms, _: marked(ms)


def remarked(text: str) -> str:
    """A text that was made elsewhere, with the times of its sentences marked: `2026-12-01 09:00:00 UTC`."""
    return _SAID.sub(lambda found: _marked_text(found[0]), text)


def moment(text: str) -> str:
    """A text, marked if all of it is a time with its offset, in ISO 8601."""
    if "T" not in text[10:11]:
        return text
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if at.tzinfo is None else marked(ms_of(at))


def _marked_text(text: str) -> str:
    try:
        return marked(ms_of(datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)))
    except ValueError:
        return text


def clock(ms: int, look: Look) -> str:
    """A time in the browser's zone, with the name of the zone."""
    try:
        return utc(ms).astimezone(look.tz).strftime("%Y-%m-%d %H:%M:%S %Z")
    except OverflowError:
        return f"{utc(ms):%Y-%m-%d %H:%M:%S} UTC"


def time(ms: int, look: Look) -> Markup:
    """The element of a time: for people in the browser's zone, for programs and under the pointer ISO 8601 in UTC."""
    return _TIME.format(iso(ms), clock(ms, look))


@pass_context
def timed(context: Context, text: str, most: int = 10_000) -> Markup:
    """A filter: up to `most` characters of a text, on one line, with its marked times as elements."""
    look: Any = context["look"]
    found, left = Markup(), most
    for number, part in enumerate(_MARKED.split(text)):
        if left <= 0:
            break
        if number % 2:
            words = time(int(part), look)
            left -= len(clock(int(part), look))
        else:
            words = Markup.escape(shown(part[:left]))
            left -= len(part)
        found += words
    return found
