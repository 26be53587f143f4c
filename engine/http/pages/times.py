"""Times inside texts: code that makes a text marks its times; the template shows them in the browser's zone."""

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
    """A marked time (ms since 1970), for a text that goes through `timed`."""
    return said(ms) if ms >= NEVER_MS else f"{_MARK}{ms}{_MARK}"


beside: Beside = lambda ms, _: marked(ms)


def remarked(text: str) -> str:
    """The text with its times marked that read like `2026-12-01 09:00:00 UTC`."""
    return _SAID.sub(lambda found: _marked_text(found[0]), text)


def moment(text: str) -> str:
    """The text, marked if the whole of it is an ISO 8601 time with an offset."""
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
    """The HTML element of a time: its text is in the browser's zone, its attributes hold ISO 8601 in UTC."""
    return _TIME.format(iso(ms), clock(ms, look))


@pass_context
def timed(context: Context, text: str, most: int = 10_000) -> Markup:
    """A template filter: up to `most` characters of a text on one line, with its marked times as elements."""
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
