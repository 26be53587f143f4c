"""The rule for ids and names of runs, steps, signals, workflows, versions and scopes. Pure.

The rule is a list of characters. `str.isprintable` depends on the Unicode version of the Python that runs, but all workers and
readers must decide alike. Joiners and no-break spaces are allowed, because people's languages need them; control characters,
line separators and lone surrogates are not.
"""

from __future__ import annotations

import re
from typing import TypeGuard

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,200}")

BUILT_IN = "@"
"""The beginning of the ids of stepfold's own workflows, which every worker serves."""
_MOST_QUOTED = 250


def valid_name(name: object) -> TypeGuard[str]:
    """Whether `name` is a text of 1 to 200 printable characters."""
    return type(name) is str and _NAME.fullmatch(name) is not None


def quoted(name: object) -> str:
    """The repr of a bad name for an error message, cut: a caller may have passed a whole file by mistake."""
    text = repr(name)
    return text if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]}… ({len(text):,} characters)"


def valid_run_id(run_id: object) -> TypeGuard[str]:
    """Whether `run_id` is a valid name that does not begin with "@"."""
    return valid_name(run_id) and run_id[0] != "@"


def no_run_id(run_id: object) -> str:
    """The error message for a run id that is not valid."""
    return f'{quoted(run_id)} is not a run id: 1 to 200 printable characters, not beginning with "@"'


def printable(text: str) -> str:
    """The text without the characters that a name may not have."""
    return "".join(_NAME.findall(text))
