"""Panels: the parts of a projection's dashboard, and how a server reads them.

    class Orders(Projection):
        pages = [
            Number("Open orders", sa.select(sa.func.count()).where(orders.c.state == "open")),
            Chart("Revenue a day", sa.select(revenue.c.day, revenue.c.cents / 100).order_by(revenue.c.day), unit="EUR"),
            TableView("Newest orders", sa.select(orders).order_by(orders.c.at.desc()).limit(20)),
        ]

A panel is a select. `read_panels` runs it in a transaction that cannot write, stops it after a time limit, and reads a bounded
number of rows. If a panel fails, its rows say why, and the other panels are read nevertheless.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from stepfold.errors import ConfigError

LIMIT_S = 2.0
"""How long the select of a panel may run."""
ROWS = 500
"""The most rows of a panel that are read."""
CELL_CHARS = 1000
_LOOK_EVERY = 10_000  # instructions of SQLite's virtual machine: about 0.1 ms


@dataclass(frozen=True, slots=True)
class Number:
    """A panel with one value: the first column of the first row. `unit`: the word after the value."""

    title: str
    select: sa.Select[*tuple[Any, ...]]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A panel with a chart. The first column is the axis: texts, numbers or times; each other column is a series of numbers,
    named as the column. `unit`: of the numbers. `kind`: "bars", evenly spaced, or "lines", placed by the axis' numbers or
    times."""

    title: str
    select: sa.Select[*tuple[Any, ...]]
    unit: str = ""
    kind: Literal["bars", "lines"] = "bars"


@dataclass(frozen=True, slots=True)
class TableView:
    """A panel with the rows of the select as a table. Ids in a column `run_id` link to the runs."""

    title: str
    select: sa.Select[*tuple[Any, ...]]


Panel = Number | Chart | TableView
Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class PanelRows:
    """The rows of a panel. `more`: the select has more rows. `failed`: why they could not be read, and there are no rows; None if
    they were read."""

    columns: list[str]
    rows: list[list[Cell]]
    more: bool = False
    failed: str | None = None


def check_panels(name: str, panels: Any) -> None:
    """Raises ConfigError if `panels` are not the pages of a projection `name`."""
    if not isinstance(panels, list | tuple):
        raise ConfigError(f"projection {name!r}: `pages` must be a list of Number, Chart and TableView; it is {panels!r:.200}")
    titles: set[str] = set()
    for panel in cast(Sequence[Any], panels):
        if not isinstance(panel, Number | Chart | TableView):
            raise ConfigError(f"projection {name!r}: `pages` may hold Number, Chart and TableView only, not {panel!r:.200}")
        title, least = panel.title, 2 if isinstance(panel, Chart) else 1
        if not isinstance(cast(Any, title), str) or not 0 < len(title) <= 100 or title in titles:
            raise ConfigError(f"projection {name!r}: each page needs a title of its own, 1 to 100 characters; not {title!r:.200}")
        if not isinstance(cast(Any, panel.select), sa.SelectBase):
            raise ConfigError(f"projection {name!r}, page {title!r}: `select` must be a sqlalchemy.select(...)")
        if len(panel.select.selected_columns) < least:
            raise ConfigError(f"projection {name!r}, page {title!r}: a {type(panel).__name__} needs {least} columns")
        if isinstance(panel, Chart) and panel.kind not in ("bars", "lines"):
            raise ConfigError(f"projection {name!r}, page {title!r}: `kind` is 'bars' or 'lines', not {panel.kind!r:.200}")
        titles.add(title)


def read_panels(connection: sa.Connection, panels: Sequence[Panel], limit_s: float = LIMIT_S) -> list[PanelRows]:
    """The rows of each panel. `limit_s`: how long each may take. If a panel fails or takes longer, its `failed` says so."""
    reading = _reading_sqlite if connection.dialect.name == "sqlite" else _reading
    return [_read(connection, panel, reading, limit_s) for panel in panels]


def _read(connection: sa.Connection, panel: Panel, reading: Any, limit_s: float) -> PanelRows:
    began = time.monotonic()
    try:
        with reading(connection, limit_s):
            result = connection.execute(panel.select)
            columns = list(result.keys())
            rows = [[cell_of(value) for value in row] for row in result.fetchmany(1 if isinstance(panel, Number) else ROWS + 1)]
    except SQLAlchemyError as error:
        late = time.monotonic() - began >= limit_s
        return PanelRows([], [], failed=f"the select took longer than {limit_s:g} s" if late else _brief(error))
    return PanelRows(columns, rows[:ROWS], len(rows) > ROWS)


def _brief(error: SQLAlchemyError) -> str:
    """The database's own message, without the statement and SQLAlchemy's link."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0][:CELL_CHARS]


@contextlib.contextmanager
def _reading_sqlite(connection: sa.Connection, limit_s: float) -> Generator[None]:
    """A block in which SQLite refuses writes and stops after `limit_s`. At its end the connection is rolled back, with its old
    settings."""
    raw: Any = connection.connection.driver_connection
    until = time.monotonic() + limit_s
    connection.exec_driver_sql("PRAGMA query_only = ON")
    raw.set_progress_handler(lambda: time.monotonic() >= until, _LOOK_EVERY)
    try:
        yield
    finally:
        raw.set_progress_handler(None, 0)
        connection.rollback()
        connection.exec_driver_sql("PRAGMA query_only = OFF")


@contextlib.contextmanager
def _reading(connection: sa.Connection, limit_s: float) -> Generator[None]:
    """As `_reading_sqlite`, with PostgreSQL's settings; on other databases without a time limit."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(limit_s * 1000))}")
    try:
        yield
    finally:
        connection.rollback()


def cell_of(value: Any) -> Cell:
    """A database value as a JSON value: times in ISO 8601, decimals as numbers, long texts cut."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return None if not value.is_finite() else int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time_of_day():
            return value.isoformat()
        case _:
            text = value.hex() if isinstance(value, bytes) else str(value)
            return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"
