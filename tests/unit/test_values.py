"""Durations, retries, errors and codecs: what they take, what they refuse, and what comes back."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Annotated, Any, NoReturn
from weakref import ref

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, SecretBytes, ValidationError, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from stepfold.errors import ConfigError, ErrorInfo, NonRetryable, PayloadTooLarge, RetryAfter, StepFailed, ValueInvalid
from stepfold.events import decode
from stepfold.values.codec import Codec, codec_for, result_codec
from stepfold.values.duration import duration_ms, words
from stepfold.values.nesting import MAX_DEPTH
from stepfold.values.pace import ON_LOOP, pace_of
from stepfold.values.retry import Retry


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        (0, 0),
        (1, 1_000),
        (0.0015, 2),
        ("250ms", 250),
        ("1.5h", 5_400_000),
        ("1w2d", 777_600_000),
        (timedelta(hours=1), 3_600_000),
    ],
)
def test_a_duration(duration: Any, ms: int) -> None:
    assert duration_ms(duration) == ms


@pytest.mark.parametrize(
    "duration", ["", "5", "s", "1 s", "١s", "-1s", "1y", -0.001, math.nan, math.inf, True, None, [], timedelta(-1), "9999999d"]
)
def test_no_duration(duration: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_ms(duration)


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (5_400_000, "1h 30m"), (90_061_000, "1d 1h")]
)
def test_a_duration_in_words(ms: int, text: str) -> None:
    assert words(ms) == text


@given(st.integers(1, 2_000), st.floats(1, 10), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 2**32))
def test_a_pause_is_within_its_bounds(failures: int, factor: float, backoff_s: int, longest_s: int, seed: int) -> None:
    exact = Retry(10_000, backoff_s, factor, longest_s, jitter=False).pause_ms(ValueError(), failures, Random(seed))
    jittered = Retry(10_000, backoff_s, factor, longest_s).pause_ms(ValueError(), failures, Random(seed))
    assert exact is not None and 0 < exact <= longest_s * 1000
    assert jittered is not None and exact // 2 <= jittered <= exact


@pytest.mark.parametrize("jitter", ["no", 0, None])
def test_jitter_is_true_or_false(jitter: Any) -> None:
    with pytest.raises(TypeError, match=r"Retry\(jitter\)=.*: it must be True or False"):
        Retry(jitter=jitter)


def test_when_there_is_no_next_attempt() -> None:
    retry, random = Retry(3, retry_on=(OSError, ExceptionGroup)), Random(0)
    assert retry.pause_ms(ConnectionError(), 2, random) is not None
    assert retry.pause_ms(ConnectionError(), 3, random) is None
    assert retry.pause_ms(ValueError(), 1, random) is None
    assert retry.pause_ms(RetryAfter("2s"), 2, random) == 2_000
    assert retry.pause_ms(RetryAfter("2s"), 3, random) is None
    for final in (NonRetryable("no"), PayloadTooLarge("no"), ValueInvalid("no")):
        assert Retry(3).pause_ms(final, 1, random) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": None},
        {"max_attempts": 2.5},
        {"max_attempts": "3"},
        {"max_attempts": True},
        {"factor": None},
        {"factor": math.nan},
        {"factor": math.inf},
        {"max_backoff": None},
        {"factor": 0.5},
        {"backoff": "soon"},
        {"max_backoff": -1},
        {"retry_on": [OSError]},
        {"retry_on": "OSError"},
    ],
)
def test_a_retry_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Retry\(|is not a duration"):
        Retry(**wrong)


@pytest.mark.parametrize("data", [None, 5, [], {}, {"type": 1, "message": None, "step_id": 5}, {"message": "m"}])
def test_whatever_a_record_holds_is_an_error(data: Any) -> None:
    info = ErrorInfo.from_json(data)
    assert ErrorInfo.from_json(info.to_json()) == info and str(info)


def test_the_error_of_a_failed_step_is_the_root() -> None:
    root = ErrorInfo("ValueError", "no", "trace", "charge")
    assert ErrorInfo.of(StepFailed("charge", 3, root)) == root
    assert str(ErrorInfo("ValueError", "")) == "ValueError" and str(root) == "ValueError: no"


def gives_plain() -> Any: ...
def gives_awaitable() -> Awaitable[int]: ...  # never called
def gives_never() -> NoReturn: ...  # never called
def gives_future() -> asyncio.Future[int]: ...  # never called


@pytest.mark.parametrize(
    ("function", "annotation"),
    [(gives_plain, Any), (gives_awaitable, int), (gives_never, NoReturn), (gives_future, int)],
)
def test_the_annotation_that_counts(function: Callable[..., Any], annotation: Any) -> None:
    assert result_codec(function).annotation == annotation


@pytest.mark.parametrize(("annotation", "right", "wrong"), [(str, "7", 7), (bool, True, [True]), (None, None, 0)])
def test_a_plain_type_is_held_to_as_well(annotation: Any, right: Any, wrong: Any) -> None:
    codec = codec_for(annotation)
    for data in (codec.encode(right), codec.accept(right)):
        assert codec.decode(orjson.loads(data)) == right
    with pytest.raises(ValidationError):
        codec.accept(wrong)
    with pytest.raises(ValidationError):
        codec.decode(wrong)
    with pytest.raises(ValueInvalid):
        codec.encode(wrong)


@given(st.integers(-(2**63), 2**64 - 1) | st.sampled_from([2**64, 2**70, 2**70 + 1, -(2**63) - 1]))
def test_an_integer_comes_back_as_it_was_or_is_refused(number: int) -> None:
    codec = codec_for(int)
    try:
        data = codec.encode(number)
    except ValueInvalid:
        assert not -(2**63) <= number < 2**64
        return
    assert codec.decode(orjson.loads(data)) == number


@given(st.integers(1, 400))
def test_what_may_be_written_may_be_read(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    try:
        data = Codec(Any, "x").encode(value)
    except (TypeError, ValueError):
        assert depth > MAX_DEPTH
        return
    assert depth <= MAX_DEPTH
    event = b'{"type":"started","v":1,"run_id":"r","at":1,"request":"q","workflow":"w","input":' + data + b"}"
    assert decode(event) is not None


def test_a_record_that_is_nested_too_deep_is_no_event() -> None:
    deep = b"[" * 300 + b"]" * 300
    event = b'{"type":"started","v":1,"run_id":"r","at":1,"request":"q","workflow":"w","input":' + deep + b"}"
    wide = b"[" + b"[],{}," * 300 + b"0]"
    assert decode(event) is None and decode(event.replace(deep, wide)) is not None


def test_a_name_that_is_not_there_at_run_time_is_named() -> None:
    def give() -> Any: ...

    give.__annotations__["return"] = "NotImported"
    with pytest.raises(ConfigError, match=r"give.*NotImported.*TYPE_CHECKING"):
        result_codec(give)


class Shop:
    def charge(self, amount: int) -> int: ...

    def charging(self, amount: int) -> Callable[[], int]:
        """A step as it is often written: a function of its own in each run."""
        return lambda: self.charge(amount)


def test_a_key_with_a_line_feed_is_told_on_one_line() -> None:
    with pytest.raises(ValueInvalid) as caught:
        codec_for(dict[str, SecretBytes]).encode({"\n": SecretBytes(b"x")})
    assert "cannot be read back: \\n: Data should be valid base64" in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_is_looked_at_once_and_not_kept() -> None:
    shop = Shop()
    assert result_codec(shop.charge) is result_codec(shop.charge)
    step = shop.charging(5)
    assert result_codec(step) is result_codec(step)
    assert pace_of(step) is not ON_LOOP
    gone = ref(shop)
    del shop, step
    gc.collect()
    assert gone() is None


class Parted(BaseModel):
    named: dict[str, int]


class Named(BaseModel):
    name: str
    tags: list[str] = []


@dataclass(slots=True)
class Titled:
    title: str


HALF = "\ud800"
HALVES: list[tuple[Any, Any, str]] = [
    (str, HALF, "'"),
    (list[str], ["a", HALF], "[1]: '"),
    (Named, Named.model_construct(name="ok", tags=["a", HALF]), "tags[1]: '"),
    (Titled, Titled(HALF), "title: '"),
    (dict[str, set[str]], {"a": {HALF}}, "a[0]: '"),
    (dict[str, Any], {"a": [HALF]}, "a[0]: '"),
    (Any, {"a": [HALF]}, "a[0]: '"),
    (Any, {"a": {HALF: 1}}, "a: the key '"),
    (dict[str, int], {HALF: 1}, "['\\ud800']: '"),
    (Parted, Parted(named={"a\udfffb": 1}), "named"),
    (dict[str, dict[str, Any]], {"a": {"\udc80": 1}}, "a"),
]


@pytest.mark.parametrize(("annotation", "value", "place"), HALVES)
def test_half_a_surrogate_pair_is_refused_by_its_place(annotation: Any, value: Any, place: str) -> None:
    with pytest.raises(ValueInvalid, match="it holds a lone surrogate") as caught:
        Codec(annotation, "a value").encode(value)
    assert str(caught.value).startswith(place)


CONSTANTS = ConfigDict(ser_json_inf_nan="constants")


class Measured(BaseModel):
    model_config = CONSTANTS
    value: float
    note: str = ""


class Holding(BaseModel):
    held: Any


@pydantic_dataclass(config=CONSTANTS)
class Gauge:
    level: float


class Twice(Measured):
    @computed_field(alias="value")
    def again(self) -> float:
        return 1.0


NO_JSON: list[tuple[Any, Any, str]] = [
    (Measured, Measured(value=math.nan), "value: JSON has no nan"),
    (list[Measured], [Measured(value=1), Measured(value=-math.inf)], "[1].value: JSON has no -inf"),
    (Holding, Holding(held=Measured(value=math.inf)), "held.value: JSON has no inf"),
    (Gauge, Gauge(math.nan), "level: JSON has no nan"),
    (dict[str, Gauge], {"NaN": Gauge(math.inf)}, "NaN.level: JSON has no inf"),
    (Twice, Twice(value=math.nan), "JSON has no NaN"),
]


@pytest.mark.parametrize(("annotation", "value", "told"), NO_JSON)
def test_numbers_that_pydantic_reads_and_readers_of_records_do_not_are_refused(annotation: Any, value: Any, told: str) -> None:
    with pytest.raises(ValueInvalid) as caught:
        Codec(annotation, "a value").encode(value)
    assert str(caught.value).startswith(told) and 'ser_json_inf_nan="strings"' in str(caught.value)


def test_the_names_of_such_numbers_are_texts_as_any_others() -> None:
    for value in (Measured(value=1, note="NaN, -Infinity"), Measured(value=1e300)):
        assert decoded(Measured, value) == value
    with pytest.raises(ValueInvalid, match="nested more than 200 deep"):
        Codec(Holding, "a value").encode(Holding(held=nested(["NaN"], 220)))


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def test_the_mark_of_what_was_replaced_is_a_text_as_any_other() -> None:
    assert decoded(dict[str, int], {"\ufffd": 1}) == {"\ufffd": 1}


def decoded(annotation: Any, value: Any) -> Any:
    codec = Codec(annotation, "a value")
    return codec.decode(orjson.loads(codec.encode(value)))


class Unfinished(BaseModel):
    other: "Missing"  # type: ignore[name-defined]  # noqa: F821, UP037


@pytest.mark.parametrize("annotation", ["Missing", Unfinished, list[Unfinished]])
def test_a_type_that_names_what_is_not_there_is_refused_when_it_is_registered(annotation: Any) -> None:
    with pytest.raises(ConfigError, match=r"the input: pydantic cannot validate.*Missing"):
        Codec(annotation, "the input")


class Riddle(Exception):
    def __str__(self) -> str:
        raise self


def puzzled(value: Any) -> Any:
    raise Riddle


def test_an_error_that_cannot_be_shown_says_no_to_a_value() -> None:
    with pytest.raises(ValueInvalid, match="cannot be shown"):
        Codec(Annotated[int, AfterValidator(puzzled)], "a value").encode(1)
