"""`stepfold worker` and `stepfold dev`: how they start, go on and end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from shell import DEADLINE_S, Shell, lines_until, processes_of, until

from stepfold.worker import eventloop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_says_what_it_serves_and_leaves_in_good_order(shell: Shell, number: signal.Signals) -> None:
    worker = shell.start("worker", "shop:client", "--grace", "1s")
    lines = lines_until(worker, lambda line: "partitions [0, 1, 2, 3]" in line)
    assert lines[0].endswith(
        f"on sqlite:///stepfold.db ({eventloop.name()}): order (version 1), refused (version 1), approved (version 1), "
        "reviewed (version 1)\n"
    )
    assert shell("run", "start", "order", "-d", '{"order_id": "1", "flaky": 1}', "--wait").stdout == '"paid 1"\n'
    worker.send_signal(number)
    rest = worker.communicate()[0]
    assert worker.returncode == 0 and "Traceback" not in rest
    assert "step pay of run" in rest and "(attempt 1)" in rest
    run_id = shell("run", "start", "order", "-d", '{"order_id": "2"}').stdout.strip()
    assert shell.json("run", "show", run_id)["state"] == "pending"  # nobody owns the log


SIGNALLED = """
import asyncio
import os

import stepfold.worker.stopping
from stepfold import Client, Context, Step

stepfold.worker.stopping.SIGNALLED_TWICE_S = {twice_s}
client = Client()


async def signal_twice() -> str:
    for _ in range(2):
        os.kill(os.getpid(), {number})
        for _ in range(20):  # turns of the loop, in which it comes to the handler and to what that has put off
            await asyncio.sleep(0)
    return "finished"


@client.workflow(id="signalled")
async def signalled(ctx: Context[None], step: Step) -> str:
    return await step.run("signal-twice", signal_twice)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_at_once_is_one(shell: Shell, number: signal.Signals) -> None:
    """As from `timeout`, which signals the process and its group: the running step is waited for."""
    (shell.folder / "shop.py").write_text(SIGNALLED.format(twice_s=3600, number=int(number)))
    worker = shell.start("worker", "shop:client")
    shell("run", "start", "signalled", "--run-id", "one")
    assert worker.wait(DEADLINE_S) == 0
    assert '"finished"' in shell("run", "history", "one").stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_second_signal_ends_a_worker_at_once(shell: Shell, number: signal.Signals, code: int) -> None:
    (shell.folder / "shop.py").write_text(SIGNALLED.format(twice_s=0, number=int(number)))
    worker = shell.start("worker", "shop:client")
    shell("run", "start", "signalled", "--run-id", "one")
    assert worker.wait(DEADLINE_S) == code
    assert '"finished"' not in shell("run", "history", "one").stdout


@pytest.mark.parametrize(("command", "code"), [("worker", 0), ("dev", 130)])
def test_sigterm_ends_what_a_script_has_put_into_the_background(shell: Shell, command: str, code: int) -> None:
    process = shell.start(command, "shop:client", ignores_sigint=True)
    lines_until(process, lambda line: "partitions" in line)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == code


def test_a_url_moves_an_app_to_another_log(shell: Shell) -> None:
    shell.start("worker", "shop:client", "--url", "sqlite:///elsewhere.db")
    order = ["run", "start", "order", "--data", '{"order_id": "1"}', "--wait"]
    assert shell(*order, "--app", "shop:client", "--url", "sqlite:///elsewhere.db").stdout == '"paid 1"\n'
    assert not (shell.folder / "stepfold.db").exists()
    shell.env["STEPFOLD_URL"] = "sqlite:///elsewhere.db"
    assert len(shell.json("run", "list")) == 1


def test_a_child_ends_with_its_parent(shell: Shell) -> None:
    worker = shell.start("worker", "shop:client", "--with-parent", stdin=subprocess.PIPE)
    lines_until(worker, lambda line: "partitions" in line)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(DEADLINE_S) == 0


