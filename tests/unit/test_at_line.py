"""The line of code that a record names: below the folder from which the file is imported, and never an error of its own."""

from __future__ import annotations

import sys
from functools import partial
from types import TracebackType
from typing import Any

import pytest

from stepfold.errors import ErrorInfo
from stepfold.replay import execution, frames
from stepfold.replay.frames import line_of, line_text


def code_in(file: str) -> Any:
    return compile("def f():\n    g()\n", file, "exec")


def _note(made: list[Any]) -> None:
    made.append(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # the documented way is no other


def raised_in(*files: str, error: BaseException | None = None) -> BaseException:
    """An error that went through line 2 of these files, the outermost first."""
    error = error or ValueError("no")
    trace: TracebackType | None = None
    for file in reversed(files):
        names: dict[str, Any] = {}
        exec(code_in(file), names)
        made: list[Any] = []
        names["g"] = partial(_note, made)
        names["f"]()
        trace = TracebackType(trace, made[0], 0, 2)
    return error.with_traceback(trace)


def test_a_file_is_named_below_the_folder_of_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/srv", "/srv/app", "zip.egg"])
    for file, said in [
        ("/srv/app/orders/flow.py", "orders/flow.py"),
        ("/srv/other.py", "other.py"),
        ("/else/where.py", "/else/where.py"),
        ("<stdin>", "<stdin>"),
        ("/srv/" + "x" * 300, "x" * 200),
        ("/srv/\udcff.py", "?.py"),
    ]:
        assert line_text((code_in(file), 7)) == f"{said}:7"


def test_the_innermost_line_of_the_users_own_code_counts() -> None:
    package = "/v/site-packages/lib.py"
    assert line_of(raised_in("/a/flow.py", "/a/help.py", package, frames.__file__, "<string>")) == "/a/help.py:2"
    assert line_of(raised_in(package, "/w/site-packages/other.py")) == f"{package}:2"
    assert line_of(raised_in(execution.__file__)) is line_of(ValueError("never raised")) is None


def test_a_group_with_one_member_counts_as_that_member() -> None:
    member = raised_in("/a/flow.py")
    assert line_of(BaseExceptionGroup("g", [member])) == "/a/flow.py:2"
    assert line_of(BaseExceptionGroup("g", [member, member])) is None


def test_an_error_that_hides_its_traceback_is_read_all_the_same() -> None:
    class Odd(Exception):
        @property
        def __traceback__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  # on purpose
            raise RuntimeError

    assert line_of(raised_in("/a/flow.py", error=Odd())) == "/a/flow.py:2" and ErrorInfo.of(Odd()).type.endswith("Odd")
