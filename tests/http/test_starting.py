"""The form that starts a run: controls from the JSON Schema of its input, and what comes of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import orjson
import pytest
from http_served import served
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from stepfold import Client, Context, Step
from stepfold.http.pages.inputs import MOST_CONTROLS, changed, form_of, json_of, put_errors


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int = 1


class Line(BaseModel):
    article: str
    amount: Decimal
    gift: bool = False


class Order(BaseModel):
    """An order."""

    order_id: str = Field(description="As on the invoice.", max_length=20)
    total: int
    price: Decimal
    weight: float | None = None
    colour: Colour
    size: Literal[1, 2] | None = None
    express: bool = False
    insured: bool | None = None
    due: date | None = None
    at: datetime | None = None
    note: str = "none"
    nick: Annotated[str, Field(min_length=2)] | None = None
    token: SecretStr | None = None
    ship_to: Address
    bill_to: Address | None = None
    lines: list[Line]
    tags: list[str] = ["new"]
    extra: dict[str, Any] = {}
    either: int | str = 1


class Tree(BaseModel):
    left: Tree | None = None
    right: Tree | None = None
    middle: Tree | None = None
    more: list[Tree] = []


FILLED = {
    "/input/order_id": "7/a",
    "/input/total": "9007199254740993",
    "/input/price": "10.500000000000000000001",
    "/input/colour": '"red"',
    "/input/note": "",
    "/input/ship_to/street": "Main\r\nStreet",
    "/input/ship_to/number": "12",
    "n:/input/lines": "2",
    "/input/lines/0/article": "lamp",
    "/input/lines/0/amount": "1.50",
    "/input/lines/1/article": "",
    "/input/lines/1/amount": "2",
    "/input/lines/1/gift": "true",
    "n:/input/tags": "0",
    "/input/extra": '{"a": [1.10]}',
}


def schema(of: Any) -> dict[str, Any]:
    return TypeAdapter(of).json_schema(mode="validation")


def filled(of: Any, typed: Mapping[str, str], zone: Any = UTC) -> Any:
    text = json_of(form_of(schema(of), typed, zone), zone)
    return None if text is None else TypeAdapter(of).validate_json(text)


def test_what_is_typed_becomes_the_value_with_all_digits() -> None:
    order = filled(Order, FILLED)
    expected = Order(
        order_id="7/a",
        total=9007199254740993,
        price=Decimal("10.500000000000000000001"),
        colour=Colour.RED,
        note="",
        ship_to=Address(street="Main\nStreet", number=12),
        lines=[Line(article="lamp", amount=Decimal("1.50")), Line(article="", amount=Decimal(2), gift=True)],
        tags=[],
        extra={"a": [1.1]},
    )
    assert order.model_dump() == expected.model_dump()
    assert str(order.lines[0].amount) == "1.50"
    text = json_of(form_of(schema(Order), FILLED))
    assert text is not None
    assert '"total": 9007199254740993' in text
    assert "weight" not in text  # what is left empty is left out


def test_the_form_begins_with_the_defaults() -> None:
    controls = {one.name: one for one in form_of(schema(Order)).all()}
    assert (controls["/input/note"].value, controls["/input/either"].kind) == ("none", "json")
    assert [controls[f"/input/{name}"].kind for name in ("total", "price", "colour", "due", "at", "token")] == [
        *("number", "decimal", "choice", "date", "moment", "secret"),
    ]
    assert controls["/input/size"].options == [("1", "1"), ("2", "2")]
    assert controls["/input/insured"].options == [("true", "yes"), ("false", "no")]
    assert (controls["/input/bill_to"].present, controls["/input/ship_to"].present) == (False, None)
    assert controls["/input/tags/0"].value == "new"
    assert controls["/input/lines/0/article"].needed
    assert controls["/input/order_id"].hint == "As on the invoice."
    assert controls["/input/order_id"].limits == {"maxlength": "20"}


@pytest.mark.parametrize(
    ("of", "typed", "value"),
    [
        (str, {"/input": ""}, ""),
        (str, {"/input": "1"}, "1"),
        (int | None, {"/input": ""}, None),
        (int, {"/input": " 12 "}, 12),
        (bool, {}, False),
        (list[int], {"n:/input": "2", "/input/0": "1", "/input/1": "2"}, [1, 2]),
        (list[str], {"n:/input": "x"}, []),
        (dict[str, int], {"/input": '{"a": 1}'}, {"a": 1}),
        (UUID, {"/input": "00000000-0000-0000-0000-000000000001"}, UUID(int=1)),
        (Address | None, {}, None),
    ],
)
def test_inputs_of_every_shape(of: Any, typed: dict[str, str], value: Any) -> None:
    assert filled(of, typed) == value


def test_times_are_those_of_the_zone_that_the_page_names() -> None:
    zone = ZoneInfo("Europe/Berlin")
    assert filled(datetime, {"/input": "2026-07-01T12:00"}, zone) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    default = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)

    class Later(BaseModel):
        at: datetime = default

    assert next(one for one in form_of(schema(Later), zone=zone).all() if one.kind == "moment").value == "2026-01-01T01:00:01"


def test_models_that_hold_themselves_have_an_end() -> None:
    controls = list(form_of(schema(Tree)).all())
    assert len(controls) < 3 * MOST_CONTROLS
    assert any(one.kind == "json" for one in controls)


def test_items_are_added_and_dropped() -> None:
    typed, focus = changed(FILLED, "add:/input/lines")
    assert (typed["n:/input/lines"], focus) == ("3", "/input/lines/2")
    typed, focus = changed(FILLED, "drop:/input/lines/0")
    assert (typed["n:/input/lines"], typed["/input/lines/0/amount"], focus) == ("1", "2", "/input/lines/0")
    assert "/input/lines/1/amount" not in typed
    for odd in ("drop:", "drop:/input/lines/x", "drop:/input/lines/99999999999", "add:", "odd"):
        json_of(form_of(schema(Order), changed(FILLED, odd)[0]))
    assert changed({"n:/input": "-1", "/input/0": "a"}, "drop:/input/0")[0]["n:/input"] == "0"


def test_an_error_finds_its_control() -> None:
    form = form_of(schema(Order), FILLED)
    places = [
        {"pointer": "/input/lines/1/amount", "detail": "too much"},
        {"pointer": "/input/extra/a", "detail": "odd"},
        {"pointer": "/input/ship_to", "detail": "far"},
        {"pointer": "/input/nowhere", "detail": "strange"},
        {"pointer": "/input", "detail": "no"},
    ]
    assert put_errors(form, places) == ["nowhere: strange", "no"]
    found = {one.name: one.errors for one in form.all() if one.errors}
    assert found == {"/input/lines/1/amount": ["too much"], "/input/extra": ["a: odd"], "/input/ship_to": ["far"]}


def client_of(folder: Path) -> Client:
    client = Client(f"sqlite:///{folder}/log.db")

    @client.workflow(id="order/new")
    async def order(ctx: Context[Order], step: Step) -> str:
        """Ships an order.

        Later.
        """
        return ctx.input.data.order_id

    @client.workflow(id="any")
    async def any_input(ctx: Context, step: Step) -> None: ...

    @client.workflow(id="fresh")
    async def fresh(ctx: Context[Annotated[UUID, Field(default_factory=uuid4)]], step: Step) -> None: ...

    return client


async def test_a_run_is_started_with_controls(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        page = (await browser.get("/start?workflow=order/new")).text
        assert "Ships an order." in page
        assert "Later" not in page
        assert 'name="/input/ship_to/street"' in page
        form = {"workflow": "order/new", "run_id": "r1", "why": "by hand", "do": "start", **FILLED}
        started = await browser.post("/start", data=form)
        assert (started.status_code, started.headers["location"]) == (303, "/runs/r1")
        run = (await browser.get("/v1/runs/r1")).json()
        assert (run["workflow"], run["input"]["total"]) == ("order/new", 9007199254740993)


async def test_a_refused_form_keeps_what_was_typed_and_says_where_it_is_wrong(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    async with served(client) as browser:
        form = {"workflow": "order/new", "why": "kept <b>", "do": "start", **FILLED, "/input/total": "many", "/input/colour": ""}
        page = await refused(browser, form | {"/input/extra": "{"})
        assert "this is not JSON" in page
        page = await refused(browser, form)
        assert 'value="many"' in page
        assert "kept &lt;b&gt;" in page
        assert page.count('class="wrong"') == 2
        assert 'aria-describedby=" wrong-/input/total-1"' in page
        assert "2 fields need another value" in page
        assert "another value" not in await refused(
            browser, form | {"/input/total": "1", "/input/colour": '"red"', "run_id": "@"}
        )
        longer = await browser.post("/start", data=form | {"do": "add:/input/tags"})
        assert (longer.status_code, 'id="/input/tags/0" name="/input/tags/0" autofocus' in longer.text) == (200, True)
        assert 'value="many"' in longer.text
        text = await refused(browser, {"workflow": "any", "data": "{", "run_id": "kept", "form": "json"})
        assert "\n{</textarea>" in text
        assert 'value="kept"' in text
        assert (await browser.get("/v1/runs")).json()["runs"] == []


async def refused(browser: httpx.AsyncClient, form: dict[str, str]) -> str:
    answer = await browser.post("/start", data=form)
    assert answer.status_code == 422
    assert "The run was not started" in answer.text
    return answer.text


async def test_schemas_by_the_api(tmp_path: Path) -> None:
    async with served(client_of(tmp_path)) as browser:
        found = (await browser.get("/v1/workflows/order%2Fnew/schema")).json()
        assert (found["workflow"], found["version"], found["versions"]) == ("order/new", "1", ["1"])
        assert found["input"]["properties"]["total"]["type"] == "integer"
        assert found["result"] == {"type": "string"}
        assert (await browser.get("/v1/workflows/any/schema")).json()["input"] == {}
        assert (await browser.get("/v1/workflows/none/schema")).status_code == 404
        assert orjson.loads((await browser.get("/v1/workflows/fresh/schema")).content)["input"]["format"] == "uuid"
