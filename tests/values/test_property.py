"""Values by property: whatever a type and a value are, the value comes back as it was, or is refused by name before it counts.

The same holds of a step's result, of input, signal, heartbeat and the workflow's own result, live, on replay and in an export,
and of JSON that others write. `make property MINUTES=30` goes on for that long with fresh examples.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from shapes import ODD, PLAIN, Shape, canonical, shapes

from stepfold import Client, Context, InputInvalid, Retry, Run, Step, StepFailed, ValueInvalid, WorkflowFailed, current_step
from stepfold.authoring.workflow import Workflow
from stepfold.drivers import MemoryDriver
from stepfold.errors import ConfigError
from stepfold.values.codec import Codec, Written, dumps
from stepfold.values.digits import loads
from stepfold.values.taken import taken

MINUTES = float(os.environ.get("STEPFOLD_PROPERTY_MINUTES", "0"))
LIMIT_S = 60
PROPERTIES = 6
"""So many tests share the minutes."""


def property_of(*strategies: Any, examples: int) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A test over generated examples: always the same `examples` of them, or fresh ones for a share of MINUTES."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        profile = settings(
            max_examples=examples,
            deadline=None,
            derandomize=not MINUTES,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
        )
        round_of = profile(given(*strategies)(check))

        def repeated() -> None:
            until = time.monotonic() + MINUTES * 60 / PROPERTIES
            round_of()
            while time.monotonic() < until:
                round_of()

        repeated.__name__, repeated.__doc__ = check.__name__, check.__doc__
        return pytest.mark.timeout(300 + MINUTES * 60 * 3)(repeated)

    return decorate


@st.composite
def typed(draw: st.DrawFn) -> tuple[Any, Any]:
    """An annotation that pydantic takes, and a value for it."""
    shape: Shape = draw(shapes())
    value = draw(shape.values)
    return shape.annotation, value


def codec_of(annotation: Any) -> Codec | None:
    try:
        return Codec(annotation, "here")
    except ConfigError:  # pydantic has no such union, say
        return None


def encoded(encode: Callable[[Any], bytes], value: Any) -> bytes | None:
    """None where it is refused, in one line that says why."""
    try:
        return encode(value)
    except ValueInvalid as error:
        refused = str(error)
    assert len(refused) > 10 and "\n" not in refused
    return None


def again(data: bytes) -> Any:
    """JSON as it comes out of a record."""
    return orjson.loads(orjson.dumps({"value": orjson.loads(data)}))["value"]


@property_of(typed(), examples=1000)
def test_a_value_comes_back_as_it_was_or_is_refused(case: tuple[Any, Any]) -> None:
    annotation, value = case
    codec = codec_of(annotation)
    if codec is None:
        return
    note(f"{annotation!r} {value!r}")
    before = canonical(value)
    data = encoded(codec.encode, value)
    if data is not None:
        came = canonical(codec.decode(again(data)))
        assert before == came or in_floats(before) == in_floats(came), (value, codec.decode(again(data)))
    assert canonical(value) == before


def in_floats(value: Any) -> Any:
    """With its integers as the floats that they are: where the type says float, type checkers take an int."""
    if isinstance(value, tuple):
        value = cast(tuple[Any, ...], value)
        if len(value) == 2 and value[0] is int:
            return canonical(float(value[1])) if abs(value[1]) < 2**1000 and float(value[1]) == value[1] else value
        return tuple(in_floats(one) for one in value)
    return frozenset(in_floats(one) for one in cast(frozenset[Any], value)) if isinstance(value, frozenset) else value


@property_of(PLAIN | ODD, examples=500)
def test_without_a_type_only_json_is_taken(value: Any) -> None:
    before = canonical(value)
    data = encoded(dumps, value)
    assert data is None or canonical(again(data)) == before


@property_of(typed(), examples=300)
def test_what_a_caller_gives_is_what_the_model_made_of_it(case: tuple[Any, Any]) -> None:
    annotation, value = case
    codec = codec_of(annotation)
    if codec is None:
        return
    try:
        made = TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        with pytest.raises((ValidationError, ValueInvalid)):
            codec.accept(value)
        return
    try:
        data = codec.accept(value)
    except ValueInvalid:
        return
    came = canonical(codec.decode(again(data)))
    assert in_floats(canonical(made)) == in_floats(came)


@property_of(typed(), examples=300)
def test_a_copy_is_the_same_and_its_own(case: tuple[Any, Any]) -> None:
    _, value = case
    before = canonical(value)
    copy = taken([value])
    assert copy is not None and canonical(copy[0]) == before and canonical(value) == before
    if isinstance(value, list | dict | set | bytearray):
        assert copy[0] is not value


NUMERALS = st.from_regex(r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


class Priced(BaseModel):
    exact: Decimal | None = None
    double: float | None = None
    whole: int | None = None
    anything: Any = None
    many: list[Decimal] = []


async def handler(ctx: Context, step: Any) -> None: ...


@property_of(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["exact", "double", "whole", "anything"], NUMERALS)),
    st.lists(NUMERALS, max_size=3),
    examples=1500,
)
def test_numbers_that_others_write_keep_their_digits_or_are_refused(numerals: dict[str, str], many: list[str]) -> None:
    text = ", ".join(f'"{name}": {numeral}' for name, numeral in numerals.items())
    text = f'{{{text}{", " if text else ""}"many": [{", ".join(many)}]}}'
    workflow: Workflow[Any, Any] = Workflow(handler, "w", "1", Priced)
    try:
        loads(text.encode())
    except ValueError:  # above any double
        return
    data = b""
    try:
        data = workflow.encode_input(Written(text.encode()))
    except InputInvalid as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert any(name in told for name in Priced.model_fields)
        return
    came: Priced = workflow.decode_input(again(data))
    exact = {name: Decimal(numeral) for name, numeral in numerals.items()}
    assert came.exact is None or same_number(came.exact, exact["exact"])
    assert came.double is None or canonical(came.double) == canonical(float(numerals["double"])), text
    assert came.whole is None or came.whole == exact["whole"]
    assert came.anything is None or prints(came.anything, exact["anything"])
    assert all(same_number(one, Decimal(other)) for one, other in zip(came.many, many, strict=True))


def same_number(one: Decimal, other: Decimal) -> bool:
    return one == other


def prints(number: Any, exact: Decimal) -> bool:
    """Whether `exact` is the number, or what a double prints with so many digits."""
    return Decimal(repr(number)) == exact or Decimal(f"{number:.{len(exact.as_tuple().digits) - 1}e}") == exact


QUICK = Retry(3, backoff="1ms", jitter=False)


async def through_the_engine(cases: list[tuple[Any, Any]]) -> None:
    """Each case as input, result of a step, signal, heartbeat and result of the workflow, before and after a restart."""
    name = uuid4().hex
    seen: dict[int, list[Any]] = {}
    client = Client(driver=MemoryDriver(name))
    runs: dict[int, Run[Any]] = {}
    calls: dict[int, int] = {}

    def register(number: int, annotation: Any, value: Any) -> Workflow[Any, Any]:
        def give() -> Any:
            calls[number] = calls.get(number, 0) + 1
            return value

        give.__annotations__["return"] = annotation

        def beat() -> Any:
            if current_step().attempt == 1:
                current_step().heartbeat(value)
                raise ConnectionError
            return True if canonical(current_step().last_heartbeat) == canonical(value) else repr(current_step().last_heartbeat)

        async def body(ctx: Context, step: Step) -> Any:
            got: list[Any] = [("input", ctx.input.data)]
            seen[number] = got
            for place, fn in (("result", give), ("heartbeat", beat)):
                try:
                    got.append((place, await step.run(place, fn, retry=QUICK)))
                except StepFailed as error:
                    assert error.attempts == 1 and error.error.type == "ValueInvalid", error  # noqa: PT017  # it need not be raised
            with contextlib.suppress(InputInvalid):
                got.append(("signal", (await step.wait_for_signal("signal", signal="s", schema=annotation)).data))
            await step.wait_for_signal("go", signal="go")
            return ctx.input.data

        body.__annotations__["return"] = annotation
        return client.workflow(id=f"w{number}", input_schema=annotation)(body)

    made = {number: register(number, *case) for number, case in enumerate(cases)}
    async with client.worker():
        for number, (_, value) in enumerate(cases):
            try:
                runs[number] = await client.start_workflow(made[number], value, run_id=f"r{number}")
            except InputInvalid:
                continue
            try:
                await runs[number].signal("s", value)
            except InputInvalid:
                await runs[number].signal("s", "refused")
        for run in runs.values():
            while "signal 'go'" not in "".join((await run.status()).waiting_on) and (await run.status()).ended_at is None:
                await asyncio.sleep(0)
    first, seen = seen, {}
    async with client.worker():
        for number, run in runs.items():
            await run.signal("go")
            try:
                result = await run.result(LIMIT_S)
            except WorkflowFailed as error:
                assert error.error.type == "ValueInvalid", error  # noqa: PT017  # it need not be raised
            else:
                first[number].append(("output", result))
            assert calls.get(number) == 1
            as_it_was = in_floats(canonical(cases[number][1]))
            live = {place: in_floats(canonical(value)) for place, value in first[number]}
            replayed = {place: in_floats(canonical(value)) for place, value in seen[number]}
            assert live.pop("heartbeat", canonical(True)) == canonical(True)
            replayed.pop("heartbeat", None)
            assert {place: live[place] for place in replayed} == replayed
            assert live.get("result", as_it_was) == as_it_was
            assert live.get("output", live["input"]) == live["input"]


@property_of(st.lists(typed().filter(lambda case: codec_of(case[0]) is not None), min_size=1, max_size=8), examples=25)
def test_through_the_engine_and_a_restart(cases: list[tuple[Any, Any]]) -> None:
    asyncio.run(through_the_engine(cases))
