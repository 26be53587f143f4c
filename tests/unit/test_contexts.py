"""Contexts for users' code: as the current one was when their maker was made, with a decimal context of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from decimal import Context as Decimals
from decimal import Decimal, Inexact, getcontext, setcontext

import pytest

from stepfold.replay.contexts import contexts

mine: ContextVar[Decimals] = ContextVar("mine")


def third() -> str:
    return str(Decimal(1) / 3)


def make(prec: int, prec_later: int) -> Callable[[], Context]:
    setcontext(Decimals(prec=prec))
    third()
    mine.set(getcontext())
    new = contexts()
    getcontext().prec = prec_later
    return new


def change() -> None:
    getcontext().prec = 3


@pytest.fixture(params=[28, 7])
def prec(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def new(prec: int) -> Callable[[], Context]:
    return copy_context().run(make, prec, prec_later=2)


def test_each_has_a_decimal_context_of_its_own(prec: int, new: Callable[[], Context]) -> None:
    one, other = new(), new()
    one.run(change)
    assert one.run(third) == "0.333"
    assert other.run(third) == new().run(third) == "0." + prec * "3"


def test_its_flags_are_clear_and_other_variables_are_as_they_were(new: Callable[[], Context]) -> None:
    own = new()
    assert not own.run(getcontext).flags[Inexact]
    assert own[mine].flags[Inexact]
