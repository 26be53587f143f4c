"""Numbers of JSON that others wrote keep their digits, by whoever reads them, or are refused by name."""

from __future__ import annotations

import json
import math
from decimal import Context as Decimals
from decimal import Decimal, FloatOperation, Inexact, localcontext
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from stepfold.authoring.context import Context
from stepfold.authoring.workflow import Workflow
from stepfold.errors import InputInvalid, ValueInvalid
from stepfold.log import InboxRecord
from stepfold.values.codec import Codec, Written, written
from stepfold.values.digits import as_text, held, loads, raw
from stepfold.worker.inbox import Refused, parse

BIG = 2**70 + 1
LONG = Decimal("12345678901234567.89")
EXACT = Decimal("1.000000000000000001")
HELD = ["0", "-1", "1.10", "1e5", "-0.0", "1E-7", "9007199254740993", "18446744073709551615", "-9223372036854775808"]
AS_DOUBLES_PRINT = ["0.10000000000000001", "0.1000000000000000055511151231257827", "100000000000000000000.0", "5e-324"]
LOST = ["18446744073709551616", "1180591620717411303425", str(EXACT), str(LONG), "1E-400", "-0", "9" * 300]


class Price(BaseModel):
    amount: Decimal
    rate: float = 0
    count: int = 0
    more: Any = None


@pytest.mark.parametrize("digits", HELD)
def test_a_number_that_is_held_is_a_number(digits: str) -> None:
    value = loads(b'{"a": [%b]}' % digits.encode())
    assert value["a"][0] == json.loads(digits) and type(value["a"][0]) is type(json.loads(digits))
    assert held(value) == orjson.dumps({"a": [json.loads(digits)]})


@pytest.mark.parametrize("digits", AS_DOUBLES_PRINT)
def test_what_a_double_prints_is_that_double(digits: str) -> None:
    assert orjson.loads(held(loads(b"[%b]" % digits.encode()))) == [float(digits)]
    assert orjson.loads(held(loads(digits.encode()))) == float(digits)


@pytest.mark.parametrize("digits", LOST)
def test_a_number_that_would_come_as_another_is_refused_by_name(digits: str) -> None:
    for text, place in ((f'{{"a": {{"b": [0, {digits}]}}}}', "a.b[1]: "), (digits, "")):
        with pytest.raises(ValueError, match=r"write (it as a text|one of these)") as refused:
            held(loads(text.encode()))
        assert str(refused.value).startswith(place) and str(refused.value)[len(place) :].startswith(("the integer", digits[:60]))


def test_what_is_nested_too_deep_or_no_json_is_left_to_whoever_asked() -> None:
    deep = b"[" * 300 + b"1.000000000000000001" + b"]" * 300
    assert loads(deep) == orjson.loads(deep)
    for data in (b"1e400", b"NaN", b"{", b""):
        with pytest.raises(ValueError):  # noqa: PT011  # the parser's words
            loads(data)


