"""Text from elsewhere is shown, not sent."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT, tracked

import stepfold.logs
from stepfold.values.text import Lines, shown, shown_json

LOGGER = re.compile(r"""getLogger\("(stepfold[\w.]*)"\)""")
UNSEEN = (
    "\x00\x07\x08\t\n\v\r\x1b\x7f\x85\x9b\xad\u061c\u200b\u200d\u200e\u2028\u2029\u202e\u2060\u2066\u2069\ufeff\U000e0041\udcff"
)


def test_what_cannot_be_seen_is_an_escape() -> None:
    assert shown("a\x1b[2Jb\x07\u202e\U000e0041\n\t\r") == r"a\x1b[2Jb\x07\u202e\U000e0041\n\t\r"
    assert not any(character in shown(UNSEEN) for character in UNSEEN)
    assert shown(UNSEEN).isascii() and shown(shown(UNSEEN)) == shown(UNSEEN)


def test_what_can_be_seen_stays() -> None:
    for text in ("", "plain", "Grüße, 世界 ✔ ❤\ufe0f e\u0301", r"C:\x1b", "no\xa0break", "שלום"):
        assert shown(text) == text


def test_lines_of_ours_stay_lines() -> None:
    assert shown("a\n\tb\r\x1b\x85", lines=True) == "a\n    b\\r\\x1b\\x85"


@given(st.text(st.characters()))
def test_no_control_format_or_separator_character_is_left(text: str) -> None:
    assert not {unicodedata.category(character) for character in shown(text)} & {"Cc", "Cs", "Zl", "Zp"}


@given(
    st.recursive(
        st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_means_the_same_with_escapes(value: Any) -> None:
    try:
        plain = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONEncodeError:
        return
    escaped = shown_json(plain)
    assert orjson.loads(escaped) == value
    assert shown(escaped, lines=True) == escaped


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter("%(message)s").format(record))


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    logger = logging.getLogger("stepfold.worker")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not mine")

    __repr__ = __str__


def test_foreign_text_in_log_records_is_shown(kept: Kept) -> None:
    logger = logging.getLogger("stepfold.worker")
    logger.warning("run %s: %s", "r\n2026 INFO forged", ValueError("\x1b[2J"))
    logger.warning("%s of %d", RuntimeError("plain"), 7)
    logger.warning("two\nlines\x1b")
    logger.warning("failed%s", Lines("\nTrace\n\t\x1b[2J"))
    logger.warning("%(a)s", {"a": "x"})
    try:
        raise ValueError("\x1b]0;owned\x07\nsecond")
    except ValueError:
        logger.exception("failed")
    assert kept.lines[:5] == [
        r"run r\n2026 INFO forged: \x1b[2J",
        "plain of 7",
        "two\nlines\\x1b",
        "failed\nTrace\n    \\x1b[2J",
        "x",
    ]
    assert kept.lines[5].endswith("ValueError: \\x1b]0;owned\\x07\nsecond")


def test_what_cannot_be_formatted_is_told_all_the_same(kept: Kept) -> None:
    logger = logging.getLogger("stepfold.worker")
    logger.warning("run %s: %s", "r", Hostile())
    logger.warning(Hostile())
    logger.warning("%d", "x")
    assert [line.partition(" (")[0] for line in kept.lines] == ["run %s: %s", "Hostile", "%d"]
    logger.warning("plain", exc_info=(Odd, Odd(), None))
    assert kept.lines[-1].startswith("plain\n")


class Odd(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]  # as hostile as they come
        raise RuntimeError("no")


def test_all_our_loggers_show_foreign_text_and_contain_errors() -> None:
    stepfold.logs.prepare_loggers()  # again: it is idempotent
    names = {
        name
        for path in tracked("engine/*.py", "drivers/*.py", "projections/*.py")
        for name in LOGGER.findall((ROOT / path).read_text())
    }
    assert names <= set(stepfold.logs.NAMES), "a new logger is named in stepfold.logs too"
    for name in stepfold.logs.NAMES:
        assert len(logging.getLogger(name).filters) == 1
        assert isinstance(logging.getLogger(name), stepfold.logs.Contains)
