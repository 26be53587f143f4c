"""What may be the id of a run, step, signal, workflow, version or scope. Pure.

One rule, and a list of our own: `str.isprintable` depends on the Unicode version of this Python, and all workers and readers
must decide the same. Joiners and no-break spaces are part of how people write and allowed; controls, line separators and half
surrogate pairs are not.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")

_MOST_QUOTED = 250


def valid_name(name: object) -> bool:
    """Whether it is a text of 1 to 200 printable characters."""
    return type(name) is str and _NAME.fullmatch(name) is not None


def quoted(name: object) -> str:
    """What is no name, for the message that says so: whoever got it wrong may have passed a whole file."""
    text = repr(name)
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}… ({len(text):,} characters)"


def valid_run_id(run_id: str) -> bool:
    """Whether it is a name that does not begin with "@"."""
    return valid_name(run_id) and run_id[0] != "@"


def printable(text: str) -> str:
    """What of a text may stand in a name."""
    return "".join(_NAME.findall(text))
