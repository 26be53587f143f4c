"""Makes foreign text (errors, ids, reasons, keys: anything from a record) safe to show.

A terminal obeys control characters, and invisible characters deceive a reader. So they are shown as escapes that Python and
JSON know. `shown` is for text, `shown_json` for JSON; both escape the same characters. Pure.

The characters are listed here: `str.isprintable` differs between versions of Python.
"""

from __future__ import annotations

import re

# Control characters (C0, DEL, C1); line ends of other programs (2028, 2029); changes of the text's direction (061C, 200E, 200F,
# 202A to 202E, 2066 to 2069); characters without width (Unicode's "default ignorable" characters, except FE00 to FE0F, which
# choose the form of the character before them); halves of surrogate pairs; and code points that are not characters.
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_ANY = re.compile(f"[{_UNSEEN}]")
_IN_LINES = re.compile(f"(?!\n)[{_UNSEEN}]")
_NAMES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Lines(str):
    """A text of several lines that stepfold made, such as a traceback. As an argument of a log call it keeps its line feeds."""

    __slots__ = ()


def shown(text: str, *, lines: bool = False) -> str:
    """The text on one line, with invisible characters as escapes (`\\x1b`, `\\u202e`). Applying it twice changes nothing more.

    `lines`: keep line feeds and turn tabs into spaces, for a traceback or other lines that stepfold made.
    """
    if text.isascii() and text.isprintable():
        return text
    return _IN_LINES.sub(_escape, text.replace("\t", "    ")) if lines else _ANY.sub(_escape, text)


def shown_json(text: str) -> str:
    """JSON text of the same value, with invisible characters as JSON escapes. The line feeds between its parts stay."""
    return text if text.isascii() and "\x7f" not in text else _IN_LINES.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _NAMES.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def _json_escape(found: re.Match[str]) -> str:
    """The escape; above U+FFFF the two escapes of its surrogate pair, as JSON requires."""
    pair = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(pair[i : i + 2]):04x}" for i in range(0, len(pair), 2))
