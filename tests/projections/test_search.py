"""A search finds what a reading of every row would find, goes through an index, and can be stopped."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from stepfold.drivers import MemoryDriver
from stepfold.log import Entry
from stepfold.projections import ProjectionRunner, RunFilter, RunsProjection, count_runs, count_some, list_runs, texts
from stepfold.projections import runs as of_runs
from stepfold.projections.runs import Order, runs
from stepfold.values.times import utc

BEGIN = 1_700_000_000_000
WORDS = (
    "Paper",
    "paper_jam",
    "100%",
    'a "quoted" word',
    "Übermut",
    "ﬁne",
    "日本語",
    "a",
    "\N{GRINNING FACE}",
    "o'clock",
    "*",
    "\0x",
)
STATES = ("completed", "failed", "waiting")


def row(number: int, words: str, error: str | None) -> dict[str, Any]:
    return {
        **dict.fromkeys(column.name for column in runs.c),
        "run_id": f"{'oO'[number % 2]}rder-{number}",
        "workflow": ("ship", "Refund")[number % 2],
        "state": STATES[number % 3],
        "partition": 0,
        "started_at": BEGIN + number // 3,
        "updated_at": BEGIN + number * 7 % 50,
        "steps_completed": 0,
        "attempts_failed": number % 4,
        "waiting_on": "[]",
        "waiting_kind": "sleep" if number % 3 == 2 else None,
        "last_error": None if error is None else of_runs.text_of(error),
        "input": orjson.dumps(words).decode(),
        "result": None,
    }


def filled(rows: list[dict[str, Any]]) -> sa.Engine:
    """A database with these rows and their texts, as the projection writes them."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        RunsProjection.metadata.create_all(connection)
        if rows:
            connection.execute(sa.insert(runs), rows)
        found: dict[int, list[str]] = {}
        for one in rows:
            of = found.setdefault(one["started_at"], [])
            of += [texts.head(one["run_id"], one["workflow"]), one["input"], one["last_error"] or ""]
        texts.add(connection, found)
    return engine


def matches(one: dict[str, Any], filters: RunFilter) -> bool:
    """The conditions, in words of this test."""

    def low(text: str) -> str:
        return re.sub("[A-Z]", lambda found: found[0].lower(), text.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    search, error = low(filters.get("search", "")), low(filters.get("error", ""))
    if len(search) < 3:
        fits = any(low(one[name]).startswith(search) for name in ("run_id", "workflow"))
    else:
        fits = any(search in low(one[name] or "") for name in ("run_id", "workflow", "last_error", "input"))
    state = filters.get("state", STATES)
    return (
        fits
        and (not error or error in low(one["last_error"] or ""))
        and one["workflow"] == filters.get("workflow", one["workflow"])
        and one["state"] in ([state] if isinstance(state, str) else state)
        and one["waiting_kind"] == filters.get("waiting_kind", one["waiting_kind"])
        and one["attempts_failed"] >= filters.get("attempts_failed", 0)
        and ("started_after" not in filters or utc(one["started_at"]) >= filters["started_after"])
        and ("started_before" not in filters or utc(one["started_at"]) < filters["started_before"])
    )


TEXTS = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
PARTS = TEXTS.flatmap(lambda text: st.tuples(st.integers(0, len(text)), st.integers(1, 9)).map(lambda at: text[at[0] : sum(at)]))
FILTERS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "search": st.one_of(PARTS, st.sampled_from(["order", "Order-1", "er-2", "o", "SH", "ref", "fund"])),
        "error": PARTS,
        "state": st.one_of(st.sampled_from(STATES), st.lists(st.sampled_from(STATES), max_size=3)),
        "workflow": st.sampled_from(["ship", "Refund", "none"]),
        "waiting_kind": st.just("sleep"),
        "attempts_failed": st.integers(0, 3),
        "started_after": st.integers(0, 12).map(lambda ms: utc(BEGIN) + timedelta(milliseconds=ms)),
        "started_before": st.integers(0, 12).map(lambda ms: utc(BEGIN) + timedelta(milliseconds=ms)),
    },
)


