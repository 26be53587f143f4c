"""Users' dashboards: by the API, as pages, and as they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from eventually import eventually
from http_served import served

from stepfold import Client, Context, Step
from stepfold.events import RunEvent, Started
from stepfold.http.guard import Caller
from stepfold.http.pages.charts import drawing, number_words
from stepfold.http.routing import Role
from stepfold.projections import Chart, Number, Projection, RunSoFar, TableView

HOSTILE = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
metadata = sa.MetaData()
sales = sa.Table(
    "sales",
    metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("cents", sa.Integer, nullable=False),
)


class Sales(Projection):
    name = "sales / of the shop"
    metadata = metadata
    pages = (
        Number("Sales", sa.select(sa.func.count()).select_from(sales)),
        Number("Earned", sa.select(sa.func.sum(sales.c.cents) / 100.0), unit="EUR"),
        Chart("By item", sa.select(sales.c.item, sa.func.sum(sales.c.cents).label(HOSTILE)).group_by(sales.c.item)),
        TableView(HOSTILE, sa.select(sales.c.run_id, sales.c.item).order_by(sales.c.run_id)),
        TableView("Broken", sa.select(sa.literal_column("1", sa.Integer)).select_from(sa.table("gone"))),
    )

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        if isinstance(event, Started):
            connection.execute(sa.insert(sales).values(run_id=run.id, item=run.input["item"], cents=run.input["cents"]))


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="sell")
    async def sell(ctx: Context[dict[str, Any]], step: Step) -> None: ...

    return client


async def board(browser: httpx.AsyncClient, fits: Callable[[list[Any]], bool]) -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        answer = await browser.get("/v1/dashboards/sales%20%2F%20of%20the%20shop")
        assert answer.status_code == 200, answer.text
        read = answer.json()
        return read if fits(read["panels"]) and read["behind"] == 0 else {}

    return await eventually(look)


async def test_a_dashboard_has_its_panels_rows(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client, projections=[Sales()]) as browser:
        [named] = (await browser.get("/v1/dashboards")).json()["dashboards"]
        assert named["name"] == Sales.name
        assert [(panel["title"], panel["kind"], panel["unit"]) for panel in named["panels"]][:3] == [
            ("Sales", "number", ""),
            ("Earned", "number", "EUR"),
            ("By item", "bars", ""),
        ]
        assert (await browser.get("/v1/dashboards/other")).json()["code"] == "dashboard-not-found"
        for number in range(3):
            await client.start_workflow("sell", {"item": HOSTILE, "cents": 250}, run_id=f"sale/{number}")
        read = await board(browser, lambda panels: panels[0]["rows"] == [[3]])
        assert (read["behind"], read["stopped"]) == (0, None)
        panels = {panel["title"]: panel for panel in read["panels"]}
        assert panels["Earned"]["rows"] == [[7.5]]
        assert panels["By item"]["rows"] == [[HOSTILE, 750]]
        assert panels[HOSTILE]["rows"][0] == ["sale/0", HOSTILE]
        assert panels["Broken"]["failed"] == "no such table: gone"


async def test_a_dashboard_is_a_page_that_runs_no_data(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client, projections=[Sales()]) as browser:
        await client.start_workflow("sell", {"item": HOSTILE, "cents": 250}, run_id="sale/1")
        await board(browser, lambda panels: panels[0]["rows"] == [[1]])
        path = "/dashboards/sales%20%2F%20of%20the%20shop"
        assert f'href="{path}"' in (await browser.get("/dashboards")).text
        page = (await browser.get(path)).text
        assert "<strong>2.5</strong> EUR" in page
        assert 'href="/runs/sale%2F1"' in page
        assert "cannot be read: no such table: gone" in page
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        assert (await browser.get("/dashboards/none")).status_code == 404


async def test_without_projections_the_page_says_how_to_get_a_dashboard(tmp_path: Path) -> None:
    async with served(client_of(tmp_path)) as browser:
        assert "stepfold serve --projection module:Class" in (await browser.get("/dashboards")).text
        assert (await browser.get("/v1/dashboards")).json() == {"dashboards": []}


async def test_rows_are_payload(tmp_path: Path) -> None:
    callers = {"v": Caller("vera", frozenset({Role.VIEW})), "p": Caller("paul", frozenset({Role.PAYLOAD}))}
    async with served(client_of(tmp_path), projections=[Sales()], authenticate=callers.get) as browser:
        for token, status in (("v", 403), ("p", 200)):
            browser.headers["Authorization"] = f"Bearer {token}"
            for path in ("/v1/dashboards/", "/dashboards/"):
                assert (await browser.get(f"{path}sales%20%2F%20of%20the%20shop")).status_code == status


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_a_drawing_stays_within_its_frame(kind: str) -> None:
    rows = [["2026-01-01", 5, None], ["2026-01-02", -2.5, 7], ["2026-01-09", 0, 1e6]]
    drawn = drawing(kind, ["day", "a", "b"], rows, "EUR")
    assert drawn is not None
    assert drawn.series == ["a", "b"]
    assert 0 < drawn.zero <= 100
    places = [(bar.x, bar.y) for bar in drawn.bars] + [(bar.x + bar.width, bar.y + bar.height) for bar in drawn.bars]
    places += [(x, y) for curve in drawn.curves for x, y, _ in curve.dots]
    assert len(places) == (10 if kind == "bars" else 5)
    assert all(-0.01 <= part <= 100.01 for place in places for part in place)
    if kind == "lines":
        assert [x for x, _, _ in drawn.curves[0].dots] == [0.0, 12.5, 100.0]


@pytest.mark.parametrize(
    "rows", [[["a", 0]], [["a", 3], ["a", 3]], [["a", -1.0]], [["a", 1e-9]], [["a", 1e300]], [[None, 2**70]]]
)
def test_odd_numbers_are_drawn(rows: list[list[Any]]) -> None:
    drawn = drawing("bars", ["x", "y"], rows, "")
    assert drawn is not None
    assert len(drawn.bars) == len(rows)
    assert 1 < len(drawn.left) < 12
    assert drawing("bars", ["x", "y"], [["a", None], ["b", "text"]], "") is None


@pytest.mark.parametrize(
    ("cell", "words"),
    [(None, "–"), (1234567, "1,234,567"), (2.5, "2.5"), (1234.5678, "1,234.57"), (3.0, "3"), ("x", "x")],
)
def test_numbers_have_words(cell: Any, words: str) -> None:
    assert number_words(cell) == words
