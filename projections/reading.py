"""Reads a database outside the projections' transactions: on threads and connections of its own, with a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

T = TypeVar("T")

THREADS = 4
_STEPS = 10_000
"""A query checks its time limit after this many steps of SQLite's virtual machine, which take less than a millisecond."""


class _Asked:
    """One read. `until`: the end of its time limit on the monotonic clock; None: no limit."""

    def __init__(self, limit_s: float | None) -> None:
        self.until = None if limit_s is None else time.monotonic() + limit_s

    def give_up(self) -> None:
        self.until = 0.0

    def is_over(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until


class Readers:
    """Threads that read one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(THREADS, "stepfold-reader")

    async def ask(self, ask: Callable[[sa.Connection], T], limit_s: float | None = None) -> T:
        """Call `ask` with a connection whose writes are rolled back. If the caller is cancelled, the database stops its work too.

        Raises TimeoutError if it takes longer than `limit_s`.
        """
        asked = _Asked(limit_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, ask, asked)
        finally:
            asked.give_up()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    def _answer(self, ask: Callable[[sa.Connection], T], asked: _Asked) -> T:
        with self._engine.connect() as connection, _bounded(connection, asked):
            if connection.dialect.name == "sqlite":  # the driver begins no transaction for reads: each would see another state
                connection.exec_driver_sql("BEGIN")
            return ask(connection)


@contextmanager
def _bounded(connection: sa.Connection, asked: _Asked) -> Generator[None]:
    """A block that stops its queries when the time limit ends. Raises TimeoutError."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        driver.set_progress_handler(asked.is_over, _STEPS)
    elif asked.until is not None and connection.dialect.name == "postgresql":
        left_ms = max(1, round((asked.until - time.monotonic()) * 1000))
        connection.execute(sa.text(f"SET LOCAL statement_timeout = {left_ms}"))
    try:
        if asked.is_over():
            raise TimeoutError("the database was too busy to answer in time")
        yield
    except OperationalError as error:
        if not asked.is_over():
            raise
        raise TimeoutError("the database could not answer in time") from error
    finally:
        if is_sqlite:
            driver.set_progress_handler(None, 0)