def test_dev_shows_what_runs_do_and_starts_again_when_a_file_changes(shell: Shell) -> None:
    url = f"sqlite:///{shell.folder}/dev.db"
    dev = shell.start("dev", "shop:client", "--url", url)
    lines_until(dev, lambda line: "partitions" in line)
    shell("run", "start", "order", "--run-id", "one", "-d", '{"order_id": "1"}', "--url", url)
    assert '"paid 1"' in lines_until(dev, lambda line: "one  completed" in line)[-1]

    source = shell.folder / "shop.py"
    (shell.folder / "a_test.py").write_text("x = 1\n")  # first by name, but nothing that the worker imports
    source.write_text(source.read_text().replace('f"paid ', 'f"settled '))
    lines_until(dev, lambda line: line == "shop.py changed: the worker restarts\n")
    lines_until(dev, lambda line: "partitions" in line)
    shell("run", "start", "order", "--run-id", "two", "-d", '{"order_id": "2"}', "--url", url)
    assert '"settled 2"' in lines_until(dev, lambda line: "two  completed" in line)[-1]

    source.write_text("import nowhere\n")
    lines_until(dev, lambda line: "No module named 'nowhere'" in line)
    lines_until(dev, lambda line: "the worker ended (exit code 2)" in line)
    source.write_text("from stepfold import Client\nclient = Client()\n@client.workflow(id='w')\nasync def w(ctx, step): ...\n")
    lines_until(dev, lambda line: "w (version 1)" in line)

    dev.send_signal(signal.SIGINT)
    assert "Traceback" not in dev.communicate()[0]
    assert dev.returncode == 130
    assert processes_of(shell.folder) == []


def test_dev_killed_leaves_no_worker_behind(shell: Shell) -> None:
    dev = shell.start("dev", "shop:client", "--url", f"sqlite:///{shell.folder}/dev.db")
    lines_until(dev, lambda line: "partitions" in line)
    assert len(processes_of(shell.folder)) == 2  # itself and its worker
    dev.kill()
    dev.wait()
    until(lambda: not processes_of(shell.folder))


def test_dev_does_not_work_on_somebody_elses_kafka(shell: Shell) -> None:
    source = shell.folder / "shop.py"
    source.write_text(source.read_text().replace("Client()", 'Client("kafka://production:9092/shop")'))
    dev = shell.start("dev", "shop:client")
    lines = lines_until(dev, lambda line: "partitions" in line)
    assert "dev uses sqlite:///stepfold.db instead" in lines[0]
    dev.send_signal(signal.SIGTERM)
    assert dev.wait() == 130


def test_dev_looks_at_what_is_imported_wherever_it_is(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "lent.py").write_text("x = 1\n")
    source = shell.folder / "shop.py"
    source.write_text(f"import sys; sys.path.append({str(elsewhere)!r}); import lent\n{source.read_text()}")
    dev = shell.start("dev", "shop:client")
    lines_until(dev, lambda line: "partitions" in line)
    # Until the worker has told what it imports, a change goes unseen: so it is made again and again.
    process = threading.Thread(target=lambda: until(lambda: change(elsewhere / "lent.py") or dev.poll() is not None), daemon=True)
    process.start()
    lines_until(dev, lambda line: line == f"{elsewhere / 'lent.py'} changed: the worker restarts\n")
    dev.send_signal(signal.SIGTERM)
    assert dev.communicate() and dev.returncode == 130
    process.join()


def change(path: Path) -> None:
    path.write_text(f"{path.read_text()}#\n")


HOLDS = """
import asyncio
import re
import time

from stepfold import Client, Context, Step

client = Client()


async def swallows() -> None:
    while True:
        try:
            print("begun", flush=True)
            await asyncio.sleep(3600)
        except BaseException:
            pass


def blocks() -> None:
    print("begun", flush=True)
    time.sleep(3600)


async def uses_a_thread_of_its_own() -> None:
    await asyncio.to_thread(blocks)


@client.workflow(id="w")
async def w(ctx: Context[None], step: Step) -> None:
    {code}
"""


@pytest.mark.parametrize("step", ["swallows", "blocks", "uses_a_thread_of_its_own"])
def test_a_worker_that_stops_names_the_steps_that_do_not(shell: Shell, step: str) -> None:
    (shell.folder / "shop.py").write_text(HOLDS.replace("{code}", f'await step.run("s", {step})'))
    worker = shell.start("worker", "shop:client", "--grace", "200ms")
    shell("run", "start", "w", "--run-id", "one")
    lines_until(worker, lambda line: line == "begun\n")
    worker.send_signal(signal.SIGTERM)
    said = worker.communicate(timeout=DEADLINE_S)[0]
    assert worker.returncode == 0
    assert "stopping: waiting up to 0.2 s for 1 step\n" in said and "step s of run one of w (attempt 1) is abandoned" in said
    assert "stopped" in said


