"""What steps and workflows return: typed, the same live and on replay, or an error that names what cannot be recorded."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from eventually import eventually
from one_run import LIMIT_S, outcome
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
from typing_extensions import TypedDict

from stepfold import Client, Context, InputInvalid, Retry, Run, Step, StepFailed, WorkflowFailed, current_step

QUICK = Retry(3, backoff="1ms", jitter=False)


class Model(BaseModel):
    name: str
    at: datetime
    price: Decimal = Field(alias="the price")


@dataclass(frozen=True)
class Point:
    x: int
    y: float


class Colour(Enum):
    RED = "red"
    BLUE = 3


class Movie(TypedDict):
    title: str
    year: int


def give_model() -> Model:
    return Model.model_validate({"name": "x", "at": datetime(2026, 1, 2, tzinfo=UTC), "the price": "1.10"})


def give_models() -> dict[str, list[Model]]:
    return {"all": [give_model()]}


def give_point() -> Point:
    return Point(1, 0.5)


def give_datetime() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def give_date() -> date:
    return date(2026, 1, 2)


def give_timedelta() -> timedelta:
    return timedelta(days=3, microseconds=1)


def give_decimal() -> Decimal:
    return Decimal("0.10000000000000000000000000001")


def give_uuid() -> UUID:
    return UUID(int=5)


def give_enum() -> Colour:
    return Colour.BLUE


def give_bytes() -> bytes:
    return b"\x00\xff\xfe"


def give_typed_dict() -> Movie:
    return {"title": "Stalker", "year": 1979}


def give_tuple() -> tuple[int, str, Colour]:
    return (1, "a", Colour.RED)


def give_set() -> set[int]:
    return {3, 1, 2}


def give_union() -> Point | Movie | None:
    return Point(2, 1.5)


def give_nothing() -> None: ...


def give_floats() -> list[float]:
    return [math.inf, -math.inf, 1e300, -0.0]


async def give_model_async() -> Model:
    return give_model()


GIVERS: list[Callable[[], Any]] = [
    give_model,
    give_models,
    give_point,
    give_datetime,
    give_date,
    give_timedelta,
    give_decimal,
    give_uuid,
    give_enum,
    give_bytes,
    give_typed_dict,
    give_tuple,
    give_set,
    give_union,
    give_nothing,
    give_floats,
    give_model_async,
]


@pytest.mark.parametrize("give", GIVERS, ids=lambda give: give.__name__.removeprefix("give_"))
async def test_a_result_is_what_the_function_returned_live_and_on_replay(client: Client, give: Callable[[], Any]) -> None:
    expected = await give() if inspect.iscoroutinefunction(give) else give()
    seen: list[Any] = []

    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> None:
        seen.append(await step.run("give", give))
        await step.wait_for_signal("go", signal="go")

    async with client.worker():
        run = await client.start_workflow(w, run_id="r")
        await eventually(lambda: waits(run))
    async with client.worker():
        await run.signal("go")
        await run.result(LIMIT_S)
    assert len(seen) == 2
    for each in seen:
        assert each == expected and type(each) is type(expected)


async def waits(run: Run[Any]) -> bool:
    return (await run.status()).state == "waiting"


async def test_without_an_annotation_a_result_is_json(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        return await step.run("json", lambda: {"a": [1, 2.5, "x"], "b": None, "c": True})

    assert await outcome(client, body) == {"a": [1, 2.5, "x"], "b": None, "c": True}


async def test_what_the_workflow_returns_is_typed_too(client: Client) -> None:
    @client.workflow(id="w")
    async def w(ctx: Context, step: Step) -> dict[str, Point]:
        return {"a": Point(1, 2)}

    async with client.worker():
        run = await client.start_workflow(w, run_id="r")
        assert await run.result(LIMIT_S) == {"a": Point(1, 2)}
        assert await client.run("r").result(LIMIT_S) == {"a": Point(1, 2)}, "by the code that is registered"
        assert (await run.status()).result == {"a": {"x": 1, "y": 2.0}}


def give_wrong_type() -> int:
    return cast(int, "not a number")


def give_none_for_int() -> int:
    return cast(int, None)


def give_number() -> str | None:
    return cast(str, 5)


def give_wrong_items() -> list[int]:
    return cast(list[int], [1, 2.5])


def give_object_for_model() -> Login:
    return cast(Login, object())


def give_generator() -> Any:
    return (n for n in [1])


def give_generator_typed() -> list[int]:
    return cast(list[int], give_generator())


async def yields() -> AsyncIterator[int]:
    yield 1


def give_async_generator() -> Any:
    return yields()


async def give_future() -> Any:
    return [asyncio.get_running_loop().create_future()]


async def give_future_typed() -> int:
    return cast(int, asyncio.get_running_loop().create_future())


def give_object() -> Any:
    return object()


def give_lossy() -> Lossy:
    return Lossy(kept=1, left_out=2)


def give_long_integer() -> int:
    return 2**70 + 1


def give_deep() -> Any:
    found: Any = 1
    for _ in range(230):
        found = [found]
    return found


def give_half_a_character() -> str:
    return "\ud800"


class Lossy(BaseModel):
    kept: int
    left_out: int = Field(exclude=True)


class Login(BaseModel):
    password: SecretStr


def give_secret() -> Login:
    return Login(password=SecretStr("hunter2"))


class Shipping(BaseModel):
    city: str


class Express(Shipping):
    hours: int


def give_subclass() -> Shipping:
    return Express(city="Oslo", hours=4)


def give_subclass_in_list() -> list[Shipping]:
    return [Express(city="Oslo", hours=4)]


def give_nan() -> Any:
    return math.nan


class Reading(BaseModel):
    value: float | None


def give_nan_in_model() -> Reading:
    return Reading(value=math.nan)


class Gauge(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    level: float


def give_constant() -> Gauge:
    return Gauge(level=math.nan)


class Document(BaseModel):
    pdf: bytes


def give_bytes_in_model() -> Document:
    return Document(pdf=b"%PDF-1.7\xe2\xe3")


def give_tuple_plain() -> Any:
    return {"a": (1, 2)}


def give_keys() -> Any:
    return {"b": {1: 2}}


def give_now() -> Any:
    return datetime(2026, 1, 2, tzinfo=UTC)


class TwoNames(BaseModel):
    name: str = Field(validation_alias="in", serialization_alias="out")


def give_two_names() -> TwoNames:
    return TwoNames.model_validate({"in": "x"})


class Seen(BaseModel):
    _seen: int = PrivateAttr(0)

    def see(self) -> Seen:
        self._seen += 1
        return self


def give_private() -> Seen:
    return Seen().see()


def give_fold() -> datetime:
    return datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1)


REFUSED: dict[Callable[[], Any], str] = {
    give_wrong_type: "give_wrong_type returned 'not a number', but its annotation says int",
    give_none_for_int: "give_none_for_int returned None, but its annotation says int",
    give_number: "give_number returned 5, but its annotation says str | None",
    give_wrong_items: "give_wrong_items returned [1, 2.5], but its annotation says list[int]: 1: Input should be",
    give_object_for_model: "but its annotation says Login",
    give_generator: "is a generator; give a list of what it yields",
    give_generator_typed: "is a generator; give a list of what it yields",
    give_async_generator: "is an async generator; give a list of what it yields",
    give_future: "[0]: <Future pending> was not awaited; write `await`",
    give_future_typed: "<Future pending> was not awaited; write `await`",
    give_object: "JSON has no object",
    give_lossy: "left_out",
    give_long_integer: "64 bits",
    give_deep: "nested more than 200 deep",
    give_half_a_character: "surrogate",
    give_secret: "password: SecretStr('**********') would come back as another SecretStr; pydantic writes a secret as asterisks",
    give_subclass: "Express.hours would be lost; annotate Express",
    give_subclass_in_list: "[0]: Express(",
    give_nan: "JSON has no nan",
    give_nan_in_model: "value: nan (float) would come back as None (NoneType); give the model ConfigDict(ser_json_inf_nan=",
    give_constant: "level: JSON has no nan; give the model ConfigDict(ser_json_inf_nan=",
    give_bytes_in_model: 'ser_json_bytes="base64"',
    give_tuple_plain: "a: JSON has no tuple ((1, 2)). Annotate its type",
    give_keys: "b: the key 1 is not text, and JSON has only text as keys",
    give_now: "JSON has no datetime",
    give_two_names: "AliasChoices",
    give_private: "_seen",
    give_fold: "without fold",
}


@pytest.mark.parametrize(("give", "told"), REFUSED.items(), ids=lambda one: getattr(one, "__name__", ""))
async def test_what_cannot_be_recorded_fails_the_step_by_name(client: Client, give: Callable[[], Any], told: str) -> None:
    """And not the run that has it already: what would not come back the same is not recorded."""

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed) as failed:
            await step.run("give", give, retry=QUICK)
        return [failed.value.attempts, failed.value.error.type, failed.value.error.message]

    attempts, kind, message = await outcome(client, body)
    assert (attempts, kind) == (1, "ValueInvalid"), "another attempt would do its work again and return the same"
    assert "'give' cannot be recorded as JSON" in message and told in message


async def test_a_result_above_the_limit_fails_the_step_at_once(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(StepFailed) as failed:
            await step.run("large", lambda: "x" * 900_000)
        return [failed.value.attempts, failed.value.error.type, failed.value.error.message]

    attempts, kind, message = await outcome(client, body)
    assert (attempts, kind) == (1, "PayloadTooLarge") and "'large'" in message and "900,000" in message


@pytest.mark.parametrize("give", [give_object, give_deep, lambda: "x" * 900_000], ids=["object", "deep", "large"])
async def test_a_workflow_s_result_that_cannot_be_recorded_fails_the_run(client: Client, give: Callable[[], Any]) -> None:
    async def body(ctx: Context, step: Step) -> Any:
        return give()

    with pytest.raises(WorkflowFailed):
        await outcome(client, body)


@pytest.mark.parametrize("annotation", [Any, int])
async def test_a_step_that_a_workflow_returns_without_an_await_is_named(client: Client, annotation: Any) -> None:
    forgotten: list[Any] = []

    async def body(ctx: Context, step: Step) -> Any:
        forgotten.append(step.run("give", give_point))
        return forgotten[-1]

    body.__annotations__["return"] = annotation
    with pytest.raises(WorkflowFailed, match=r"<coroutine.*> was not awaited; write `await` in front of the call"):
        await outcome(client, body)
    for one in forgotten:
        one.close()


async def test_a_workflow_that_returns_another_type_is_named(client: Client) -> None:
    async def body(ctx: Context, step: Step) -> int:
        return cast(int, None)

    with pytest.raises(WorkflowFailed, match=r"body returned None, but its annotation says int"):
        await outcome(client, body)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([Login(password=SecretStr("x"))], r'\[0\]: JSON has no Login.*`model_dump\(mode="json"\)`'),
        ({"at": Point(1, 2)}, r'at: JSON has no Point.*`pydantic.TypeAdapter\(Point\).dump_python\(value, mode="json"\)`'),
        ((1, 2), r"JSON has no tuple.*Convert it"),
        ({1: 2}, r"the key 1 is not text.*Make texts"),
        (math.nan, r"JSON has no nan. Give None or a text"),
    ],
    ids=range(5),
)
async def test_where_nothing_can_be_annotated_the_message_says_what_else_to_do(client: Client, data: Any, told: str) -> None:
    """In the data of signals and in heartbeats."""

    async def beat() -> None:
        current_step().heartbeat(data)

    async def body(ctx: Context, step: Step) -> Any:
        with pytest.raises(InputInvalid, match=told) as refused:
            await step.send_signal("tell", signal="s", data=data, run_id="another")
        with pytest.raises(StepFailed, match=told) as failed:
            await step.run("beat", beat)
        return [str(refused.value), str(failed.value)]

    assert not any(word in text for text in await outcome(client, body) for word in ("Annotate", "schema=", "Context["))


async def test_numbers_that_no_reader_of_records_knows_are_refused_before_the_record(client: Client) -> None:
    """As input, as data of signals from outside and from a step, and as a workflow's result; pydantic itself would read them."""
    wrong = Gauge(level=math.inf)

    @client.workflow(id="w")
    async def w(ctx: Context[Gauge], step: Step) -> Gauge:
        with pytest.raises(InputInvalid, match="level: JSON has no inf"):
            await step.send_signal("tell", signal="s", data=wrong, run_id="another")
        await step.wait_for_signal("s", signal="s", schema=Gauge)
        return wrong

    async with client.worker():
        for workflow in (w, "elsewhere"):
            with pytest.raises(InputInvalid, match="level: JSON has no inf"):
                await client.start_workflow(workflow, wrong)
        run = await client.start_workflow(w, Gauge(level=1))
        with pytest.raises(InputInvalid, match="level: JSON has no inf"):
            await run.signal("s", wrong)
        await run.signal("s", Gauge(level=1))
        with pytest.raises(WorkflowFailed, match=r"result of workflow 'w'.*level: JSON has no inf"):
            await run.result(LIMIT_S)


async def test_an_annotation_that_pydantic_does_not_know_is_named(client: Client) -> None:
    def give_lock() -> threading.Lock:
        raise NotImplementedError

    async def body(ctx: Context, step: Step) -> Any:
        await step.run("lock", give_lock)

    with pytest.raises(WorkflowFailed, match=r"ConfigError.*give_lock.*pydantic cannot validate"):
        await outcome(client, body)
