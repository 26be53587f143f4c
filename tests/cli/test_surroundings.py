"""Odd environments: terminals without columns or encoding, streams that are closed or full, folders that are gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell, shell_in, until

from stepfold.cli import app as app_module
from stepfold.cli.problems import TRACEBACK

ENVIRONMENTS = {
    "no columns": {"COLUMNS": "0", "LINES": "0"},
    "columns that are none": {"COLUMNS": "wide", "TERMINAL_WIDTH": "wide"},
    "negative columns": {"COLUMNS": "-1", "TERMINAL_WIDTH": "0"},
    "one column": {"COLUMNS": "1"},
    "no language": {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "no terminal": {"TERM": ""},
    "an unknown terminal": {"TERM": "nonsense"},
    "colours": {"FORCE_COLOR": "1", "TERM": "xterm"},
    "an odd zone": {"TZ": "Nowhere/Else"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with shell_in(tmp_path_factory.mktemp("places")) as shell:
        shell("run", "start", "Bestellung für 世界", "--run-id", "ö-1", "-d", '"\\ud83d\\ude00"')
        yield shell


def ended(shell: Shell, *arguments: str, script: str = 'exec "$@"', env: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", script, "sh", *shell.command(*arguments)],
        cwd=shell.folder,
        env={**shell.env, **(env or {})},
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert "Exception ignored" not in err and ("Traceback" not in err or " ERROR " in err), err
    return done.returncode, out, err


@pytest.mark.parametrize("surroundings", ENVIRONMENTS)
def test_any_environment_will_do(place: Shell, surroundings: str) -> None:
    env = ENVIRONMENTS[surroundings]
    for arguments in (["run", "show", "ö-1"], ["run", "history", "ö-1", "-o", "json"], ["run", "--help"]):
        code, out, err = ended(place, *arguments, env=env)
        assert (code, err) == (0, "") and out
    assert ended(place, "run", "shwo", env=env)[0] == 2


def test_nobody_needs_a_home(place: Shell) -> None:
    assert ended(place, "run", "list", script='unset HOME; exec "$@"')[0] == 0
    assert ended(place, "run", "show", "ö-1", script='exec env -i PATH="$PATH" "$@"')[0] == 0


@pytest.mark.parametrize("script", ['exec "$@" >&-', 'exec "$@" 2>&-', 'exec "$@" <&-', 'exec "$@" <&- >&- 2>&-'])
def test_closed_streams_are_no_mistake(place: Shell, script: str) -> None:
    assert ended(place, "run", "show", "ö-1", script=script)[0] == 0
    assert ended(place, "run", "show", "nobody", script=script)[0] == 3
    assert ended(place, "run", "start", "w", "-d", "-", script=script)[0] == 2  # nothing is no JSON


def test_a_full_disk_under_the_output_is_told(place: Shell) -> None:
    code, _, err = ended(place, "run", "history", "ö-1", "-o", "json", script='exec "$@" >/dev/full')
    assert code == 4 and "No space left" in err
    code, _, err = ended(place, "run", "export", "ö-1", script='exec "$@" >/dev/full')
    assert (code, err.rstrip()) == (4, "stepfold: the standard output cannot be written: No space left on device")
    code, _, err = ended(place, "run", "export", "ö-1", "-f", "/dev/full")
    assert (code, err.rstrip()) == (4, "stepfold: /dev/full cannot be written: No space left on device")
    assert ended(place, "run", "show", "nobody", script='exec "$@" >/dev/full 2>/dev/full')[0] == 3


def test_a_folder_that_is_gone_is_told(place: Shell) -> None:
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    code, _, err = ended(place, "run", "list", "-a", "shop:client", script=gone)
    assert code == 2 and "current directory" in err
    code, _, err = ended(place, "run", "list", script=gone)
    assert code == 4 and err.startswith("stepfold: ")


def test_a_database_that_cannot_be_written_names_the_option(place: Shell) -> None:
    (place.folder / "other.projections.db").mkdir()
    place("run", "start", "order", "--url", "sqlite:///other.db")
    assert "--database names another one" in place("run", "list", "--url", "sqlite:///other.db", code=4).stderr


def test_text_that_is_no_text_is_refused(place: Shell) -> None:
    argument = os.fsdecode(b"\xff\x1b[2J")
    code, _, err = ended(place, "run", "show", argument)
    assert code == 2 and err == "stepfold: '\\udcff\\x1b[2J' is not text: neither UTF-8 nor utf-8\n"
    code, _, err = ended(place, "run", "list", env={"STEPFOLD_URL": argument})
    assert code == 2 and "is not text" in err


def test_the_version_and_the_completion_of_the_shell(place: Shell) -> None:
    assert place("--version").stdout.startswith("stepfold ")
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else typer looks for a shell above it, and finds make's
    assert "_STEPFOLD_COMPLETE" in ended(place, "--show-completion", "bash", env=named)[1]
    words = {"_STEPFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "stepfold run sh", "COMP_CWORD": "2"}
    assert ended(place, env=words)[1].split() == ["show"]


def test_code_and_environment_that_name_two_logs_are_told_in_the_first_line(place: Shell) -> None:
    (place.folder / "fixed.py").write_text(
        "import stepfold\n"
        "client = stepfold.Client('sqlite:///fixed.db')\n"
        "def create(): return client\n"
        "@client.workflow(id='w')\n"
        "async def w(ctx, step): return 1\n"
    )
    env = {"STEPFOLD_URL": "sqlite:///other.db"}
    says = (
        "fixed:client names the log sqlite:///fixed.db, which is used; STEPFOLD_URL=sqlite:///other.db is ignored (--url decides)"
    )
    assert ended(place, "run", "start", "w", "-a", "fixed:client", env=env)[2].splitlines()[0] == says
    assert ended(place, "run", "start", "w", "-a", "fixed:create", env={"STEPFOLD_URL": "sqlite:///fixed.db"})[2] == ""
    assert ended(place, "run", "start", "w", "-a", "fixed:create", "-u", "sqlite:///other.db", env=env)[2] == ""
    worker = subprocess.Popen(
        place.command("worker", "fixed:create"), cwd=place.folder, env=place.env | env, stderr=subprocess.PIPE, text=True
    )
    assert worker.stderr is not None
    assert worker.stderr.readline() == says.replace("client", "create") + "\n"
    until(lambda: "partitions" in (worker.stderr.readline() if worker.stderr else ""))
    worker.terminate()
    assert worker.communicate() and worker.returncode == 0


def test_a_projection_is_a_service(place: Shell, tmp_path: Path) -> None:
    (place.folder / "seen.py").write_text(
        "import sqlalchemy as sa\n"
        "from stepfold.projections import Projection\n"
        "class Seen(Projection):\n"
        "    name = 'seen'\n"
        "    metadata = sa.MetaData()\n"
        "    rows = sa.Table('seen', metadata, sa.Column('run_id', sa.String(200)))\n"
        "    def apply(self, connection, event, run): connection.execute(self.rows.insert().values(run_id=run.id))\n"
        "class Bad(Seen):\n"
        "    name = 'bad'\n"
        "    def apply(self, connection, event, run): raise ValueError('not mine')\n"
    )
    database = ["--database", f"sqlite:///{tmp_path}/p.db"]
    service = place.start("projection", "run", "seen:Seen", "stepfold-runs", *database)
    assert service.stdout is not None
    assert "seen, stepfold-runs of sqlite:///stepfold.db: up to date from now on" in service.stdout.readline()
    until(lambda: not any(one["behind"] for one in place.json("projection", "lag", "seen:Seen", *database)))
    assert {one["projection"] for one in place.json("projection", "lag", "stepfold-runs", *database)} == {"stepfold-runs"}
    place("projection", "lag", "other", *database, code=3)
    service.terminate()
    assert service.wait() == 0
    for command in ("run", "rebuild"):
        failed = ended(place, "projection", command, "seen:Bad", *database)
        last = failed[2].splitlines()[-1]
        assert failed[0] == 1 and failed[2].count("raised ValueError: not mine") == 1
        assert ('seen.py", line 10' if command == "run" else "seen.py:10") in failed[2] and last.startswith("stepfold: ")


@pytest.mark.parametrize("shown", [False, True])
def test_a_bug_ends_a_command_with_70_and_its_traceback_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    def bug(**options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sys.argv", ["stepfold", "run", "list"])
    monkeypatch.setattr(app_module, "app", bug)
    monkeypatch.setenv(TRACEBACK, "1" if shown else "")
    with pytest.raises(SystemExit) as end:
        app_module.command()
    assert end.value.code == 70
    assert ("Traceback" in capsys.readouterr().err) is shown