@given(
    st.lists(st.tuples(TEXTS, st.none() | TEXTS), max_size=30),
    FILTERS,
    st.sampled_from(["newest", "oldest", "updated"]),
    st.integers(1, 7),
    st.sampled_from([0, 2000]),
)
@settings(max_examples=80, deadline=None)
def test_it_finds_what_reading_every_row_would_find(
    texts_of: list[tuple[str, str | None]], filters: RunFilter, order: Order, size: int, few: int
) -> None:
    """Page by page, in each order, whichever way is taken."""
    rows = [row(number, *of) for number, of in enumerate(texts_of)]
    by: dict[Order, Callable[[dict[str, Any]], tuple[int, str]]] = {
        "newest": lambda one: (-one["started_at"], one["run_id"]),
        "oldest": lambda one: (one["started_at"], one["run_id"]),
        "updated": lambda one: (-one["updated_at"], one["run_id"]),
    }
    wanted = [one["run_id"] for one in sorted(rows, key=by[order]) if matches(one, filters)]
    with pytest.MonkeyPatch.context() as patch, filled(rows).connect() as connection:
        patch.setattr(of_runs, "_FEW", few)
        found: list[str] = []
        page = list_runs(connection, order=order, limit=size, **filters)
        while page:
            found += [one.run_id for one in page]
            page = list_runs(connection, order=order, limit=size, after=page[-1], **filters)
        assert found == wanted
        assert count_runs(connection, **filters) == len(wanted)
        assert count_some(connection, **filters) == (len(wanted), True)


def test_a_count_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_runs, "COUNT_MOST", 10)
    monkeypatch.setattr(of_runs, "LOOK_MOST", 4)
    monkeypatch.setattr(of_runs, "_FEW", 0)
    with filled([row(number, "words", None) for number in range(30)]).connect() as connection:
        assert count_some(connection) == (10, False)
        assert count_some(connection, workflow="none") == (0, True)
        number, exact = count_some(connection, search="words", state="failed")
        assert not exact and number <= 10
        assert count_some(connection, search="no such words") == (0, True)


def test_without_an_index_every_row_is_read() -> None:
    """In a database whose SQLite has no trigrams, say."""
    with filled([row(number, "Words", None) for number in range(6)]).connect() as connection:
        connection.exec_driver_sql("DROP TABLE stepfold_runs_texts")
        assert len(list_runs(connection, search="wORD")) == count_runs(connection, search="words") == 6
        assert [one.run_id for one in list_runs(connection, search="ORDER-3")] == ["Order-3"]


ONE: list[RunFilter] = [
    {},
    {"state": "failed"},
    {"workflow": "ship"},
    {"waiting_kind": "sleep"},
    {"attempts_failed": 2},
    {"error": "paper"},
    {"search": "paper"},
    {"search": "o"},
    {"started_after": utc(BEGIN)},
    {"started_before": utc(BEGIN + 5)},
]


def pairs() -> Iterator[RunFilter]:
    for one in ONE:
        for other in ONE:
            if not one.keys() & other.keys() - {"search"}:
                yield {**one, **other}


