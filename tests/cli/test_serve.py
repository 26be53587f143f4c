"""`stepfold serve`: a server process, asked through its socket."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from shell import Shell, lines_until, shell_in


class Server(NamedTuple):
    shell: Shell
    port: int
    secret: str

    def ask(self, target: str, *headers: str, method: str = "GET", host: str | None = "localhost", body: bytes = b"") -> str:
        """The whole answer to a request that is written as given."""
        lines = [f"{method} {target} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), "Connection: close", *headers]
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")

    def status(self, target: str, *headers: str, method: str = "GET", host: str | None = "localhost", body: bytes = b"") -> int:
        return int(self.ask(target, *headers, method=method, host=host, body=body).split(" ", 2)[1])

    @property
    def bearer(self) -> str:
        return f"Authorization: Bearer {self.secret}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with shell_in(tmp_path_factory.mktemp("server")) as shell:
        secret = shell("token", "create", "ops", "--role", "view").stdout.strip()
        shell("run", "start", "order", "--app", "shop:client", "--run-id", "one", "-d", '{"order_id": "canary"}')
        process = shell.start(
            *("serve", "--host", "0.0.0.0", "--port", "0", "--tokens", "tokens.jsonl", "--allowed-host", "runs.example.com")
        )
        said = lines_until(process, lambda line: "http://" in line)[-1]
        port = re.search(r"http://0\.0\.0\.0:(\d+)", said)
        assert port, said
        yield Server(shell, int(port[1]), secret)


def test_a_server_without_tokens_listens_on_loopback_only(shell: Shell) -> None:
    for host in ("0.0.0.0", "::", "localhost.example", "127.0.0.1.example"):
        assert "without --tokens the server listens on loopback only" in shell("serve", "--host", host, code=2).stderr
    shell("token", "create", "ops", "--role", "view")
    for name in ("http://runs.example.com", "runs.example.com:80", "a b", "x@y", ""):
        assert "--allowed-host" in shell("serve", "--tokens", "tokens.jsonl", "--allowed-host", name, code=2).stderr


def test_a_jwt_needs_key_issuer_and_audience(shell: Shell) -> None:
    (shell.folder / "key.pem").write_text("secret!")
    whole = ("--jwt-issuer", "https://id.example", "--jwt-audience", "stepfold")
    told = shell("serve", "--jwt-key", "key.pem", *whole, code=2).stderr
    assert "key.pem is neither a public key (PEM) nor a set of keys (JWKS)" in told and "secret!" not in told
    assert "needs --jwt-issuer and --jwt-audience" in shell("serve", "--jwt-key", "key.pem", *whole[:2], code=2).stderr
    assert "need --jwt-key" in shell("serve", *whole, code=2).stderr


def test_a_port_that_is_taken_is_told(shell: Shell, server: Server) -> None:
    assert "already in use" in shell("serve", "--port", str(server.port), code=4).stderr


def test_a_server_asks_for_a_token_by_each_of_its_names(server: Server) -> None:
    for host in ("localhost", "127.0.0.1", f"127.0.0.1:{server.port}", "runs.example.com", "RUNS.example.com:443"):
        assert server.status("/v1/runs/one", host=host) == 401
        assert server.status("/v1/runs/one", server.bearer, host=host) == 200
    for host in (
        "evil.example",
        "0.0.0.0",
        "runs.example.com.",
        "runs.example.com/",
        "x@runs.example.com",
        "www.runs.example.com",
    ):
        assert server.status("/v1/runs/one", server.bearer, host=host) == 421
    assert server.status("/v1/runs/one", server.bearer, host=None) in (400, 421)
    assert server.status("/v1/runs/one", server.bearer, "Host: evil.example") in (400, 421)
    assert server.status("http://evil.example/v1/runs/one", server.bearer, host="evil.example") == 421


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/runs/one", "/v1/runs/one?x=/login", "/v1/runs/%6fne", "/%76%31/runs/one", "/v1/runs%2fone", "//v1/runs/one"),
        *("/v1/runs/one/configs", "/v1/runs/one;/login", "/login/../v1/runs/one", "/login%2f..%2fv1%2fruns%2fone"),
        *(
            "/v1/runs/%2e%2e",
            "/v1/runs/..%5cone",
            "/v1/runs/one%00",
            "/v1/runs/one%0d%0aX:%20y",
            "/v1/runs/one/",
            "/v1/runs/one.",
        ),
        *("http://localhost/v1/runs/one", "/v1/runs/one#/login", "*"),
    ],
)
def test_tricks_with_the_path_let_nobody_in(server: Server, target: str) -> None:
    assert server.status(target) in (400, 401, 404)
    assert server.status(target, "Authorization: Bearer wrong") in (400, 401)
    assert "canary" not in server.ask(target) + server.ask(target, server.bearer)


def test_a_websocket_is_refused(server: Server) -> None:
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    assert server.status("/v1/runs/one", *upgrade) in (400, 401, 403)
    assert server.status("/v1/runs/one", *upgrade, server.bearer) != 101


def test_a_session_by_the_socket(server: Server) -> None:
    body = f"token={server.secret}".encode()
    form = ("Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}")
    assert server.status("/login", *form, "Origin: http://evil.example", method="POST", body=body) == 403
    answer = server.ask("/login", *form, "Origin: http://localhost", method="POST", body=body)
    cookie = re.search(r"^set-cookie: (stepfold=[^;]+); ", answer, re.MULTILINE)
    assert answer.startswith("HTTP/1.1 303 ") and cookie and "\r\nserver:" not in answer
    assert server.status("/v1/runs/one", f"Cookie: {cookie[1]}") == 200
    bare = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 0", f"Cookie: {cookie[1]}")
    assert server.status("/logout", *bare, method="POST") == 403
    assert server.status("/logout", *bare, "Sec-Fetch-Site: same-origin", method="POST") == 303
    assert server.status("/v1/runs/one", f"Cookie: {cookie[1]}") == 401


def test_a_revoked_token_is_refused_from_the_next_request_on_and_logs_have_no_secret(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell:
        secret = shell("token", "create", "ops", "--role", "view").stdout.strip()
        process = shell.start("serve", "--port", "0", "--tokens", "tokens.jsonl")
        port = re.search(r":(\d+)$", lines_until(process, lambda line: "http://" in line)[-1].strip())
        assert port
        server = Server(shell, int(port[1]), secret)
        assert server.status("/v1/runs/no-such-run?secret-query", server.bearer) in (404, 422)
        shell("token", "revoke", "ops")
        assert server.status("/v1/runs/no-such-run", server.bearer) == 401
        process.terminate()
        output, _ = process.communicate(timeout=60)
        assert "GET /v1/runs/{id} 4" in output and "GET - 401 " in output
        assert not [word for word in (secret, "no-such-run", "secret-query", "Traceback") if word in output], output


def test_a_server_ends_in_good_order_under_open_streams_and_waits(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell, contextlib.ExitStack() as open_until_then:
        shell("run", "start", "order", "--app", "shop:client", "--run-id", "one", "-d", '{"order_id": "a"}')
        process = shell.start("serve", "--port", "0")
        port = re.search(r":(\d+)$", lines_until(process, lambda line: "http://" in line)[-1].strip())
        assert port
        for path in ("/", "/runs/one", "/v1/runs/one/history"):
            connection = open_until_then.enter_context(socket.create_connection(("127.0.0.1", int(port[1])), timeout=60))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        process.terminate()
        told = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "ERROR" not in "".join(text or "" for text in told)


def test_a_client_that_leaves_within_its_request_is_no_fault_of_the_server(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell:
        process = shell.start("serve", "--port", "0")
        port = re.search(r":(\d+)$", lines_until(process, lambda line: "http://" in line)[-1].strip())
        assert port
        with socket.create_connection(("127.0.0.1", int(port[1])), timeout=60) as connection:
            head = "PUT /v1/runs/one HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(f'{head}{{"workflow"'.encode())
        told = lines_until(process, lambda line: "PUT " in line)
        assert " PUT /v1/runs/{id} 400 " in told[-1]
        assert not [line for line in told if "ERROR" in line]


def test_a_caller_who_waits_is_told_that_the_server_stops(shell: Shell) -> None:
    shell("run", "start", "order", "--app", "shop:client", "--run-id", "one", "-d", '{"order_id": "1"}')
    process = shell.start("serve", "--port", "0")
    port = re.search(r"http://127\.0\.0\.1:(\d+)", lines_until(process, lambda line: "http://" in line)[-1])
    assert port
    with socket.create_connection(("127.0.0.1", int(port[1])), timeout=60) as connection:
        connection.sendall(b"GET /v1/runs/one/result HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n")
        with socket.create_connection(("127.0.0.1", int(port[1])), timeout=60) as other:  # the first is being served by then
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b"alive" in b"".join(iter(lambda: other.recv(65536), b""))
        process.terminate()
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert told.startswith(b"HTTP/1.1 503")
    assert b"server-stops" in told
    assert process.stdout is not None
    assert "Traceback" not in process.stdout.read()
    assert process.wait() == 0
