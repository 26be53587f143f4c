"""Annotations are evaluated where the function was defined, and only those that are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest
from pydantic import BaseModel

from stepfold.authoring.context import Context
from stepfold.authoring.workflow import Workflow
from stepfold.errors import ConfigError
from stepfold.values.annotations import annotations_of, return_annotation, unwrapped
from stepfold.values.codec import result_codec
from stepfold.values.pace import ON_LOOP, pace_of

if TYPE_CHECKING:
    from decimal import Decimal


class Model(BaseModel):
    n: int


def charge(amount: Decimal, more: Any = None) -> str: ...


def refund(amount: int) -> Decimal: ...


def literal() -> Annotated[Literal["Model"], "Nowhere"]: ...


def give_list() -> list[Model]: ...


NOTED: list[tuple[Callable[..., Any], Any]] = [
    (charge, str),
    (give_list, list[Model]),
    (literal, Annotated[Literal["Model"], "Nowhere"]),
    (len, Any),
    (cast(Any, dict), Any),
]


@pytest.mark.parametrize(("function", "annotation"), NOTED)
def test_of_a_step_function_what_it_returns_is_evaluated(function: Callable[..., Any], annotation: Any) -> None:
    charge.__annotations__["more"] = "Nowhere"
    assert return_annotation(function) == annotation


def test_a_name_for_type_checkers_only_is_named() -> None:
    with pytest.raises(ConfigError, match=r"refund: name 'Decimal' is not defined; .*not only under TYPE_CHECKING"):
        return_annotation(refund)
    assert annotations_of(refund, "amount") == {"amount": int}


def test_a_local_model_is_found_while_the_function_around_it_runs() -> None:
    class Local(BaseModel):
        n: int

    async def handler(ctx: Context[Local], step: Any) -> list[Local]: ...

    def step_function() -> dict[str, Local]: ...

    workflow = Workflow(handler, "w", "1")
    assert workflow.input.annotation is Local and workflow.output.annotation == list[Local]
    assert return_annotation(step_function) == dict[str, Local]

    def inner() -> Any:
        def innermost() -> Local: ...

        return return_annotation(innermost)

    assert inner() is Local


class Maker:
    def local(self) -> Callable[..., Any]:
        class Local(BaseModel):
            n: int

        def step_function() -> Local: ...

        return step_function

    def closed(self) -> Callable[..., Any]:
        class Local(BaseModel):
            n: int

        def step_function() -> Local:
            return Local(n=1)

        return step_function


def test_a_local_model_of_a_function_that_has_returned_is_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"Local is defined inside a function: define it at module level, or .*input_schema=Local"
    ) as error:
        return_annotation(Maker().local())
    assert "TYPE_CHECKING" not in str(error.value)
    assert return_annotation(Maker().closed()).__name__ == "Local", "the closure has it"


def test_an_input_that_is_named_outright_needs_no_annotation() -> None:
    async def handler(ctx: Context[Any], step: Any) -> int: ...

    handler.__annotations__.update(ctx="Context[Nowhere]", step="Also")

    assert Workflow(handler, "w", "1", Model).input.annotation is Model
    with pytest.raises(ConfigError, match="Nowhere"):
        Workflow(handler, "w", "1")


def test_an_annotation_that_raises_is_a_mistake_of_the_function() -> None:
    def wrong() -> Any: ...

    wrong.__annotations__["return"] = "1 / 0"
    with pytest.raises(ConfigError, match=r"wrong cannot be evaluated: ZeroDivisionError"):
        return_annotation(wrong)
    wrong.__annotations__["return"] = "list['Model']"
    assert return_annotation(wrong) == list[Model]


def gives_awaitable() -> Awaitable[Model]: ...
def gives_future() -> asyncio.Future[Model]: ...


def test_what_is_awaited_is_what_counts() -> None:
    assert return_annotation(gives_awaitable) is Model and return_annotation(gives_future) is Model


class Lazy:
    """As a function of Python 3.14, whose annotations are evaluated when they are asked for."""

    def __init__(self) -> None:
        self.__name__ = self.__qualname__ = "lazy"

    @property
    def __annotations__(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a property, as there
        raise NameError("name 'Nowhere' is not defined")

    def __call__(self) -> int:
        return 1


def test_annotations_that_cannot_be_asked_for_are_a_mistake_too() -> None:
    with pytest.raises(ConfigError, match=r"lazy cannot be evaluated: NameError"):
        annotations_of(Lazy(), "return")
    assert result_codec(Lazy()).annotation is int


class Proxy:
    """It answers everything, with another of its kind."""

    def __getattr__(self, name: str) -> Any:
        return Proxy()

    def __call__(self) -> int:
        return 1


class Echo(Proxy):
    """As a proxy, with itself."""

    def __getattr__(self, name: str) -> Any:
        return self


MOCKS: list[Any] = [
    *(Mock(), MagicMock(), AsyncMock(), MagicMock().charge, Proxy(), Echo()),
    *(MagicMock(spec=refund), AsyncMock(spec=refund), partial(AsyncMock(), 1), partial(Proxy())),
]


@pytest.mark.parametrize("mock", MOCKS, ids=range(len(MOCKS)))
def test_who_answers_everything_has_no_annotations(mock: Any) -> None:
    assert result_codec(mock).annotation is Any and annotations_of(mock, "return") == {}


@pytest.mark.parametrize(
    ("mock", "is_async"),
    [(AsyncMock(), True), (Mock(), False), (MagicMock(spec=refund), False), (Echo(), False), (partial(AsyncMock()), True)],
    ids=range(5),
)
def test_a_mock_runs_where_it_says(mock: Any, is_async: bool) -> None:
    assert (pace_of(mock) is ON_LOOP) == is_async


def test_a_wrapper_has_the_annotations_of_what_it_wraps() -> None:
    @wraps(charge)
    def once(*args: Any) -> Any: ...

    @wraps(once)
    def twice(*args: Any) -> Any: ...

    assert result_codec(twice).annotation is str and result_codec(lru_cache(charge)).annotation is str
    assert result_codec(create_autospec(charge)).annotation in (str, Any)
    once.__wrapped__ = twice  # pyright: ignore[reportAttributeAccessIssue]  # a loop, which nothing goes round for ever
    assert unwrapped(twice) in (once, twice)