def test_a_decimal_context_of_the_program_changes_nothing() -> None:
    text = b"[9007199254740993.0, 12345678901234567.89, 0.1]"
    with localcontext(Decimals(prec=2, Emin=-1, Emax=1, traps=[FloatOperation, Inexact])):
        assert loads(text) == [Decimal(9007199254740993), LONG, 0.1]
        assert as_text(Decimal("1.23456789E+25")) == "12345678900000000000000000"
        with pytest.raises(ValueError, match="has an exponent that no number can have"):
            loads(b"[1E-9999999999999999999]")


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_there_as_it_was_or_refused(number: Any) -> None:
    text = str(number)
    try:
        found = orjson.loads(held(loads(text.encode())))
    except ValueError:
        return
    exact = Decimal(text)
    assert Decimal(repr(found)) == exact or Decimal(f"{found:.{len(exact.as_tuple().digits) - 1}e}") == exact
    assert math.copysign(1, found) == math.copysign(1, float(exact)) or text == "0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"amount": 1.000000000000000001}', Price(amount=EXACT)),
        (
            '{"amount": 12345678901234567.89, "rate": 0.10000000000000001}',
            Price(amount=LONG, rate=0.1),
        ),
        (
            '{"amount": 1180591620717411303425, "count": 1180591620717411303425}',
            Price(amount=Decimal(BIG), count=BIG),
        ),
        ('{"amount": 1.5, "more": [0.10000000000000001]}', Price(amount=Decimal("1.5"), more=[0.1])),
        (
            '{"amount": 1.000000000000000001, "more": 0.10000000000000001}',
            Price(amount=EXACT, more=0.1),
        ),
        ('{"amount": 1, "count": 600000000001E6}', Price(amount=Decimal(1), count=600000000001000000)),
        ('{"amount": 1, "rate": -0}', Price(amount=Decimal(1), rate=-0.0)),
    ],
)
def test_a_type_gets_the_digits_that_it_can_keep(text: str, expected: Price) -> None:
    codec = Codec(Price, "x")
    found = codec.decode(orjson.loads(codec.accept_json(loads(text.encode()))))
    assert found.model_dump() == expected.model_dump() or found.model_dump() | {"count": BIG} == expected.model_dump()
    assert str(found.amount) == str(expected.amount) and repr(found.rate) == repr(expected.rate)


@pytest.mark.parametrize(
    "text", ['{"amount": 1, "more": 1180591620717411303425}', '{"amount": 1, "more": [1.000000000000000001]}']
)
def test_where_nobody_knows_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalid, match=r"^more(\[0\])?: 1.*write it as a text"):
        Codec(Price, "x").accept_json(loads(text.encode()))
    with pytest.raises(InputInvalid, match=r"the data: more|the data is not JSON: more"):
        written(Written(text.encode()), "the data")


def test_what_is_nested_too_deep_is_refused_and_nothing_else_happens() -> None:
    deep = Written(b"[" * 900 + b"1.000000000000000001" + b"]" * 900)
    with pytest.raises(InputInvalid, match="nested more than 200 deep"):
        written(deep, "the data")
    for annotation in (Any, Price):
        with pytest.raises(InputInvalid, match="nested more than 200 deep"):
            workflow_of(annotation).encode_input(deep)


def workflow_of(annotation: Any) -> Workflow[Any, Any]:
    async def handler(ctx: Context, step: Any) -> None: ...

    return Workflow(handler, "w", "1", annotation)


def test_the_input_of_a_workflow_keeps_its_digits() -> None:
    text = b'{"amount": 1.000000000000000001}'
    encoded = workflow_of(Price).encode_input(Written(text))
    assert encoded == b'{"amount":"1.000000000000000001"}'
    assert workflow_of(Decimal).encode_input(Written(b"1.000000000000000001")) == b'"1.000000000000000001"'
    with pytest.raises(InputInvalid, match="write it as a text"):
        workflow_of(Any).encode_input(Written(text))
    with pytest.raises(InputInvalid, match="amount"):
        workflow_of(Price).encode_input(Written(b"{}"))


def record(value: bytes) -> InboxRecord:
    return InboxRecord("inbox/0/1", 1, None, value, ())


def test_a_record_of_the_inbox_keeps_them_too() -> None:
    start = parse(record(b'{"type": "start", "workflow": "w", "data": {"amount": 1.000000000000000001}}'))
    assert workflow_of(Price).encode_json(start.data) == b'{"amount":"1.000000000000000001"}'
    assert raw(start.data) == b'{"amount":1.000000000000000001}'
    for wrong in (b'{"type": "start", "workflow": 1.000000000000000001}', b'{"type": "start", "data": 1e400}'):
        with pytest.raises(Refused):
            parse(record(wrong))


@pytest.mark.parametrize(
    "text", [b"1000000000000000000e-9223372036854775808", b'{"a":[12345678901234567890e99999999999999999999]}']
)
def test_an_exponent_that_no_number_can_have_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"exponent|JSON|number"):
        loads(text)
