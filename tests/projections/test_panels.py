"""Panels of projections: what is read, what cannot be written, and where a reading ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from stepfold import Client, ConfigError
from stepfold.projections import Chart, Number, Projection, ProjectionRunner, TableView, read_panels
from stepfold.projections.panels import CELL_CHARS, ROWS, cell_of

NUMBERS = sa.text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT max(i) AS most FROM n")
metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("size", sa.Integer))
ALL = sa.select(things.c.name, things.c.size).order_by(things.c.name)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/things.db")
    with engine.begin() as writing:
        metadata.create_all(writing)
        writing.execute(sa.insert(things), [{"name": f"thing {number:04}", "size": number} for number in range(ROWS + 10)])
    with engine.connect() as reading:
        yield reading
    engine.dispose()


def endless() -> sa.Select[int]:
    return sa.select(sa.literal_column("most", sa.Integer)).select_from(NUMBERS.columns(sa.column("most", sa.Integer)).subquery())


def test_each_panel_has_its_rows_and_a_failure_is_its_own(connection: sa.Connection) -> None:
    gone = sa.select(sa.literal_column("1", sa.Integer)).select_from(sa.table("gone"))
    number, failed, chart, table = read_panels(
        connection,
        [
            Number("most", sa.select(sa.func.max(things.c.size))),
            TableView("gone", gone),
            Chart("sizes", ALL.limit(2)),
            TableView("all", ALL),
        ],
    )
    assert number.rows == [[ROWS + 9]]
    assert failed.rows == []
    assert failed.failed == "no such table: gone"
    assert (chart.columns, chart.rows, chart.more) == (["name", "size"], [["thing 0000", 0], ["thing 0001", 1]], False)
    assert (len(table.rows), table.more) == (ROWS, True)


def test_a_select_that_takes_long_is_stopped_and_the_next_one_is_not(connection: sa.Connection) -> None:
    slow, quick = read_panels(connection, [Number("slow", endless()), Number("quick", sa.select(sa.literal(1)))], 0.2)
    assert slow.failed == "the select took longer than 0.2 s"
    assert quick.rows == [[1]]


def test_a_panel_cannot_write_and_the_connection_can_afterwards(connection: sa.Connection) -> None:
    wrote: list[str] = []

    def spoil(*_: object) -> None:
        if not wrote:
            with pytest.raises(OperationalError) as refused:
                connection.exec_driver_sql("DELETE FROM things")
            wrote.append(str(refused.value.orig))

    event.listen(connection, "before_execute", spoil)
    [count] = read_panels(connection, [Number("count", sa.select(sa.func.count()).select_from(things))])
    assert wrote == ["attempt to write a readonly database"]
    assert count.rows == [[ROWS + 10]]
    connection.execute(sa.delete(things))
    assert connection.execute(sa.select(sa.func.count()).select_from(things)).scalar() == 0


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (Decimal("12.00"), 12),
        (Decimal("0.25"), 0.25),
        (Decimal("NaN"), None),
        (float("inf"), None),
        (True, True),
        (2**70, 2**70),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
        (b"\xff\x00", "ff00"),
        ("x" * 2 * CELL_CHARS, "x" * (CELL_CHARS - 1) + "…"),
    ],
)
def test_cells_are_json(value: Any, cell: Any) -> None:
    assert cell_of(value) == cell


class Shown(Projection):
    name = "shown"
    metadata = sa.MetaData()


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ("Orders", "`pages` must be a list"),
        ([sa.select(things)], "may hold Number, Chart and TableView only"),
        ([Number("", ALL)], "needs a title of its own"),
        ([Number("a", ALL), TableView("a", ALL)], "needs a title of its own"),
        ([Chart("a", sa.select(things.c.name))], "a Chart needs 2 columns"),
        ([TableView("a", cast(Any, "SELECT 1"))], "`select` must be a sqlalchemy.select"),
        ([Chart("a", ALL, kind=cast(Any, "pie"))], "`kind` is 'bars' or 'lines', not 'pie'"),
    ],
)
def test_pages_that_cannot_work_are_refused(pages: Any, words: str) -> None:
    projection = Shown()
    projection.pages = pages
    with pytest.raises(ConfigError, match=words):
        ProjectionRunner(Client("memory://"), [projection])