@pytest.mark.parametrize("few", [0, 2000])
def test_no_condition_and_no_order_reads_a_whole_table_or_sorts_it(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SQLite's own plans, for each condition and each two of them; also behind a cursor."""
    monkeypatch.setattr(of_runs, "_FEW", few)
    scanned: list[str] = []
    with filled([row(number, "paper", "a paper jam") for number in range(30)]).connect() as connection:

        def plan(_: object, cursor: Any, statement: str, parameters: Any, *__: object) -> None:
            if "stepfold_runs" in statement and "sqlite_master" not in statement:
                cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps = [step[3] for step in cursor.fetchall()]
                merged = "UNION ALL" in statement  # of the first rows of each state
                sorts = "USE TEMP B-TREE FOR ORDER BY" in steps and not merged
                if sorts or "SCAN stepfold_runs" in steps:
                    scanned.append(f"{statement} {steps}")

        event.listen(connection.engine, "before_cursor_execute", plan)
        for filters in pairs():
            for order in ("newest", "oldest"):
                first = list_runs(connection, order=order, limit=2, **filters)
                list_runs(connection, order=order, limit=2, after=first[-1] if first else None, **filters)
            count_some(connection, **filters)
        list_runs(connection, order="updated", limit=2)
        list_runs(connection, state=["failed", "waiting"], limit=2)
    assert not scanned


async def test_texts_come_into_the_index_when_they_are_written(tmp_path: Path) -> None:
    """Those of the start, of an error, of an input that was made anew, and of the result; and again after a rebuild."""
    log = MemoryDriver()
    await log.open()

    def entry(kind: str, **fields: Any) -> Entry:
        return Entry("r-1", orjson.dumps({"type": kind, "v": 1, "run_id": "r-1", "at": 1, **fields}))

    claim = {"type": "claim", "v": 1, "at": 0, "prev": -1, "owner": "w", "nonce": "n"}
    await log.append(0, [Entry("@claim", orjson.dumps(claim)), entry("started", request="q", workflow="w", input="first words")])
    error = {"type": "OSError", "message": "out of paper"}
    async with ProjectionRunner(log, [RunsProjection()], database=f"sqlite:///{tmp_path}/runs.db") as runner:
        for one in (
            entry("input-completed", claim=0, input="second words"),
            entry("step-failed", claim=0, step_id="s", attempt=1, error=error, next_at=5),
            entry("completed", claim=0, result="the outcome"),
        ):
            await runner.catch_up()
            await log.append(0, [one])
        for _ in range(2):
            await runner.catch_up()
            for text in ("second words", "out of paper", "the outcome", "r-1"):
                assert [found.run_id for found in await runner.query(list_runs, search=text)] == ["r-1"], text
            assert await runner.query(list_runs, search="first words") == []
            await runner.rebuild()
    await log.close()


def slow(connection: sa.Connection) -> int:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    return connection.execute(sa.text(numbers)).scalar_one()


async def test_a_long_query_is_stopped_and_nothing_waits_for_it(tmp_path: Path) -> None:
    """The records that come meanwhile are applied; a caller who goes away stops his query."""
    log = MemoryDriver()
    await log.open()
    async with ProjectionRunner(log, [RunsProjection()], database=f"sqlite:///{tmp_path}/runs.db") as runner:
        asked = asyncio.create_task(runner.query(slow))
        started = {"type": "started", "v": 1, "run_id": "r", "at": 1, "request": "q", "workflow": "w", "input": None}
        await log.append(0, [Entry("r", orjson.dumps(started))])
        await runner.catch_up()
        assert await runner.query(count_runs) == 1
        assert not asked.done()
        asked.cancel()
        await asyncio.wait([asked])
        with pytest.raises(TimeoutError, match="could not answer in time"):
            await runner.query_within(0.05, slow)
        assert await runner.query_within(60, count_runs) == 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("stepfold-reader")]
    await log.close()


def counts_around_a_write(connection: sa.Connection, runner: ProjectionRunner) -> list[int | None]:
    """The rows of a table before and after another connection adds one."""
    count = sa.text("SELECT count(*) FROM seen")
    before = connection.execute(count).scalar()
    with runner.engine.begin() as other:
        other.execute(sa.text("INSERT INTO seen VALUES (1)"))
    return [before, connection.execute(count).scalar()]


async def test_a_read_sees_one_state(tmp_path: Path) -> None:
    log = MemoryDriver()
    await log.open()
    async with ProjectionRunner(log, [], database=f"sqlite:///{tmp_path}/seen.db") as runner:
        with runner.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE seen (n INTEGER)"))
        assert await runner.query(counts_around_a_write, runner) == [0, 0]
        assert await runner.query_within(5, counts_around_a_write, runner) == [1, 1]
