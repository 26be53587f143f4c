"""Log calls of stepfold's loggers raise nothing, whatever handlers, filters and record factories do."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import stepfold.logs
from stepfold.values.text import Lines
from stepfold.worker.watchdog import Stuck

LOGGER = logging.getLogger("stepfold.worker")
ERRORS = [RuntimeError, SystemExit, asyncio.CancelledError, GeneratorExit]


class Calls(logging.Handler):
    def __init__(self, call: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        self.call(record)


@pytest.fixture
def use() -> Iterator[Callable[[Callable[[logging.LogRecord], object]], None]]:
    """Adds a handler that makes a call for each record; the handlers go when the test ends."""
    handlers = list[Calls]()

    def add(call: Callable[[logging.LogRecord], object]) -> None:
        handlers.append(Calls(call))
        LOGGER.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        LOGGER.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepfold.logs, "_told", set[Any]())


def raises(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*given: object) -> None:
        raise error("not today")

    return fail


@pytest.mark.parametrize("error", ERRORS)
def test_a_handler_that_raises_is_told_once(use: Any, error: type[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    use(raises(error))
    for name in "abc":
        LOGGER.error("run %s failed%s", name, Lines("\nand more"))
    told = capsys.readouterr().err
    assert told.count("stepfold: logging to stepfold.worker failed") == 1
    assert "The line that may be missing: run a failed\n" in told
    assert told.endswith(f"{error.__name__}: not today\n")
    assert f"{__file__}" in told


def test_another_error_is_told_too(use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    use(raises(KeyError))
    use(raises(OSError))
    LOGGER.warning("a")
    LOGGER.handlers[0].setLevel(logging.ERROR)
    LOGGER.warning("b")
    told = capsys.readouterr().err
    assert "KeyError" in told and "OSError" in told


def test_nothing_is_told_where_logging_is_told_not_to(
    use: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(raises(RuntimeError))
    monkeypatch.setattr(logging, "raiseExceptions", False)
    LOGGER.error("a")
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(sys, "stderr", None)
    LOGGER.error("a")
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_stderr_that_raises_does_no_harm(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        write = staticmethod(raises(ValueError))

    use(raises(RuntimeError))
    monkeypatch.setattr(sys, "stderr", Closed())
    LOGGER.error("a")


def test_a_filter_that_raises_is_contained(capsys: pytest.CaptureFixture[str]) -> None:
    class Refuses(logging.Filter):
        filter = raises(RuntimeError)

    refuses = Refuses()
    LOGGER.addFilter(refuses)
    try:
        LOGGER.error("a")
    finally:
        LOGGER.removeFilter(refuses)
    assert "RuntimeError: not today" in capsys.readouterr().err


def test_a_record_factory_that_raises_loses_no_line(use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    records = list[logging.LogRecord]()
    use(records.append)
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(raises(RuntimeError))
    try:
        LOGGER.error("run %(name)s", {"name": "a"}, extra={"run_id": "a"})
        LOGGER.error("run %s", "b", extra={"run_id": "b"})
    finally:
        logging.setLogRecordFactory(factory)
    assert [(record.getMessage(), vars(record)["run_id"], record.funcName) for record in records] == [
        ("run a", "a", "test_a_record_factory_that_raises_loses_no_line"),
        ("run b", "b", "test_a_record_factory_that_raises_loses_no_line"),
    ]
    assert "RuntimeError: not today" in capsys.readouterr().err


def test_a_field_that_logging_refuses_loses_no_line(use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    records = list[logging.LogRecord]()
    use(records.append)
    LOGGER.error("paid", extra={"message": "mine", "order": 42})  # noqa: G101  # the clash is what is tried
    [record] = records
    assert (record.getMessage(), vars(record)["order"]) == ("paid", 42)
    assert "Attempt to overwrite 'message'" in capsys.readouterr().err


def test_a_handler_that_logs_to_its_own_logger_comes_to_an_end(use: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = list[object]()

    def log_twice(record: logging.LogRecord) -> None:
        calls.append(record)
        LOGGER.error("again")
        LOGGER.error("and again")

    use(log_twice)
    LOGGER.error("a")
    assert len(calls) < sys.getrecursionlimit()  # contained at each level, it would be two to the power of that
    assert "RecursionError" in capsys.readouterr().err


def test_the_interruptions_of_the_process_pass(use: Any) -> None:
    use(raises(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        LOGGER.error("a")
    LOGGER.handlers[0].setLevel(logging.CRITICAL)
    use(raises(Stuck))
    with pytest.raises(Stuck):
        LOGGER.error("a")


def test_a_logger_class_of_the_application_is_kept() -> None:
    name = "stepfold.tried"
    mine = type("Mine", (logging.Logger,), {})
    logger = mine(name)
    logging.Logger.manager.loggerDict[name] = logger
    names = stepfold.logs.NAMES
    try:
        stepfold.logs.NAMES = (name,)
        stepfold.logs.prepare_loggers()
        stepfold.logs.prepare_loggers()
    finally:
        stepfold.logs.NAMES = names
        del logging.Logger.manager.loggerDict[name]
    assert isinstance(logger, mine)
    assert [type(one).__name__ for one in logger.filters] == ["ShowsForeignText"]
