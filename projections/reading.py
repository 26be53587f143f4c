"""Reads a database beside the transactions of the projections: on threads and connections of its own, and not for ever."""

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
"""After so many steps of SQLite's machine a query looks whether its time is over: after less than a millisecond."""


class _Asked:
    """One question. `until`: when its time is over, by the monotonic clock; None: never."""

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
        """Call `ask` with a connection whose writes are not kept. If the caller is cancelled, the database stops its work, too.

        Raises TimeoutError if it takes longer than the limit.
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
            if connection.dialect.name == "sqlite":  # whose driver begins none for a read: each would see another state
                connection.exec_driver_sql("BEGIN")
            return ask(connection)


@contextmanager
def _bounded(connection: sa.Connection, asked: _Asked) -> Generator[None]:
    """Stop the queries of the block when their time is over. Raises TimeoutError."""
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
