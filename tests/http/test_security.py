"""The security of the HTTP API, by classes of what went wrong elsewhere. The route table makes the cases of every row."""

from __future__ import annotations

import asyncio
import html
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import pytest
from asked import Answered, ask
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from stepfold import Client, Context, NonRetryable, Step
from stepfold.http import Caller, Role, TokenFile, app
from stepfold.http.guard import CSP, HEADER_BYTES, MOST_HEADERS, TARGET_BYTES, Guard
from stepfold.http.routing import BODY_BYTES, IMPLIED, NOBODY, Row
from stepfold.http.table import ROWS
from stepfold.http.tokens import changing, new_token

CANARY = "canary-9f31"
GIVEN = (Role.VIEW, Role.PAYLOAD, Role.OPERATE, Role.ADMIN)
JSON = ("content-type", "application/json")
COOKIES = ("/settings", "/views")
"""They change a cookie of the browser, and nothing on the server."""


class Served(NamedTuple):
    app: Guard
    secrets: dict[str, str]
    file: Path
    now_s: list[float]

    async def ask(self, who: str | None, method: str, path: str, **options: Any) -> Answered:
        sent = [*options.pop("headers", ())]
        if who is not None:
            sent.append(("authorization", f"Bearer {self.secrets.get(who, who)}"))
        return await ask(self.app, method, path, headers=sent, **options)

    async def log_in(self, who: str, **options: Any) -> str:
        """The cookie of a new session."""
        body = orjson.dumps({"token": self.secrets[who]})
        answered = await ask(self.app, "POST", "/login", headers=[JSON], body=body, **options)
        assert answered.status == 303, answered
        return answered.headers["set-cookie"].partition(";")[0]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with three runs, whose payloads have the canary, and a token for each role."""
    file = tmp_path / "tokens.jsonl"
    secrets: dict[str, str] = {}
    with changing(file) as kept:
        for role in GIVEN:
            secrets[role], token = new_token(f"the {role}", [role], None)
            kept.append(token)
        secrets["expired"], token = new_token("expired", [Role.ADMIN], 0)
        kept.append(token)
        secrets["brief"], token = new_token("brief", [Role.ADMIN], 3_600_000)
        kept.append(token)
    now_s = [token.created / 1000]
    client = Client(f"sqlite:///{tmp_path}/log.db")
    await _run_some(client)
    made = app(client, authenticate=TokenFile(file, clock=lambda: now_s[0]))
    async with made.lifespan():
        yield Served(made, secrets, file, now_s)


async def _run_some(client: Client) -> None:
    async def fail() -> None:
        raise NonRetryable(CANARY)

    async def give() -> str:
        return CANARY

    @client.workflow(id="done")
    async def done(ctx: Context[str], step: Step) -> str:
        return await step.run("give", give)

    @client.workflow(id="fails")
    async def fails(ctx: Context[str], step: Step) -> None:
        await step.run("fail", fail)

    @client.workflow(id="waits")
    async def waits(ctx: Context[str], step: Step) -> object:
        await step.wait_for_signal("first", signal="go")
        return await step.wait_for_signal("second", signal="never", timeout="1h")

    async with client, client.worker():
        runs = [await client.start_workflow(one, CANARY, run_id=one.id) for one in (done, fails)]
        waiting = await client.start_workflow(waits, CANARY, run_id="waits")
        await waiting.signal("go", CANARY)
        await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)
        while "second" not in str((await waiting.status()).waiting_on):
            await asyncio.sleep(0.02)


def path_of(row: Row, run_id: str = "done") -> str:
    return re.sub(r"\{\w+(:\w+)?\}", "x", re.sub(r"\{id(:\w+)?\}", run_id, row.path))


def by_row(test: Callable[..., Any]) -> Callable[..., Any]:
    return pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")(test)


# -- streaming routes outside the check; a role that reads can act; no authentication by default


@by_row
async def test_the_verdict_follows_from_the_role_of_the_row(served: Served, row: Row) -> None:
    sent = {"headers": [JSON], "body": b"not JSON", "only_status": True}
    for who in ("no such token", "expired"):
        refused = await served.ask(who, row.method, path_of(row), **(sent | {"only_status": False}))
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert orjson.loads(refused.body)["code"] == "unauthenticated"
    unknown = (await served.ask(None, row.method, path_of(row), **sent)).status
    assert (unknown == 401) == (row.role is not Role.ANYONE)
    for role in GIVEN:
        status = (await served.ask(role, row.method, path_of(row), **sent)).status
        assert status != 401
        assert (status == 403) == (row.role not in IMPLIED[role]), f"{role} gets {status}"


def test_every_route_is_a_row_and_what_changes_something_needs_a_role(tmp_path: Path) -> None:
    guard = app(Client(f"sqlite:///{tmp_path}/log.db"))
    starlette: Starlette = guard._app  # pyright: ignore[reportPrivateUsage]  # all its routes, also those that nobody meant
    routes = {
        (method, route.path)
        for route in starlette.routes
        if isinstance(route, Route)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    assert all(isinstance(route, Route) for route in starlette.routes)
    assert routes == {(row.method, row.path) for row in ROWS}
    acts = {(row.method, row.path) for row in ROWS if row.method not in ("GET", "HEAD") and row.role in (Role.ANYONE, Role.VIEW)}
    assert {path for _, path in acts if "callback" not in path} <= {
        "/login",
        "/logout",
        "/v1/runs/search",  # it reads, its conditions are a body
        *COOKIES,
    }


@pytest.mark.parametrize("kind", ["websocket", "webtransport"])
async def test_other_kinds_of_connections_are_refused(served: Served, kind: str) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    await served.app({"type": kind, "path": "/v1/runs/done", "headers": [(b"host", b"localhost")]}, receive, send)
    assert [message["type"] for message in sent] == (["websocket.close"] if kind == "websocket" else [])


# -- exemption by the text of the path

TRICKS = (
    "/v1/runs/done/configs",
    "/v1/runs/done/",
    "//v1/runs/done",
    "/v1//runs/done",
    "/./v1/runs/done",
    "/V1/runs/done",
    "/v1/runs/done.",
    "/v1/runs/done\0",
    "/v1/runs/done%2f",
    "/v1/runs/done;/login",
    "/login;/v1/runs/done",
    "/login/../v1/runs/done",
    "/v1/runs/done/../../../login",
    "/v1/runs/%2e%2e/done",
    "/v1/runs/..",
    "v1/runs/done",
    "*",
    "",
)

FOREIGN = (
    *("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "0.0.0.0", "127.1"),
    *("evil.example@localhost", "localhost@evil.example", "localhost,evil.example", "localhost evil.example"),
    *("localhost.", "localhost/", "localhost/v1", "localhost\\evil.example", "localhost#", "localhost?"),
    *("localhost:80:80", "localhost:x", "localhost:", "::1", "[::1", "", None),
)


async def test_tricks_with_the_path_change_no_verdict(served: Served) -> None:
    for path in TRICKS:
        for who in (None, "no such token", "expired"):
            refused = await served.ask(who, "GET", path)
            assert refused.status in ((401, 404) if who is None else (401,)), (path, refused)
            assert CANARY.encode() not in refused.body
    assert (await served.ask(None, "GET", "/v1/runs/..")).status == 401
    assert (await served.ask(Role.VIEW, "GET", "/v1/runs/..")).status == 404


@pytest.mark.parametrize("host", FOREIGN)
async def test_another_host_is_misdirected(served: Served, host: str | None) -> None:
    for row in ROWS:
        answered = await served.ask(Role.ADMIN, row.method, path_of(row), host=host, only_status=True)
        assert (answered.status, answered.headers["content-type"]) == (421, "application/problem+json"), row


async def test_the_hosts_of_this_machine_are_served_with_any_port(served: Served) -> None:
    for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]", "[::1]:443"):
        assert (await served.ask(Role.VIEW, "GET", "/v1/runs/done", host=host)).status == 200
    two = await served.ask(Role.VIEW, "GET", "/v1/runs/done", headers=[("host", "localhost")])
    assert two.status == 421
    forwarded = await served.ask(
        Role.VIEW, "GET", "/v1/runs/done", host="evil.example", headers=[("x-forwarded-host", "localhost")]
    )
    assert forwarded.status == 421


# -- embedded objects leak


QUERIES = (
    "",
    "at=1",
    "at=3",
    "nth=2",
    "text=canary",
    "trouble=true",
    "steps=100",
    "type=step-failed",
    "q=canary",
    "workflow=fails",
)
"""Those that a row does not know are left out."""


async def _shows_canary(served: Served, who: str) -> set[str]:
    """The rows that show the canary, in an answer or in a stream."""
    found: set[str] = set()
    for row in (row for row in ROWS if row.method == "GET"):
        queries = [query for query in QUERIES if query.partition("=")[0] in ("", *row.query.model_fields)]
        asked = [(query, ()) for query in queries] + [("", [("accept", "text/event-stream")])]
        for run_id in ("done", "fails", "waits") if "{id" in row.path else ("done",):
            for query, headers in asked:
                answered = await served.ask(who, "GET", path_of(row, run_id), query=query, headers=headers)
                if CANARY.encode() in answered.body + repr(answered.headers).encode():
                    found.add(row.path)
    return found


async def test_who_may_not_see_payloads_sees_none_anywhere(served: Served) -> None:
    while orjson.loads((await ask(served.app, "GET", "/readyz")).body)["behind"] != 0:
        await asyncio.sleep(0.1)
    for who in (Role.VIEW, Role.OPERATE):
        assert await _shows_canary(served, who) == set()
    assert await _shows_canary(served, Role.PAYLOAD) >= {"/v1/runs/{id}", "/runs/{id:path}", "/errors", "/"}


# -- a web page calls localhost; sessions


@pytest.mark.parametrize(
    ("sent", "by_cookie", "by_nobody"),
    [
        ({"sec-fetch-site": "same-origin"}, True, True),
        ({"origin": "http://localhost"}, True, True),
        ({}, False, True),
        ({"sec-fetch-site": "cross-site"}, False, False),
        ({"sec-fetch-site": "same-site"}, False, False),
        ({"sec-fetch-site": "none"}, False, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, False, False),
        ({"origin": "http://evil.example"}, False, False),
        ({"origin": "http://localhost:8081"}, False, False),
        ({"origin": "http://localhost.evil.example"}, False, False),
        ({"origin": "http://localhost@evil.example"}, False, False),
        ({"origin": "javascript://localhost"}, False, False),
        ({"origin": "localhost"}, False, False),
        ({"origin": "null"}, False, False),
    ],
)
async def test_a_page_of_another_site_changes_nothing(
    served: Served, sent: dict[str, str], by_cookie: bool, by_nobody: bool
) -> None:
    cookie = await served.log_in(Role.ADMIN)
    headers = [JSON, *sent.items()]
    for row in ROWS:
        if row.method in ("GET", "HEAD"):
            continue
        without = await ask(served.app, row.method, path_of(row), headers=headers, body=b"not JSON", only_status=True)
        assert (without.status != 403) == by_nobody, row
        having = [*headers, ("cookie", cookie)]
        answered = await ask(served.app, row.method, path_of(row), headers=having, body=b"not JSON", only_status=True)
        assert (answered.status != 403) == by_cookie, row
        own = await served.ask(Role.ADMIN, row.method, path_of(row), headers=headers, body=b"not JSON", only_status=True)
        assert own.status != 403, row


async def test_without_authentication_a_page_of_another_site_is_refused_too(tmp_path: Path) -> None:
    local = app(Client(f"sqlite:///{tmp_path}/log.db"))
    for row in ROWS:
        if row.method not in ("GET", "HEAD"):
            for sent in (("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")):
                assert (await ask(local, row.method, path_of(row), headers=[JSON, sent], body=b"{}")).status == 403


@pytest.mark.parametrize(
    ("address", "status"),
    [
        (("127.0.0.1", 1), 200),
        (("127.9.9.9", 1), 200),
        (("::1", 1), 200),
        (("::ffff:127.0.0.1", 1), 200),
        (None, 200),
        (("", 0), 200),
        (("10.0.0.7", 1), 403),
        (("::ffff:10.0.0.7", 1), 403),
        (("fe80::1%eth0", 1), 403),
        (("localhost.evil.example", 1), 403),
    ],
)
async def test_without_authentication_only_its_own_machine_is_served(
    tmp_path: Path, address: tuple[str, int] | None, status: int
) -> None:
    """Whatever the caller says in the Host header."""
    made = app(Client(f"sqlite:///{tmp_path}/log.db"))
    async with made.lifespan():
        assert (await ask(made, "GET", "/v1/runs", client=address)).status == status


async def test_with_a_token_other_machines_are_served(served: Served) -> None:
    assert (await served.ask(Role.VIEW, "GET", "/v1/runs", client=("10.0.0.7", 1))).status == 200


async def test_no_answer_lets_another_site_read_it(served: Served) -> None:
    for method, path in (("GET", "/v1/runs/done"), ("OPTIONS", "/v1/runs/done"), ("GET", "/nowhere")):
        answered = await served.ask(Role.VIEW, method, path, headers=[("origin", "http://evil.example")])
        assert not [name for name in answered.headers if name.startswith("access-control")]


async def test_a_browser_logs_in_and_out(served: Served) -> None:
    form = ("content-type", "application/x-www-form-urlencoded")
    here = ("sec-fetch-site", "same-origin")
    body = f"token={served.secrets[Role.VIEW]}&next=/runs%3Fstate=failed".encode()
    answered = await ask(served.app, "POST", "/login", headers=[form, here], body=body)
    assert (answered.status, answered.headers["location"]) == (303, "/runs?state=failed")
    cookie, *attributes = answered.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} == set(attributes)
    assert served.secrets[Role.VIEW] not in cookie
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", cookie)])).status == 200
    out = await ask(served.app, "POST", "/logout", headers=[form, here, ("cookie", cookie)])
    assert (out.status, out.headers["location"]) == (303, "/login") and "Max-Age=0" in out.headers["set-cookie"]
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", cookie)])).status == 401


async def test_over_tls_the_cookie_is_bound_to_the_host(served: Served) -> None:
    cookie = await served.log_in(Role.VIEW, scheme="https")
    assert cookie.startswith("__Host-stepfold=")
    answered = await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", cookie)], scheme="https")
    assert answered.status == 200
    weaker = ("cookie", cookie.removeprefix("__Host-"))
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[weaker], scheme="https")).status == 401


async def test_a_session_ends_with_its_token(served: Served) -> None:
    admin, brief = await served.log_in(Role.ADMIN), await served.log_in("brief")
    with changing(served.file) as kept:
        kept[:] = [token for token in kept if token.name != "the admin"]
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", admin)])).status == 401
    assert (await served.ask(Role.ADMIN, "GET", "/v1/runs/done")).status == 401
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", brief)])).status == 200
    served.now_s[0] += 3601
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("cookie", brief)])).status == 401


async def test_a_login_leads_to_the_page_that_was_asked_for(served: Served) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://localhost") as browser:
        for path in ("/runs/a%2Fb", "/runs/a%3Fb%23c?at=1", "/runs/%252e", f"/runs/{'%F0%9F%92%A5' * 200}"):
            form = (await browser.get(path)).text
            following = re.search(r'name="next" value="([^"]*)"', form)
            assert following
            data = {"token": served.secrets[Role.VIEW], "next": html.unescape(following[1])}
            assert (await browser.post("/login", data=data)).headers["location"] == path
            browser.cookies.clear()


async def test_below_a_path_a_login_stays_below_it(served: Served) -> None:
    outer = Starlette(routes=[Mount("/flows", served.app)])
    here = {"sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://localhost", headers=here) as browser:
        form = (await browser.get("/flows/?state=failed")).text
        [action], [following] = re.findall(r'action="([^"]*)"', form), re.findall(r'name="next" value="([^"]*)"', form)
        data = {"token": served.secrets[Role.VIEW], "next": html.unescape(following)}
        entered = await browser.post(action, data=data)
        assert (action, entered.headers.get("location")) == ("/flows/login", "/flows/?state=failed"), entered.text
        assert (await browser.get("/flows/?state=failed")).status_code == 200
        left = await browser.post("/flows/logout", headers={"content-type": "application/x-www-form-urlencoded"})
        assert left.headers.get("location") == "/flows/login", left.text
        assert 'value="/flows/"' in (await browser.get("/flows/login")).text


async def test_a_login_leads_to_this_server_only(served: Served) -> None:
    for path in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "",
        "/\r\nX: y",
    ):
        body = orjson.dumps({"token": served.secrets[Role.VIEW], "next": path})
        answered = await ask(served.app, "POST", "/login", headers=[JSON], body=body)
        assert (answered.status, answered.headers["location"]) == (303, "/"), path
    page = await ask(served.app, "GET", "/login", query="next=/%22%3E%3Cscript%3E")
    assert b"<script" not in page.body and page.status == 200
    wrong = await ask(served.app, "POST", "/login", headers=[JSON], body=b'{"token": "no such token"}')
    assert wrong.status == 401 and "set-cookie" not in wrong.headers


# -- parser confusion, floods


@pytest.mark.parametrize("sent", ["Basic eDp5", "Bearer", "Bearer ", "Negotiate", "", "Bearer a, Bearer b"])
async def test_other_credentials_are_refused(served: Served, sent: str) -> None:
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[("authorization", sent)])).status == 401


async def test_two_tokens_are_refused(served: Served) -> None:
    sent = ("authorization", f"Bearer {served.secrets[Role.VIEW]}")
    assert (await ask(served.app, "GET", "/v1/runs/done", headers=[sent, sent])).status == 401


async def test_requests_have_limits(served: Served) -> None:
    async def status(method: str = "GET", path: str = "/login", **options: Any) -> int:
        return (await ask(served.app, method, path, **options)).status

    assert await status(headers=[("x", "")] * MOST_HEADERS) == 431
    assert await status(headers=[("x", "y" * HEADER_BYTES)]) == 431
    assert await status(path="/" + "x" * TARGET_BYTES) == 414
    assert await status(query="x" * TARGET_BYTES) == 414
    assert await status("POST", headers=[JSON], body=b" " * (BODY_BYTES + 1)) == 413
    assert await status("POST", headers=[JSON, ("content-length", str(10**30))], body=b"{}") == 413
    assert await status("POST", headers=[JSON], body=b'{"token":' + b"[" * 300 + b"]" * 300 + b"}") == 422
    assert await status("POST", headers=[JSON], body=b"[" * 100_000) == 400
    assert await status("POST", headers=[JSON], body=b'{"token": "a", "token": "\xff"}') == 400
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/jsonx", ""):
        assert await status("POST", headers=[("content-type", kind)], body=b"{}") == 415
    form = ("content-type", "application/x-www-form-urlencoded")
    assert await status("POST", headers=[form], body=b"a=b&" * 2000) == 400
    assert await status("POST", headers=[form], body=b"token=%ff") == 400
    assert await status("POST", headers=[form], body=b"token=a&token=b") == 422


async def test_every_answer_has_the_headers_of_security(served: Served) -> None:
    asked = [
        ("GET", "/v1/runs/done", Role.VIEW),
        ("GET", "/nowhere", None),
        ("PUT", "/login", None),
        ("GET", "/v1/runs/done", "wrong"),
    ]
    asked += [(row.method, path_of(row), Role.ADMIN) for row in ROWS if row.method == "GET"]
    for method, path, who in asked:
        answered = await served.ask(who, method, path, only_status=True)
        assert answered.headers["content-security-policy"] == CSP, path
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answered.headers


# -- secrets never in logs


async def test_logs_have_no_secret(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cookie = await served.log_in(Role.VIEW)
    body = orjson.dumps({"token": CANARY})
    for row in ROWS:
        for query in ("", f"token={CANARY}"):
            sent = [JSON, ("cookie", cookie), ("x-secret", CANARY), ("sec-fetch-site", "same-origin")]
            await ask(served.app, row.method, path_of(row, CANARY), query=query, headers=sent, body=body)
            await served.ask(Role.ADMIN, row.method, path_of(row, CANARY), query=query, headers=[JSON], body=body)
    await ask(served.app, "GET", f"/{CANARY}", query=CANARY)
    lines = [record.getMessage() for record in caplog.records if record.name == "stepfold.http"]
    assert any(re.fullmatch(r"GET /v1/runs/\{id\} 404 \d+\.\d ms", line) for line in lines)
    assert any(re.fullmatch(r"GET - 404 \d+\.\d ms", line) for line in lines)
    secret = (CANARY, cookie.partition("=")[2], *served.secrets.values())
    assert [record for record in caplog.records if any(one in record.getMessage() + str(record.exc_info) for one in secret)] == []


async def test_a_damaged_file_of_tokens_lets_nobody_in(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    whole = served.file.read_bytes()
    served.file.write_bytes(whole + b'{"name": "x"}\n')
    refused = await served.ask(Role.ADMIN, "GET", "/v1/runs/done")
    assert refused.status == 503 and orjson.loads(refused.body)["code"] == "authentication-unavailable"
    assert f"{served.file}:7: this is not a token" in caplog.text
    served.file.unlink()
    assert (await served.ask(Role.ADMIN, "GET", "/v1/runs/done")).status == 503
    served.file.write_bytes(whole)
    assert (await served.ask(Role.ADMIN, "GET", "/v1/runs/done")).status == 200


def test_a_role_holds_no_other_by_accident() -> None:
    assert not Caller("x", frozenset()).may(Role.ANYONE)
    assert NOBODY.may(Role.ANYONE) and not any(NOBODY.may(role) for role in GIVEN)
    assert not Caller("x", frozenset({Role.PAYLOAD})).may(Role.OPERATE)
    assert not Caller("x", frozenset({Role.OPERATE})).may(Role.PAYLOAD)
