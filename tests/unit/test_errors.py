"""What is recorded of an error: something, whatever its class does when it is asked."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from stepfold.errors import MEMBERS_SHOWN, ErrorInfo, NonDeterminism, StepFailed, disagreement

# Classes as users write them by mistake, and as nobody would: each of their members may raise or give anything.


def nothing() -> BaseException:
    """Made here: whoever collects tests looks at what a module holds."""

    def refuses(self: Any, name: str) -> Any:
        raise SystemExit(name)

    def shown(self: Any) -> str:
        raise GeneratorExit

    meta = type("Meta", (type,), {"__getattribute__": refuses})
    return meta("Nothing", (Exception,), {"__module__": 42, "__getattribute__": refuses, "__str__": shown})()


class Text(str):
    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        raise SystemExit

    def __format__(self, spec: str) -> str:
        raise SystemExit

    def __getitem__(self, key: Any) -> str:
        raise SystemExit


class Odd(Exception):
    def __str__(self) -> str:
        return Text("a lone \ud800 and more " * 100)


class Recursive(Exception):
    def __str__(self) -> str:
        return str(self)


class Number(Exception):
    def __str__(self) -> str:
        return cast(str, 42)  # that is what is tried


class NoTraceback(Exception):
    __traceback__ = cast(Any, property(lambda self: 1 / 0))


class OddGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise SystemExit


def chain() -> Exception:
    error = ValueError("the first")
    for number in range(300):
        above = ValueError(str(number))
        above.__cause__ = error
        error = above
    return error


ERRORS: list[tuple[BaseException, str]] = [
    (SyntaxError("unexpected token", cast(Any, ("rules.txt", 1, 3, 42))), "SyntaxError"),
    (nothing(), "Nothing: its message cannot be shown"),
    (Odd(), "test_errors.Odd: a lone \\ud800 and more a lone"),
    (Recursive(), "test_errors.Recursive: its message cannot be shown"),
    (Number(), "test_errors.Number: its message cannot be shown"),
    (NoTraceback("why"), "test_errors.NoTraceback: why"),
    (chain(), "ValueError: 299"),
    (StepFailed("a", 1, cast(Any, "no info")), "StepFailed: step 'a' failed after 1 attempt: no info"),
    (StepFailed("a", 1, ErrorInfo(cast(Any, 3), cast(Any, 4))), "StepFailed: step 'a' failed after 1 attempt: 3: 4"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_whatever_an_error_does_it_is_recorded(number: int) -> None:
    error, shown = ERRORS[number]
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001  # so that it has a traceback
        info = ErrorInfo.of(raised, "step")
    assert str(info).startswith(shown)
    assert "test_errors.py" in info.traceback or "cause" in info.traceback
    assert len(info.message) <= 4000 and len(info.traceback) <= 8000
    assert ErrorInfo.from_json(orjson.loads(orjson.dumps(info.to_json()))) == info


def of_the_users_making(*texts: str) -> StepFailed:
    return StepFailed("a", 1, ErrorInfo(*texts))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (of_the_users_making("T", "m\ud800", "\ud800", "s\ud800"), "T: m\\ud800"),
        (of_the_users_making(*["\x01" * 3_000_000] * 4), "\x01"),
        (ExceptionGroup("two", [of_the_users_making("T", "\ud800", "", "\ud800")] * 2), "ExceptionGroup: 2 errors: T: \\ud800"),
    ],
)
def test_a_root_error_of_the_users_making_is_cut_and_escaped(error: Exception, shown: str) -> None:
    info = ErrorInfo.of(error, "step")
    assert str(info).startswith(shown)
    assert len(orjson.dumps(info.to_json())) <= 6 * (3 * 4000 + 8000) + 100
    assert ErrorInfo.from_json(orjson.loads(orjson.dumps(info.to_json()))) == info


def declined() -> StepFailed:
    return StepFailed("charge", 3, ErrorInfo("ValueError", "card declined", "its lines", "charge"))


def test_a_group_with_one_member_is_that_member() -> None:
    for group in (ExceptionGroup("a", [declined()]), OddGroup("a", [ExceptionGroup("b", [declined()])])):
        assert ErrorInfo.of(group) == declined().error


def test_a_group_of_several_names_each_with_its_step() -> None:
    group = BaseExceptionGroup("a", [declined(), ExceptionGroup("b", [TypeError("odd")]), SystemExit(2)])
    info = ErrorInfo.of(group)
    assert info.type == "BaseExceptionGroup" and info.step_id is None
    assert info.message == "3 errors: ValueError: card declined (step 'charge'); TypeError: odd; SystemExit: 2"


def test_a_group_of_many_is_cut_short() -> None:
    message = ErrorInfo.of(ExceptionGroup("many", [KeyError(number) for number in range(100)])).message
    assert message.count("KeyError") == MEMBERS_SHOWN and message.endswith("; 90 more")


def test_nested_beyond_what_can_be_formatted() -> None:
    error: Exception = ValueError("inside")
    for _ in range(5000):
        error = cast(Exception, ExceptionGroup("g", [error]))
    assert str(ErrorInfo.of(error)) == "ValueError: inside"


def test_an_error_that_does_not_come_back_is_asked_nothing() -> None:
    class Endless(Exception):
        def __str__(self) -> str:
            raise AssertionError

    info = ErrorInfo.unshown(Endless(), "s")
    assert info.type.endswith("Endless") and "cannot be shown" in info.message and info.step_id == "s"


class Vague(NonDeterminism):
    def __str__(self) -> str:
        raise SystemExit

    @property
    def source(self) -> Any:
        raise KeyboardInterrupt

    @source.setter
    def source(self, lines: Any) -> None: ...


@pytest.mark.parametrize(
    "error",
    [
        Vague("no"),
        NonDeterminism("no", source=cast(Any, 5)),
        NonDeterminism("no", expected=cast(Any, object())),
        NonDeterminism("\ud800" * 10_000, expected="\ud800", source=("\udcff.py:1",)),
    ],
)
def test_a_disagreement_is_recorded_whatever_it_holds(error: NonDeterminism) -> None:
    record = disagreement(error)
    assert record["type"] == "NonDeterminism" and len(orjson.dumps(record)) < 10_000


def test_a_disagreement_says_what_it_holds() -> None:
    error = NonDeterminism("no", expected="a", found="b", source=("app.py:1",))
    assert disagreement(error) == {
        "type": "NonDeterminism",
        "message": "no",
        "expected": "a",
        "found": "b",
        "source": ["app.py:1"],
    }
