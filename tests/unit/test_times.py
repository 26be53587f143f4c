"""Points in time, and durations: total for whatever a record or a caller may hold."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from histories import Ledger
from hypothesis import given
from hypothesis import strategies as st

from stepfold.cli import output
from stepfold.errors import RetryAfter
from stepfold.operations.signal import OpenWait
from stepfold.operations.sleep import OpenSleep
from stepfold.operations.step import OpenStep
from stepfold.values.duration import LONGEST_MS, duration_ms, timer_ms
from stepfold.values.retry import Retry
from stepfold.values.times import FIRST_MS, NEVER_MS, ms_of, said, until, utc, within
from stepfold.values.words import iso
from stepfold.worker.heap import TimerHeap

EDGES = [0, -1, -(2**63), 2**63, 2**64 - 1, FIRST_MS, NEVER_MS, NEVER_MS - 1, FIRST_MS - 1, -(10**30), 10**30]


@pytest.mark.parametrize("ms", EDGES)
def test_every_time_can_be_shown(ms: int) -> None:
    when = utc(ms)
    assert ms_of(when) == within(ms)
    for hours in (-14, 14):
        when.astimezone(timezone(timedelta(hours=hours)))
    assert said(ms) and until(ms) and output.local(ms) and iso(ms)


@given(st.integers(FIRST_MS, NEVER_MS))
def test_a_time_is_shown_to_the_millisecond(ms: int) -> None:
    assert ms_of(utc(ms)) == ms
    assert iso(ms) == utc(ms).strftime("%Y").rjust(4, "0") + utc(ms).strftime("-%m-%dT%H:%M:%S.") + f"{ms % 1000:03}Z"


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))])))
def test_every_datetime_is_a_time(when: datetime) -> None:
    assert FIRST_MS <= ms_of(when) <= NEVER_MS


def test_the_end_of_the_calendar_is_never() -> None:
    assert ms_of(datetime.max.replace(tzinfo=UTC)) == NEVER_MS
    assert (said(NEVER_MS), until(NEVER_MS)) == ("never", "for ever")
    assert until(0) == "until 1970-01-01 00:00:00 UTC"


class _Zoneless(tzinfo):
    def utcoffset(self, dt: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    "when",
    [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=_Zoneless()), date(2030, 1, 1), "2030-01-01", 5, None],  # noqa: DTZ001  # what is refused
)
def test_what_is_no_point_in_time(when: Any) -> None:
    with pytest.raises(ValueError, match=r"datetime"):
        ms_of(when)


@pytest.mark.parametrize(
    "duration", [Decimal("1.5"), Fraction(3, 2), 1.5, timedelta(seconds=1.5), "1.5s", type("S", (str,), {})("1500ms")]
)
def test_numbers_of_every_kind_are_seconds(duration: Any) -> None:
    assert duration_ms(duration) == 1500


@pytest.mark.parametrize(
    "duration",
    [
        10**400,
        -(10**400),
        1e300,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("1e9999999"),
        timedelta.max,
        timedelta.min,
        "9" * 400 + "s",
        Fraction(10**400),
        1j,
        LONGEST_MS / 1000 + 1,
    ],
)
def test_a_duration_that_is_none_is_refused_in_few_words(duration: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration") as refused:
        duration_ms(duration)
    assert len(str(refused.value)) < 300


def test_a_number_too_long_to_be_shown_is_refused_as_any_other() -> None:
    with pytest.raises(ValueError, match="a value of type int is not a duration"):
        duration_ms(10**5000)


def test_timers_of_asyncio_know_no_longest() -> None:
    assert timer_ms(0.0004) == 0
    assert timer_ms(LONGEST_MS / 1000) == LONGEST_MS
    assert timer_ms(LONGEST_MS) is timer_ms(1e300) is timer_ms(float("inf")) is None


@pytest.mark.parametrize("factor", [0, 0.5, -1, float("nan"), float("inf")])
def test_a_factor_that_cannot_work(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        Retry(factor=factor)


@pytest.mark.parametrize("attempts", [0, -1, float("nan"), None, "3", 1j])
def test_a_number_of_attempts_that_cannot_work(attempts: Any) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        Retry(attempts)
    with pytest.raises(ValueError, match="factor"):
        Retry(factor=attempts)


class _Vague(RetryAfter):
    def __init__(self, **given: Any) -> None:
        Exception.__init__(self)
        vars(self).update(given)


@pytest.mark.parametrize("error", [_Vague(), _Vague(delay="soon"), _Vague(delay=float("inf"))], ids=["nothing", "soon", "inf"])
def test_an_error_that_does_not_say_when_is_tried_again_as_any_other(error: RetryAfter) -> None:
    retry = Retry(2, backoff=5)
    assert (retry.pause_ms(error, 1, Random(0)), retry.pause_ms(error, 2, Random(0))) == (5_000, None)


def test_a_pause_beyond_all_numbers_is_the_longest() -> None:
    assert Retry(10**9, factor=1e300, jitter=False).pause_ms(ValueError(), 10**6, Random(0)) == 3_600_000


@pytest.mark.parametrize("ms", EDGES)
def test_whatever_a_record_says_can_be_a_timer(ms: int) -> None:
    step = OpenStep(0)
    step.next_at = ms
    timers = TimerHeap()
    for op in (step, OpenSleep(ms, 0), OpenWait("s", ms, 0)):
        due = op.due_at
        assert (due is None) == (ms >= NEVER_MS)
        if due is not None:
            timers.push(due, "r", "s")
            assert timers.first == max(ms, FIRST_MS)
    assert OpenStep(0).due_at is OpenWait("s", None, 0).due_at is None


@pytest.mark.parametrize("before", [-(2**63), 0, 2**63 - 1])
@pytest.mark.parametrize("timestamp", [-(2**63), 0, 2**63 - 1])
def test_a_log_may_say_any_time(before: int, timestamp: int) -> None:
    ledger = Ledger()
    ledger.claim()
    for run_id, now_ms in (("a", before), ("b", timestamp), ("c", before)):
        ledger.now_ms = 0
        ledger.start(run_id)
        ledger.now_ms = now_ms
        ledger.accepts("completed", run_id, result=1)
    ledger.state.ended.forget(timestamp)
    assert ledger.state.ended.remembers("c", before)