@pytest.mark.parametrize(
    "code",
    [
        'print("begun", flush=True); time.sleep(3600)',
        'print("begun", flush=True)\n    while True: pass',
        'print("begun", flush=True); re.match("(a|a?)+$", "a" * 50 + "b")',
        'print("begun", flush=True)\n    while True:\n        try: await step.sleep("#", 1)\n        except BaseException: pass',
    ],
    ids=["blocks", "spins", "explodes", "swallows"],
)
def test_sigterm_ends_a_worker_whose_loop_is_held_up(shell: Shell, code: str) -> None:
    (shell.folder / "shop.py").write_text(HOLDS.replace("{code}", code))
    worker = shell.start("worker", "shop:client")
    shell("run", "start", "w", "--run-id", "one")
    lines_until(worker, lambda line: line == "begun\n")
    for _ in range(20):  # the second one where nothing but a handler gets a turn
        worker.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(2)
            break
    said = worker.communicate(timeout=DEADLINE_S)[0]
    assert worker.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    if worker.returncode > 0:
        assert "the code of run one of w, at " in said and "shop.py:" in said and "ends without waiting" in said


LEAVES = """
import asyncio
import atexit
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import stepfold.worker.stopping
from stepfold import Client, Context, Step

stepfold.worker.stopping.END_S = 0.1
client = Client()
pool = ThreadPoolExecutor(1)
tasks = []


async def swallows() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


def refuses(*arguments: object, **others: object) -> None:
    raise RuntimeError("no thread")


async def leaves() -> None:
    {code}
    print("begun", flush=True)


@client.workflow(id="w")
async def w(ctx: Context[None], step: Step) -> None:
    await step.run("s", leaves)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("pool.submit(time.sleep, 3600)", "threads that are no daemons ('ThreadPoolExecutor-"),
        ("threading.Thread(target=time.sleep, args=(3600,), name='mine').start()", "threads that are no daemons ('mine')"),
        ("atexit.register(time.sleep, 3600)", "an exit handler"),
        ("asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)", "threads that are no daemons"),
        ("tasks.append(asyncio.create_task(swallows())); await asyncio.sleep(0)", "a task"),
        ("threading.Thread.start = refuses", "stopped"),
        ("threading.excepthook = None", "stopped"),
    ],
    ids=["pool", "thread", "exit handler", "executor", "task", "no thread", "no hook"],
)
def test_sigterm_ends_a_worker_whatever_the_code_of_steps_has_left_behind(shell: Shell, code: str, said: str) -> None:
    (shell.folder / "shop.py").write_text(LEAVES.replace("{code}", code))
    worker = shell.start("worker", "shop:client")
    shell("run", "start", "w", "--run-id", "one")
    lines_until(worker, lambda line: line == "begun\n")
    worker.send_signal(signal.SIGTERM)
    assert said in worker.communicate(timeout=DEADLINE_S)[0]
    assert worker.returncode == 0


def test_a_worker_whose_app_starts_a_thread_and_fails_ends(shell: Shell) -> None:
    starts = "threading.Thread(target=time.sleep, args=(3600,), name='mine').start()\nimport nowhere\n"
    (shell.folder / "shop.py").write_text(LEAVES.replace("{code}", "pass") + starts)
    done = shell("worker", "shop:client", code=2)
    assert "No module named 'nowhere'" in done.stderr and "threads that are no daemons ('mine')" in done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("[task.cancel() for task in asyncio.all_tasks()]", "step s of run one (attempt 1) has cancelled the tasks"),
        ("asyncio.get_running_loop().stop()", "has stopped the worker's event loop"),
        ("asyncio.get_running_loop().call_soon(exit, 0)", "has raised SystemExit (0) in a task or callback"),
    ],
    ids=["cancels", "stops", "exits"],
)
def test_a_worker_whose_loop_a_step_has_ended_says_so_in_one_line(shell: Shell, code: str, said: str) -> None:
    (shell.folder / "shop.py").write_text(LEAVES.replace("{code}", f"{code}; await asyncio.sleep(0.001)"))
    worker = shell.start("worker", "shop:client")
    shell("run", "start", "w", "--run-id", "one")
    lines = worker.communicate(timeout=DEADLINE_S)[0].splitlines()
    assert worker.returncode == 5
    assert [line for line in lines if line.startswith("stepfold: ")] == [line for line in lines if said in line] != []
    assert not any("Traceback" in line for line in lines)
