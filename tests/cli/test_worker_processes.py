"""`stepfold worker --processes`: several workers below one process, which replaces those that die and takes all along."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from shell import DEADLINE_S, Shell, lines_until, processes_of, until

from stepfold import Client
from stepfold.cli.problems import Exit
from stepfold.cli.processes import keep_running
from stepfold.worker.stopping import SIGNALLED_TWICE_S

FIRST_LINE = re.compile(r"(worker-\d) (\d+) on ")
SERVES = re.compile(r"(worker-\d): .*: partitions \[")

NEVER_ENDS = """
import asyncio

from stepfold import Client, Context, Step

client = Client()


@client.workflow(id="w")
async def w(ctx: Context[None], step: Step) -> None:
    await step.run("s", asyncio.sleep, 3600)
"""


def start(shell: Shell, *arguments: str, processes: int = 2) -> tuple[subprocess.Popen[str], dict[str, int]]:
    """The process and, by name, the ids of its workers, all of which serve."""
    parent = shell.start("worker", "shop:client", "--processes", str(processes), *arguments)
    pids: dict[str, int] = {}
    serving: set[str] = set()

    def complete(line: str) -> bool:
        if begins := FIRST_LINE.match(line):
            pids[begins[1]] = int(begins[2])
        elif serves := SERVES.search(line):
            serving.add(serves[1])
        return len(serving) == processes

    lines_until(parent, complete)
    return parent, pids


def begun(parent: subprocess.Popen[str]) -> tuple[str, int]:
    """The next worker that says what it serves: its name and process id."""
    found = FIRST_LINE.match(lines_until(parent, lambda line: FIRST_LINE.match(line) is not None)[-1])
    assert found is not None
    return found[1], int(found[2])


async def replaced(shell: Shell, url: str) -> None:
    """A worker is killed while it has runs: another one comes, and they end."""
    parent, pids = start(shell, "--url", url)
    async with Client(url) as client:
        runs = [await client.start_workflow("approved", {"order_id": str(number)}) for number in range(8)]
        for run in runs:
            while (await run.status()).state != "waiting":
                await asyncio.sleep(0.05)
        os.kill(pids["worker-1"], signal.SIGKILL)
        lines_until(parent, lambda line: "worker-1 was killed by signal 9; a new one starts in" in line)
        name, pid = begun(parent)
        assert name == "worker-1" and pid not in pids.values()
        for run in runs:
            await run.signal("approve", "me")
        assert [await run.result(timeout=DEADLINE_S) for run in runs] == ["by me"] * 8
    parent.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=DEADLINE_S) and parent.returncode == 0


async def test_a_worker_that_is_killed_is_replaced_and_its_runs_end_on_sqlite(shell: Shell) -> None:
    await replaced(shell, f"sqlite:///{shell.folder}/runs.db")


async def test_a_worker_that_is_killed_is_replaced_and_its_runs_end_on_kafka(shell: Shell, kafka_namespace: str) -> None:
    await replaced(shell, f"{kafka_namespace}?session_timeout_s=6")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_in_good_order(shell: Shell, number: signal.Signals) -> None:
    parent, pids = start(shell, "--url", f"sqlite:///{shell.folder}/runs.db", processes=3)
    parent.send_signal(number)
    said = parent.communicate(timeout=DEADLINE_S)[0]
    assert parent.returncode == 0 and "Traceback" not in said
    assert [said.count(f"{name}: sqlite:///{shell.folder}/runs.db: stopped\n") for name in pids] == [1, 1, 1]
    assert processes_of(shell.folder) == []


def test_a_signal_stops_workers_that_have_not_started_yet(shell: Shell) -> None:
    (shell.folder / "shop.py").write_text("import time; print('importing', flush=True); time.sleep(3600)")
    parent = shell.start("worker", "shop:client", "--processes", "2", "--url", f"sqlite:///{shell.folder}/runs.db")
    lines_until(parent, lambda line: line == "importing\n")
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(DEADLINE_S) == 0
    assert processes_of(shell.folder) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_all_at_once(shell: Shell, number: signal.Signals, code: int) -> None:
    (shell.folder / "shop.py").write_text(NEVER_ENDS)
    url = f"sqlite:///{shell.folder}/runs.db"
    parent, _ = start(shell, "--grace", "1h", "--url", url)
    shell("run", "start", "w", "--run-id", "one", "--url", url)
    until(lambda: shell.json("run", "show", "one", "--url", url)["state"] == "running")
    parent.send_signal(number)
    lines_until(parent, lambda line: "stopping: waiting up to 3600 s for 1 step" in line)
    time.sleep(SIGNALLED_TWICE_S)
    parent.send_signal(number)
    assert parent.wait(DEADLINE_S) == code
    until(lambda: not processes_of(shell.folder))


def test_workers_do_not_outlive_a_process_that_is_killed(shell: Shell) -> None:
    parent, _ = start(shell, "--url", f"sqlite:///{shell.folder}/runs.db")
    assert len(processes_of(shell.folder)) == 3
    parent.kill()
    until(lambda: not processes_of(shell.folder))


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ["shpo:client"]),
        (2, ["shop:client", "--grace", "soon"]),
        (2, ["shop:client", "--url", "memory://"]),
        (4, ["shop:client", "--url", "sqlite:///no/such.db"]),
        (4, ["shop:client", "--url", "kafka://127.0.0.1:1/shop"]),
    ],
    ids=["import", "option", "memory", "folder", "broker"],
)
def test_what_keeps_one_from_starting_is_said_once_and_ends_all(shell: Shell, code: int, arguments: list[str]) -> None:
    reason = shell("worker", *arguments, code=code).stderr.splitlines()[-1]
    said = shell("worker", *arguments, "--processes", "3", code=code).stderr
    assert said.splitlines()[-1] == reason and said.count("stepfold: ") == 1


def test_a_machine_that_starts_no_process_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    assert asyncio.run(keep_running([], 2)) == Exit.LOG


def test_a_worker_that_cannot_start_is_tried_again_while_others_serve(shell: Shell) -> None:
    broken = shell.folder / "broken"
    source = shell.folder / "shop.py"
    source.write_text(f"import pathlib\nif pathlib.Path({str(broken)!r}).exists(): raise OSError('half')\n{source.read_text()}")
    parent, pids = start(shell)
    broken.touch()
    os.kill(pids["worker-2"], signal.SIGKILL)
    lines_until(parent, lambda line: "worker-2 ended with exit code 2; a new one starts in" in line)
    broken.unlink()
    assert begun(parent)[0] == "worker-2"
    parent.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=DEADLINE_S) and parent.returncode == 0


def test_the_log_of_an_app_can_name_the_worker(shell: Shell) -> None:
    source: Path = shell.folder / "shop.py"
    source.write_text(
        f"import logging\nlogging.basicConfig(level=20, format='<%(processName)s> %(message)s')\n{source.read_text()}"
    )
    parent = shell.start("worker", "shop:client", "--processes", "2")
    lines_until(parent, lambda line: line == "<worker-1> sqlite:///stepfold.db: partitions [0, 1, 2, 3]\n")
    lines_until(parent, lambda line: line.startswith("<worker-2> sqlite:///stepfold.db: partitions"))
    parent.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=DEADLINE_S) and parent.returncode == 0
