"""Text from elsewhere, made fit to be looked at: errors, ids, reasons, keys, whatever a producer or a program put into a record.

A terminal obeys what it is sent, and a person believes what a line looks like. So what cannot be seen is shown, as an escape
that Python and JSON know. One function for people (`shown`), one for JSON (`shown_json`), one rule for both. Pure.

The rule is a list of our own and not `str.isprintable`, which differs between Pythons.
"""

from __future__ import annotations

import re

# What moves the cursor or is obeyed (C0, DEL, C1), what ends a line elsewhere (2028, 2029), what turns the direction of the text
# (061C, 200E, 200F, 202A to 202E, 2066 to 2069), what takes no room (Unicode's "default ignorable" characters, but for
# FE00 to FE0F, which choose the form of the character before them), halves of surrogate pairs, and what is no character.
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_ANY = re.compile(f"[{_UNSEEN}]")
_IN_LINES = re.compile(f"(?!\n)[{_UNSEEN}]")
_NAMES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Lines(str):
    """A text of several lines that are ours, such as a traceback, for an argument of a log call: its line feeds stay."""

    __slots__ = ()


def shown(text: str, *, lines: bool = False) -> str:
    """The text with all that is unseen as an escape (`\\x1b`, `\\u202e`), on one line. What is shown already stays as it is.

    `lines`: its line feeds stay, and its tabs are spaces: for a traceback, or for several lines of our own.
    """
    if text.isascii() and text.isprintable():
        return text
    return _IN_LINES.sub(_escape, text.replace("\t", "    ")) if lines else _ANY.sub(_escape, text)


def shown_json(text: str) -> str:
    """JSON text in which all that is unseen is an escape of JSON's: the same value. The line feeds between its parts stay."""
    return text if text.isascii() and "\x7f" not in text else _IN_LINES.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _NAMES.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def _json_escape(found: re.Match[str]) -> str:
    """Above U+FFFF: as the pair of surrogates that JSON has for it."""
    pair = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(pair[i : i + 2]):04x}" for i in range(0, len(pair), 2))
