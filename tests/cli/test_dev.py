"""`stepfold dev` serves the log that the client names, with its options."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import httpx
import pytest
from eventually import eventually

from stepfold import Client
from stepfold.cli import dev
from stepfold.cli.target import load
from stepfold.http.schemas import schema_of


@pytest.mark.parametrize(
    ("url", "hint"), [("sqlite:///my%20orders.db?durability=normal", True), ("sqlite:///stepfold.db", False)]
)
def test_its_worker_gets_the_url_of_the_log(
    url: str, hint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[str] = []

    async def keep_running(app: str, client: Client, metrics: str | None) -> None:
        given.append(client.log.url)

    async def show(client: Client) -> None:
        await asyncio.Event().wait()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dev, "_keep_running", keep_running)
    asyncio.run(dev._develop("app:client", Client(url), show))  # pyright: ignore[reportPrivateUsage]  # without its child process
    assert given == [url]
    assert (f"--url '{url}'" in capsys.readouterr().err) == hint


async def test_its_dashboard_takes_a_free_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(f"sqlite:///{tmp_path}/log.db")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with client:
            serving = asyncio.create_task(dev._show_dashboard(client, port, open_=False, projections=[]))  # pyright: ignore[reportPrivateUsage]  # without the worker

            async def said() -> str:
                return capsys.readouterr().err

            url = (await eventually(said)).split()[1]
            async with httpx.AsyncClient() as browser:
                answer = await browser.get(f"{url}/v1/runs/none")
            serving.cancel()
            await asyncio.wait([serving])
    assert f":{port}" not in url
    assert answer.json()["code"] == "run-not-found"


CODE = """
from stepfold import Client, Context, Step
from {shapes} import Order

client = Client()

@client.workflow(id="order")
async def order(ctx: Context[Order], step: Step) -> None: ...
"""


def test_its_forms_follow_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("forms_app.py").write_text(CODE.format(shapes="forms_shapes"))

    def write(shape: str) -> None:
        Path("forms_shapes.py").write_text(f"from typing_extensions import TypedDict\n\nclass Order(TypedDict):\n    {shape}\n")

    def asked() -> str:
        dev._import_anew("forms_app:client", client, tmp_path)  # pyright: ignore[reportPrivateUsage]  # without its child process
        workflow = client.registry.find("order", None)
        assert workflow is not None
        return str(schema_of(workflow.input, taken=True))

    write("number: int")
    client = load("forms_app:client")
    client.log = Client("sqlite:///other.db").log
    assert "'number'" in asked()
    write("a_longer_name: int")
    assert "'a_longer_name'" in asked()
    write("this is not Python")
    assert "'a_longer_name'" in asked()
    assert client.log.name == "sqlite:///other.db"
