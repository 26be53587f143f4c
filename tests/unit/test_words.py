"""Values, times and spans in words."""

from __future__ import annotations

from stepfold.values.times import NEVER_MS
from stepfold.values.words import end_beside, iso, joined, short, span


def test_values_spans_and_times_for_people_and_programs() -> None:
    assert [span(ms) for ms in (0, 999, 1234, 61_000, 3_600_000, 90_000_000)] == [
        "0 ms",
        "999 ms",
        "1.23 s",
        "1 min 1 s",
        "1 h 0 min",
        "1 d 1 h",
    ]
    assert iso(1_700_000_000_007) == "2023-11-14T22:13:20.007Z" and iso(None) is None
    assert short("x" * 100, 10) == '"xxxxxxxx…'


def test_the_end_of_a_wait_stands_beside_another_time() -> None:
    assert end_beside(7, 3, lambda ms, other: f"{ms} beside {other}") == "until 7 beside 3"
    assert end_beside(NEVER_MS, 3, lambda ms, other: "") == "for ever"


def test_words_are_joined_if_there_are_any() -> None:
    assert joined("", "a", "", "b") == "a; b" and joined("") == ""
