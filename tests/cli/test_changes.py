"""The stream of changes of all runs, through servers that are processes of their own, and are killed."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import httpx
import orjson
from eventually import eventually
from shell import Shell, lines_until

from stepfold import Client


class Reader:
    """Reads the stream, and goes on behind the last event when it breaks, as a browser does."""

    def __init__(self, address: str, query: str = "") -> None:
        self.url = f"{address}/v1/changes{query}"
        self.last: str | None = None
        self.begun = asyncio.Event()
        self.kinds: list[str] = []
        self.changes: list[dict[str, object]] = []

    async def read(self) -> None:
        async with httpx.AsyncClient(timeout=httpx.Timeout(60)) as browser:
            while True:
                headers = {} if self.last is None else {"Last-Event-ID": self.last}
                try:
                    async with browser.stream("GET", self.url, headers=headers) as answer:
                        await self._take(answer)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)

    async def _take(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, await answer.aread()
        event: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                event[name] = value
            elif not line and "id" in event:
                self.last = event["id"]
                self.kinds.append(event["event"])
                self.begun.set()
                if event["event"] == "change":
                    self.changes.append(orjson.loads(event["data"]))
                event = {}

    @property
    def runs(self) -> list[object]:
        return [change["run_id"] for change in self.changes]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def start(client: Client, ids: list[str], workflow: str = "reviewed") -> None:
    await asyncio.gather(*(client.start_workflow(workflow, "canary", run_id=run_id) for run_id in ids))


async def test_readers_lose_and_repeat_nothing_when_the_server_is_killed(shell: Shell) -> None:
    client, port = Client(f"sqlite:///{shell.folder}/stepfold.db"), free_port()
    serve = ("serve", "--port", str(port), "--url", client.log.url)
    async with client, asyncio.TaskGroup() as group:
        server = shell.start(*serve)
        lines_until(server, lambda line: "http://" in line)
        readers = [Reader(f"http://127.0.0.1:{port}") for _ in range(3)]
        tasks = [group.create_task(reader.read()) for reader in readers]
        for reader in readers:
            await reader.begun.wait()
        ids = [f"run-{number}" for number in range(150)]
        await start(client, ids[:50])

        async def some() -> bool:
            return all(reader.changes for reader in readers)

        await eventually(some)
        server.kill()
        server.wait()
        await start(client, ids[50:100])
        lines_until(shell.start(*serve), lambda line: "http://" in line)
        await start(client, ids[100:])

        async def all_of_them() -> bool:
            return all(len(reader.changes) >= len(ids) for reader in readers)

        await eventually(all_of_them)
        for reader, task in zip(readers, tasks, strict=True):
            assert sorted(map(str, reader.runs)) == sorted(ids), "each once"
            assert set(reader.kinds) == {"begin", "change"}
            assert reader.kinds.count("begin") == 1
            task.cancel()


async def test_conditions_places_that_are_gone_and_payload(shell: Shell, tmp_path: Path) -> None:
    client = Client(f"sqlite:///{shell.folder}/stepfold.db")
    async with client, asyncio.TaskGroup() as group:
        server = shell.start("serve", "--port", "0", "--url", client.log.url)
        address = re.search(r"http://\S+", lines_until(server, lambda line: "http://" in line)[-1])
        assert address
        some, ended, none = (
            Reader(address[0], query) for query in ("?workflow=reviewed", "?state=cancelled,failed", "?workflow=nobody's")
        )
        gone, other = Reader(address[0]), Reader(address[0])
        other.last = "0123456789ab " + " ".join(f"{partition}:0" for partition in range(client.log.partitions))
        tasks = [group.create_task(reader.read()) for reader in (some, ended, none, other)]
        await asyncio.gather(*(reader.begun.wait() for reader in (some, ended, none, other)))
        assert other.last is not None
        gone.last = re.sub(r":\d+$", ":999999", other.last)
        tasks.append(group.create_task(gone.read()))
        await gone.begun.wait()
        assert (other.kinds, gone.kinds) == (["reset"], ["reset"])
        await start(client, ["one", "two"])
        await start(client, ["three"], "order")
        shell.start("worker", "shop:client", "--url", client.log.url)

        async def seen() -> bool:
            return {"one", "two"} <= set(some.runs) and {"one", "two", "three"} <= set(other.runs) and "three" in ended.runs

        await eventually(seen)  # "three" fails: its input is not an order
        assert set(some.runs) == {"one", "two"}
        assert {change["state"] for change in ended.changes} == {"failed"}
        assert none.changes == []
        assert all("canary" not in str(reader.changes) for reader in (some, ended, other, gone))
        for task in tasks:
            task.cancel()
