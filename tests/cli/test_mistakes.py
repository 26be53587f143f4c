"""What a user may get wrong: one line that says what, where and what to do, the documented exit code, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from shell import SHOP, Shell

MISTAKES = {
    "no such command": (2, ["run", "shwo"], "No such command 'shwo'. Did you mean 'show'?"),
    "no such option": (2, ["run", "show", "x", "--jsno"], "No such option"),
    "argument missing": (2, ["run", "show"], "Missing argument 'RUN_ID'"),
    "unknown format": (2, ["run", "list", "-o", "xml"], "'xml' is not one of 'table', 'json', 'jsonl'"),
    "APP without a client": (2, ["worker", "shop"], "write module:client, such as shop:client"),
    "APP as a path": (2, ["worker", "shop.py:client"], "write module:client, such as shop:client"),
    "APP as a path in a folder": (2, ["worker", "src/shop.py:app"], "write module:client, such as src.shop:app"),
    "APP that is not there": (2, ["worker", "shpo:client"], "there is no module 'shpo' in"),
    "APP that imports what is not there": (2, ["worker", "needy:client"], "No module named 'not_installed'"),
    "APP that is no Python": (2, ["worker", "broken:client"], "broken.py:2"),
    "APP that raises": (2, ["dev", "raising:client"], "ZeroDivisionError: division by zero ("),
    "APP with another name": (2, ["worker", "shop:clinet"], "no 'clinet'; it has shop:client"),
    "APP that is no client": (2, ["worker", "shop:something_else"], "is of type int, not a stepfold.Client; it has shop:client"),
    "APP without workflows": (2, ["worker", "idle:client"], "register one with @client.workflow"),
    "a duration that is none": (2, ["worker", "shop:client", "--grace", "soon"], "--grace: 'soon' is not a duration"),
    "not JSON": (2, ["run", "start", "order", "-d", "{order}"], "--data is not JSON"),
    "a text without quotes": (2, ["run", "start", "order", "-d", "hello"], "A text needs its quotes"),
    "stdin that is not JSON": (2, ["run", "start", "order", "-d", "-"], "stdin is not JSON"),
    "a file that is not there": (2, ["run", "start", "order", "-d", "@no.json"], "--data @no.json: No such file"),
    "a run id that is none": (2, ["run", "start", "order", "--run-id", "@x"], "'@x' is not a run id"),
    "a URL that is none": (2, ["run", "list", "--url", "orders.db"], "'orders.db' names no log"),
    "a URL with an unknown option": (2, ["run", "list", "--url", "sqlite:///a.db?fast=1"], "unknown option 'fast'"),
    "a URL that names a folder": (2, ["run", "list", "--url", "sqlite:///."], "sqlite:///. names no file"),
    "a port that is none": (2, ["run", "list", "--url", "kafka://localhost:kafka/shop"], "'localhost:kafka' is not the address"),
    "a port that is not there": (2, ["run", "list", "--url", "kafka://localhost/shop"], "'localhost' is not the address"),
    "a limit beyond all bounds": (2, ["run", "list", "--limit", "9" * 20], "--limit"),
    "copies beyond all bounds": (2, ["topics", "create", "-p", "4", "-r", "40000"], "--replication"),
    "data that the model rejects": (2, ["run", "start", "order", "--app", "shop:client", "-d", "7"], "is not valid"),
    "a log in another process": (2, ["run", "list", "--url", "memory://"], "lives inside one process"),
    "a state that is none": (2, ["run", "list", "--state", "happy"], "the states are pending, running"),
    "a time that is none": (2, ["run", "list", "--since", "lately"], "--since lately"),
    "topics of a file": (2, ["topics", "check", "--url", "sqlite:///a.db"], "has no topics"),
    "both schemas": (2, ["topics", "describe", "--schema", "--asyncapi"], "ask for one of them"),
    "an export that is not there": (2, ["run", "verify", "no.jsonl"], "no.jsonl cannot be read: No such file"),
    "a replay without code": (2, ["run", "replay", "shop.py"], "Missing option '--app'"),
    "a projection that is not there": (3, ["projection", "rebuild", "runs"], "no projection 'runs': name stepfold-runs"),
    "a projection that is none": (2, ["projection", "rebuild", "shop:client"], "is not a stepfold.projections.Projection"),
    "no such file": (4, ["run", "show", "x", "--url", "sqlite:///no.db"], "there is no file 'no.db'"),
    "no such folder": (4, ["run", "start", "order", "--url", "sqlite:///no/such.db"], "no/such.db"),
    "not a log": (4, ["run", "show", "x", "--url", "sqlite:///shop.py"], "shop.py"),
    "no broker": (4, ["run", "show", "x", "--url", "kafka://127.0.0.1:1/shop"], "no Kafka broker answers at 127.0.0.1:1"),
    "a worker without a broker": (4, ["worker", "shop:client", "--url", "kafka://127.0.0.1:1/shop"], "no Kafka broker answers"),
    "topics without a broker": (4, ["topics", "check", "--url", "kafka://127.0.0.1:1/shop"], "no Kafka broker answers"),
    "no such run": (3, ["run", "show", "nobody", "--url", "sqlite:///empty.db"], "has no run 'nobody'"),
    "a signal to no run": (3, ["run", "signal", "nobody", "go", "--url", "sqlite:///empty.db"], "has no run 'nobody'"),
    "a signal without a name": (2, ["run", "signal", "nobody", "", "--url", "sqlite:///empty.db"], "is not the name of a signal"),
    "a reason beyond all bounds": (
        2,
        ["run", "cancel", "nobody", "--why", "r" * 20_000, "--url", "sqlite:///empty.db"],
        "is not a text of up to 10,000 characters",
    ),
    "a run id beyond all bounds": (2, ["run", "start", "order", "--run-id", "x" * 5_000], "… (5,002 characters) is not a run id"),
    "a URL of nothing": (2, ["run", "start", "order", "--url", ""], "'' names no log"),
    "a session of no length": (
        2,
        ["run", "list", "--url", "kafka://h:1/shop?session_timeout_s=nan"],
        "session_timeout_s must be a number",
    ),
    "a host that cannot be": (
        2,
        ["run", "list", "--url", "kafka://a..b:9092/x"],
        "'kafka://a..b:9092/x': 'a..b:9092' is not the address",
    ),
    "a password in a URL": (2, ["run", "list", "--url", "kafka://me:secret@h:1/shop"], "'kafka://…@h:1/shop' is not a Kafka URL"),
    "an export of no run": (3, ["run", "export", "nobody", "--url", "sqlite:///empty.db"], "has no run 'nobody'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("mistakes"))
    (shell.folder / "shop.py").write_text(SHOP)
    (shell.folder / "idle.py").write_text("import stepfold\nclient = stepfold.Client()\n")
    (shell.folder / "needy.py").write_text("import not_installed\n")
    (shell.folder / "broken.py").write_text("import stepfold\nclient = = 1\n")
    (shell.folder / "raising.py").write_text("client = 1 / 0\n")
    shell("run", "start", "order", "--url", "sqlite:///empty.db")
    return shell


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(folder: Shell, mistake: str) -> None:
    code, arguments, says = MISTAKES[mistake]
    done = folder(*arguments, code=code, stdin="{")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stepfold: ") and says in last
    assert done.stdout == ""


def test_what_was_refused_made_no_file(folder: Shell) -> None:
    assert {path.name for path in folder.folder.glob("*.db")} <= {"empty.db"}


def test_help_needs_no_driver_and_no_database() -> None:
    heavy = "{'aiokafka', 'sqlalchemy', 'stepfold.drivers.kafka', 'stepfold.projections'}"
    code = f"import sys, stepfold.cli.app; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_tells_the_exit_codes(folder: Shell) -> None:
    assert "4 the log cannot be used" in " ".join(folder("--help").stdout.split())
    assert "Usage: stepfold run" in folder("run", code=2).stdout


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_a_reader_that_goes_away_is_no_error(folder: Shell, form: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    run_id = folder("run", "start", "order", "--url", "sqlite:///empty.db").stdout.strip()
    done = subprocess.run(
        folder.command("run", "history", run_id, "--url", "sqlite:///empty.db", "-o", form),
        cwd=folder.folder,
        env=folder.env,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_output_is_no_mistake(folder: Shell) -> None:
    command = folder.command("run", "list", "--url", "sqlite:///none.db")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        cwd=folder.folder,
        env=folder.env,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr.startswith("stepfold: there is no file")
