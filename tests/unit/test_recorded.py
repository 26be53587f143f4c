"""The input of a step as it is recorded for people: whole, cut, or with what cannot be written left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, SecretStr, model_serializer

from stepfold.values.nesting import MAX_DEPTH
from stepfold.values.recorded import MAX_INPUT_BYTES, recorded_input


class Login(BaseModel):
    name: str
    password: SecretStr


class Odd(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    number: float


class Refuses(BaseModel):
    @model_serializer
    def write(self) -> Any:
        raise RuntimeError("a secret")


@dataclass
class Point:
    x: int


def call(*args: Any, **named: Any) -> None: ...


def written(*args: Any, fn: Callable[..., Any] = call) -> tuple[list[Any], str | None]:
    fields = recorded_input(fn, args)
    return orjson.loads(orjson.dumps(fields["input"])), fields.get("input_note")


def test_arguments_are_json_in_their_order_each_by_its_own_type() -> None:
    given = [Point(1)], date(2030, 1, 2), b"\xff", float("nan"), (1, 2), {3: None}
    assert written(10, "EUR", *given) == ([10, "EUR", [{"x": 1}], "2030-01-02", "_w==", "NaN", [1, 2], {"3": None}], None)
    assert written() == ([], None)


def test_those_of_a_partial_are_there_too_and_its_named_ones_at_the_end() -> None:
    assert written(2, fn=partial(call, 1, currency="EUR", on=date(2030, 1, 2))) == (
        [1, 2, {"currency": "EUR"}, {"on": "2030-01-02"}],
        None,
    )


def test_secrets_are_asterisks() -> None:
    found, note = written(SecretStr("s3cret"), Login(name="ada", password=SecretStr("s3cret")), [SecretStr("s3cret")])
    assert found == ["**********", {"name": "ada", "password": "**********"}, ["**********"]] and note is None


@pytest.mark.parametrize("value", [object(), Refuses(), Odd(number=float("nan")), 10**400, 2**64, "\ud800", call])
def test_an_argument_that_cannot_be_written_is_named_and_the_others_are_there(value: Any) -> None:
    kind = type(value).__name__
    assert written(1, value, 2) == ([1, f"<{kind}>", 2], f"argument 2 ({kind}) cannot be written")


def test_what_is_nested_too_deep_for_an_event_is_not_written() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert written(deep) == (["<list>"], "argument 1 (list) cannot be written")
    assert written(deep[0]) == ([deep[0]], None)


def test_what_is_long_is_cut_and_a_note_says_so() -> None:
    whole = "x" * (MAX_INPUT_BYTES - 4)
    assert written(1, whole) == ([1, whole], None)
    assert written(1, whole + "x", 2) == (
        [1, f'"{whole[:-1]}xx…'],
        f"argument 2 is cut, it has {MAX_INPUT_BYTES - 1:,} bytes of JSON; those behind it are left out",
    )
    assert written("é" * MAX_INPUT_BYTES)[0] == [f'"{"é" * (MAX_INPUT_BYTES // 2 - 1)}…']


def test_however_many_and_whatever_they_are_it_stays_short() -> None:
    for many in ([object()] * 10_000, ["\\" * 100_000], [1] * 10_000, [partial(call)] * 10_000):
        fields = recorded_input(call, tuple(many))
        assert len(orjson.dumps(fields)) < 3 * MAX_INPUT_BYTES
