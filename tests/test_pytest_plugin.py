"""The fixtures that users get (docs/guides/testing.md), in a pytest session that loads the plugin by its entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import itertools
from stepfold import Client, Context, Step

client = Client("sqlite:///never.db")
numbers = itertools.count()

@client.workflow(id="order")
async def order(ctx: Context[str], step: Step) -> str:
    await step.sleep("settle", "30d")
    approval = await step.wait_for_signal("approval", signal="approve")
    return f"{ctx.input.data} {approval.data}, {ctx.now():%Y-%m-%d}"

@client.workflow(id="unsteady")
async def unsteady(ctx: Context, step: Step) -> None:
    await step.run(f"step {next(numbers)}", str)

@client.workflow(id="careless")
async def careless(ctx: Context, step: Step) -> int:
    return next(numbers)
"""

TESTS = """
import pathlib
import time

from app import careless, client, order, unsteady
from stepfold.projections.audit import export_run
from stepfold.testing import VirtualDeadlock

import pytest

async def approved():
    run = await client.start_workflow(order, "tea", run_id="o1")
    await run.signal("approve", "yes")
    return await run.result()

def test_virtual(stepfold_virtual):
    assert stepfold_virtual(client, approved) == "tea yes, 2030-01-31"
    assert stepfold_virtual(client, approved, start_ms=0) == "tea yes, 1970-01-31"

def test_the_log_is_put_back():
    assert client.log.name == "sqlite:///never.db"

def test_a_deadlock_is_said(stepfold_virtual):
    async def main():
        await (await client.start_workflow(order, "tea", run_id="o1")).result()

    with pytest.raises(VirtualDeadlock, match="run o1 waits for signal 'approve'"):
        stepfold_virtual(client, main)

def test_open_runs_are_replayed_too(stepfold_virtual):
    async def main():
        await client.start_workflow(order, "tea")

    stepfold_virtual(client, main)

@pytest.mark.parametrize("workflow", [unsteady, careless])
def test_code_that_does_not_repeat_itself(stepfold_virtual, workflow):
    async def main():
        await (await client.start_workflow(workflow)).result()

    stepfold_virtual(client, main)

async def recorded():
    await approved()
    await export_run(client.log, "o1", "o1.jsonl")

def test_replay(stepfold_virtual, stepfold_replay):
    stepfold_virtual(client, recorded)
    stepfold_replay(client, pathlib.Path().glob("*.jsonl"))

def test_replay_of_nothing(stepfold_replay):
    stepfold_replay(client, [])

def test_replay_of_something_else(stepfold_replay):
    pathlib.Path("odd.jsonl").write_text("{}")
    stepfold_replay(client, ["odd.jsonl"])

def test_memory(stepfold_memory):
    import asyncio

    async def main():
        async with client.worker():
            return await (await client.start_workflow(careless)).result()

    stepfold_memory(client)
    assert client.log.name == "memory://"
    assert asyncio.run(main()) >= 0
"""

FAIL = {
    "test_code_that_does_not_repeat_itself[workflow0]": "the history holds step.run 'step 0'",
    "test_code_that_does_not_repeat_itself[workflow1]": "today's code ends as completed",
    "test_replay_of_nothing": "needs a file",
    "test_replay_of_something_else": "not an intact export",
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder: Path = tmp_path_factory.mktemp("user")
    (folder / "app.py").write_text(APP)
    (folder / "test_app.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=short", "test_app.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not (folder / "never.db").exists()
    return (done.stdout + done.stderr).splitlines()


def test_what_works_passes(lines: list[str]) -> None:
    summary = [line.split(" - ")[0].split("::")[-1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    assert sorted(summary) == sorted(FAIL), "\n".join(lines)


@pytest.mark.parametrize("name", FAIL)
def test_what_is_wrong_is_said(lines: list[str], name: str) -> None:
    assert FAIL[name] in "\n".join(lines)
