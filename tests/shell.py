"""Commands as a user types them: real processes in a folder that has an app."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson

T = TypeVar("T")

DEADLINE_S = 60
"""Only a failing test waits this long."""

SHOP = """
import asyncio

from pydantic import BaseModel
from stepfold import Client, Context, NonRetryable, Retry, Step, current_step

client = Client()
something_else = 42


class Order(BaseModel):
    order_id: str
    flaky: int = 0


async def pay(order: Order) -> str:
    if current_step().attempt <= order.flaky:
        raise ConnectionError("no answer")
    return f"paid {order.order_id}"


async def refuse(order: Order) -> str:
    raise NonRetryable(f"{order.order_id} is not for sale")


@client.workflow(id="order")
async def order(ctx: Context[Order], step: Step) -> str:
    return await step.run("pay", pay, ctx.input.data, retry=Retry(5, backoff="10ms"))


@client.workflow(id="refused")
async def refused(ctx: Context[Order], step: Step) -> str:
    return await step.run("refuse", refuse, ctx.input.data)


@client.workflow(id="approved")
async def approved(ctx: Context[Order], step: Step) -> str:
    async with step.scope("parcel") as parcel:
        await asyncio.gather(parcel.run("pack", pay, ctx.input.data), parcel.run("label", pay, ctx.input.data))
    await step.sleep("cool-off", "50ms")
    answer = await step.wait_for_signal("approval", signal="approve", timeout="1h")
    return f"by {answer.data}" if answer else "by nobody"


@client.workflow(id="reviewed")
async def reviewed(ctx: Context, step: Step) -> object:
    return await (await step.callback("review", timeout="1h"))
"""


class Shell:
    """A folder, and commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("STEPFOLD", "COLUMNS", "FORCE_"))}
        self.env["TZ"] = "UTC"
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `stepfold` with these arguments; it must end with `code`."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What the command prints with `-o json`."""
        return orjson.loads(self(*arguments, "-o", "json", code=code).stdout)

    def start(
        self, *arguments: str, stdin: int | None = subprocess.DEVNULL, ignores_sigint: bool = False
    ) -> subprocess.Popen[str]:
        """Leave it running; it is killed at the end of the fixture.

        `ignores_sigint`: as in the background of a script, where a shell has commands ignore Ctrl-C.
        """
        background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if ignores_sigint else []
        process = subprocess.Popen(
            [*background, *self.command(*arguments)],
            cwd=self.folder,
            env=self.env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "stepfold.cli.app", *arguments]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder."""
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


@contextmanager
def shell_in(folder: Path) -> Generator[Shell]:
    """A folder with the shop in it."""
    (folder / "shop.py").write_text(SHOP)
    shell = Shell(folder)
    try:
        yield shell
    finally:
        shell.close()


def lines_until(process: subprocess.Popen[str], seen: Callable[[str], bool]) -> list[str]:
    """What a process prints, up to the first line that is looked for."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if seen(line):
            return lines
    raise AssertionError(f"it ended with {process.wait()}:\n{''.join(lines)}")


def until(happened: Callable[[], T]) -> T:
    """What the function gives once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found
