"""`stepfold run …` against a worker that runs."""

from __future__ import annotations

import itertools
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
from typing import Any

import orjson
from shell import Shell, until

STYLES = re.compile(r"\x1b\[[0-9;?]*[mhlAKG]")
"""What rich sends of its own: colours, and the cursor of a line at the foot."""


def start(shell: Shell, workflow: str, run_id: str, *options: str, code: int = 0, **data: Any) -> str:
    value = orjson.dumps({"order_id": run_id, **data}).decode()
    return shell("run", "start", workflow, "--run-id", run_id, "--data", value, *options, code=code).stdout


def waiting_for_approval(shell: Shell, run_id: str) -> None:
    until(lambda: any("approve" in words for words in shell.json("run", "show", run_id)["waiting_on"]))


def test_start_prints_the_id_and_the_same_again_for_the_same_request(served: Shell) -> None:
    assert start(served, "order", "once") == "once\n"
    assert start(served, "order", "once") == "once\n"
    other = served("run", "start", "order", "--run-id", "once", "--data", '{"order_id": "another"}', code=1)
    assert "'once' exists" in other.stderr


def test_start_makes_an_id_where_none_is_given(served: Shell) -> None:
    run_id = served("run", "start", "order", "--data", '{"order_id": "x"}').stdout.strip()
    assert served("run", "watch", run_id).stdout.splitlines()[-1].endswith('"paid x"')


def test_wait_prints_the_result(served: Shell) -> None:
    assert start(served, "order", "waited", "--wait", flaky=2) == '"paid waited"\n'
    status = orjson.loads(start(served, "order", "waited", "--wait", "-o", "json", flaky=2))
    assert (status["state"], status["result"], status["steps_completed"]) == ("completed", "paid waited", 1)


def test_wait_for_a_run_that_fails_ends_with_1(served: Shell) -> None:
    failed = served("run", "start", "refused", "--run-id", "bad", "--data", '{"order_id": "bad"}', "--wait", code=1)
    assert failed.stdout == ""
    said = failed.stderr.splitlines()
    assert said[0] == "bad" and said[-1] == "stepfold: run 'bad' failed: NonRetryable: bad is not for sale"


def test_a_start_brings_a_signal(served: Shell) -> None:
    served("run", "start", "approved", "--run-id", "r", "-d", '{"order_id": "1"}', "--signal", "approve", "--signal-data", '"me"')
    assert served("run", "watch", "r").stdout.splitlines()[-1].endswith('"by me"')
    refused = served("run", "start", "approved", "--run-id", "s", "-d", '{"order_id": "1"}', "--signal-data", "1", code=2)
    assert "--signal-data needs --signal NAME" in refused.stderr
    wrong = served("run", "start", "approved", "--signal", "approve", "--signal-data", "{", code=2)
    assert "--signal-data is not JSON" in wrong.stderr


def test_who_waits_is_told_the_id_and_what_is_waited_for_and_when_that_changes(shell: Shell) -> None:
    waiting = shell.start("run", "start", "approved", "--run-id", "r", "-d", '{"order_id": "1"}', "--wait")
    assert waiting.stdout is not None  # and stderr
    assert waiting.stdout.readline() == "r\n"
    assert waiting.stdout.readline() == "waits for a worker (no worker serves its partition)\n"
    shell.start("worker", "shop:client")
    said = [waiting.stdout.readline()]
    while "signal 'approve'" not in said[-1]:
        said.append(waiting.stdout.readline())
    shell("run", "signal", "r", "approve", "-d", '"me"')
    said += waiting.stdout
    assert waiting.wait() == 0 and said[-1] == '"by me"\n'
    assert all(one != other for one, other in itertools.pairwise(said))


def test_nothing_of_foreign_text_is_obeyed_by_the_terminal(served: Shell) -> None:
    run_id = "odd"
    (served.folder / "odd.py").write_text(
        "import shop\n"
        "from stepfold import Retry\n"
        "client = shop.client\n"
        "def call(): raise RuntimeError('said: \\x1b[2J\\x1b]0;owned\\x07 \\u202e\\u200b\\x9b\\n✔ forged')\n"
        "@client.workflow(id='odd')\n"
        "async def odd(ctx, step): await step.run('call', call, retry=Retry(2, backoff='1ms'))\n"
    )
    worker = served.start("worker", "odd:client", "--url", "sqlite:///odd.db")
    url = ["--url", "sqlite:///odd.db"]
    failed = served("run", "start", "odd", "--run-id", run_id, "-d", '"\\u001b[2J\\u202e"', "--wait", *url, code=1)
    worker.terminate()
    said = [failed.stderr, worker.communicate()[0]]
    for command in (["list"], ["show", run_id], ["history", run_id]):
        said += [served("run", *command, *url, "-o", form).stdout for form in ("table", "json", "jsonl")]
        said.append(on_a_terminal(served, "run", *command, *url, columns=200).replace("\r", ""))
    for text in said:
        assert "owned" in text or "call" not in text
        found = STYLES.sub("", text)
        assert not any(ord(character) < 32 and character != "\n" for character in found), found
        assert not set(found) & set("\x7f\x9b\u200b\u202e"), found
        assert not any(line.startswith("✔ forged") for line in found.splitlines() if "Traceback" not in text)
    [event] = [event for event in served.json("run", "history", run_id, *url) if event["type"] == "failed"]
    assert event["error"]["message"] == "said: \x1b[2J\x1b]0;owned\x07 \u202e\u200b\x9b\n✔ forged"
    assert (served.folder / "odd.db").exists()


def test_data_come_from_a_file_and_from_stdin(served: Shell) -> None:
    (served.folder / "order.json").write_text('{"order_id": "filed"}')
    assert served("run", "start", "order", "--data", "@order.json", "--wait").stdout == '"paid filed"\n'
    assert served("run", "start", "order", "-d", "-", "-w", stdin='{"order_id": "piped"}').stdout == '"paid piped"\n'


def test_an_app_checks_the_data_and_knows_its_workflows(served: Shell) -> None:
    wrong = served("run", "start", "order", "--app", "shop:client", "--data", "{}", code=2)
    assert "order_id: Field required" in wrong.stderr
    unknown = served("run", "start", "odrer", "--app", "shop:client", code=3)
    assert "no workflow 'odrer'; it has approved, order, refused" in unknown.stderr
    assert (
        served("run", "start", "order", "-a", "shop:client", "-d", '{"order_id": "checked"}', "-w").stdout == '"paid checked"\n'
    )


def test_show_draws_steps_with_attempts_and_what_is_waited_for(served: Shell) -> None:
    start(served, "approved", "shown", flaky=1)
    waiting_for_approval(served, "shown")
    picture = served("run", "show", "shown").stdout
    lines = {line.split()[1]: line for line in picture.splitlines() if line.startswith(("✔", "…"))}
    assert picture.startswith("shown  approved version 1  waiting\n")
    assert "waits for   signal 'approve' (step 'approval'), since " in picture
    assert lines["parcel/pack"].split()[2] == "2" and "✗" in lines["parcel/pack"]
    assert lines["cool-off"].startswith("✔") and "slept" in lines["cool-off"]
    assert lines["approval"].startswith("…")
    status = served.json("run", "show", "shown")
    steps = {step["step_id"]: step for step in status["steps"]}
    assert status["state"] == "waiting" and status["ended_at"] is None and status["started_at"].endswith("Z")
    label = {name: steps["parcel/label"][name] for name in ("step_id", "kind", "state", "attempts", "lost", "next_at")}
    assert label == {"step_id": "parcel/label", "kind": "step", "state": "done", "attempts": 2, "lost": 0, "next_at": None}
    assert steps["parcel/label"]["error"]["type"] == "ConnectionError" and steps["parcel/label"]["worker"]
    assert steps["cool-off"]["kind"] == "sleep" and steps["approval"]["kind"] == "wait"


def test_show_names_the_command_that_moves_the_run(served: Shell) -> None:
    start(served, "approved", "moved")
    waiting_for_approval(served, "moved")
    status = served.json("run", "show", "moved")
    [wait] = status["waits"]
    assert (wait["kind"], wait["step_id"], wait["who"]) == ("wait", "approval", "a person or program that sends the signal")
    assert status["started_at"] < wait["since"] < wait["until"] and status["actions"] == ["cancel", "signal"]
    assert wait["command"] in served("run", "show", "moved").stdout
    _, *words = shlex.split(wait["command"].replace("JSON", "'\"me\"'"))
    served(*words)
    assert served("run", "watch", "moved").stdout.splitlines()[-1].endswith('"by me"')
    assert served.json("run", "show", "moved")["waits"] == []


def test_show_names_a_step_that_runs_with_its_input_where_that_is_recorded(served: Shell) -> None:
    (served.folder / "held.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "import shop\n"
        "client = shop.client\n"
        "def hold(name, *more):\n"
        "    while not Path(name).exists(): time.sleep(0.02)\n"
        "@client.workflow(id='held')\n"
        "async def held(ctx, step):\n"
        "    await step.run('plain', hold, 'first')\n"
        "    await step.run('told', hold, 'second', {'amount': 10}, object(), record_input=True)\n"
    )
    url = ["--url", "sqlite:///held.db"]
    served.start("worker", "held:client", *url)
    served("run", "start", "held", "--run-id", "held", *url)
    until(lambda: served.json("run", "show", "held", *url)["state"] == "running")
    picture = served("run", "show", "held", *url).stdout
    assert (
        "waits for   a step that runs or waits for a slot, since " in picture and "(a first attempt is not in the log" in picture
    )
    (served.folder / "first").touch()
    until(lambda: "the result of attempt 1 of step 'told', since " in served("run", "show", "held", *url).stdout)
    words = " ".join(served("run", "show", "held", *url).stdout.split())
    assert "attempt 1 began at" in words and "(a first attempt is not in the log" not in words
    told = served.json("run", "show", "held", *url)["steps"][-1]
    assert (told["state"], told["input"]) == ("open", ["second", {"amount": 10}, "<object>"])
    assert told["input_note"] == "argument 3 (object) cannot be written"
    assert told["running_since"] is not None and told["worker"] is not None
    (served.folder / "second").touch()
    served("run", "watch", "held", *url)
    assert served.json("run", "show", "held", *url)["steps"][-1]["input"] == told["input"]
    assert 'attempt 1; input ["second"' in on_a_terminal(served, "run", "history", "held", *url, columns=250)
    exported = [orjson.loads(line) for line in served("run", "export", "held", *url).stdout.splitlines()]
    records = [orjson.loads(line["value"]) for line in exported if "value" in line]
    assert [record["input"] for record in records if record["type"] == "attempt-started"] == [told["input"]]


def test_history_gives_the_events_as_they_are_in_the_log(served: Shell) -> None:
    start(served, "order", "told", "--wait", flaky=1)
    events = [orjson.loads(line) for line in served("run", "history", "told", "-o", "jsonl").stdout.splitlines()]
    assert [event["type"] for event in events] == ["started", "step-failed", "step-completed", "completed"]
    assert [event["offset"] for event in events] == sorted(event["offset"] for event in events)
    assert events[1]["error"]["type"] == "ConnectionError" and events[1]["attempt"] == 1
    assert events == served.json("run", "history", "told")
    head, *rows = served("run", "history", "told").stdout.splitlines()
    assert head.split() == ["offset", "time", "(UTC)", "event", "step"]
    assert [row.split()[3] for row in rows] == [event["type"] for event in events]


def test_watch_follows_until_the_end(served: Shell) -> None:
    start(served, "approved", "watched")
    waiting_for_approval(served, "watched")
    watching = served.start("run", "watch", "watched", "-o", "jsonl")
    assert watching.stdout is not None
    seen = [orjson.loads(watching.stdout.readline())["type"]]
    served("run", "signal", "watched", "approve", "--data", '{"by": "ada"}')
    seen += [orjson.loads(line)["type"] for line in watching.stdout]
    assert watching.wait() == 0
    assert seen[0] == "started" and seen[-2:] == ["signal-received", "completed"]
    assert served("run", "watch", "watched").stdout.splitlines()[-1].endswith('''"by {'by': 'ada'}"''')
    assert [event["type"] for event in served.json("run", "watch", "watched")] == seen


def test_watch_stops_at_ctrl_c(served: Shell) -> None:
    start(served, "approved", "left")
    watching = served.start("run", "watch", "left", "-o", "jsonl")
    assert watching.stdout is not None and watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 130
    assert "Traceback" not in watching.stdout.read()


def test_cancel_ends_a_run_and_watch_tells_of_it(served: Shell) -> None:
    start(served, "approved", "stopped")
    waiting_for_approval(served, "stopped")
    served("run", "cancel", "stopped", "--reason", "no more lamps")
    assert "was cancelled: no more lamps" in served("run", "watch", "stopped", code=1).stderr
    assert served.json("run", "show", "stopped")["reason"] == "no more lamps"
    assert "has ended (cancelled)" in served("run", "signal", "stopped", "approve", code=3).stderr


def test_list_filters(served: Shell) -> None:
    start(served, "order", "listed-1", "--wait")
    start(served, "order", "listed-2", "--wait", flaky=1)
    start(served, "refused", "listed-3", "--wait", code=1)

    def ids(*options: str) -> set[str]:
        return {row["run_id"] for row in served.json("run", "list", "--search", "listed-", *options)}

    assert ids() == {"listed-1", "listed-2", "listed-3"}
    assert ids("--workflow", "order") == {"listed-1", "listed-2"}
    assert ids("--state", "failed", "--state", "cancelled") == {"listed-3"}
    assert len(ids("--limit", "1")) == 1
    assert ids("--since", "1h") == ids() and ids("--since", "2999-01-01T00:00Z") == set()
    assert ids("--since", "0001-01-01T00:00+14:00") == ids() and ids("--since", "9999-12-31T23:59:59-14:00") == set()
    rows = served("run", "list", "--search", "listed-2").stdout.splitlines()
    assert len(rows) == 2 and rows[1].split()[:3] == ["listed-2", "order", "completed"]
    assert served("run", "list", "--search", "nowhere").stdout == ""
    assert served.json("run", "list", "--search", "nowhere") == []


def test_an_exported_run_is_verified_and_replayed(served: Shell) -> None:
    start(served, "approved", "kept")
    served("run", "signal", "kept", "approve")
    served("run", "watch", "kept")
    said = served("run", "export", "kept", "--file", "kept.jsonl").stderr
    export = served.folder / "kept.jsonl"
    verified = served.json("run", "verify", "kept.jsonl")
    assert verified["ok"] and verified["head"] in said
    kept = [{**step, "worker": None} for step in served.json("run", "show", "kept")["steps"]]  # its claim is not in the export
    assert [{**step, "worker": None} for step in verified["steps"]] == kept != []
    drawn = served("run", "verify", "-", stdin=served("run", "export", "kept").stdout).stdout
    assert "as they were written" in drawn and "signal 'approve'" in drawn
    assert served.json("run", "replay", "kept.jsonl", "--app", "shop:client")["outcome"] == "agrees"

    lines = export.read_text().splitlines(keepends=True)
    (served.folder / "altered.jsonl").write_text("".join([*lines[:3], lines[3].replace("parcel/", "pocket/"), *lines[4:]]))
    altered = served("run", "verify", "altered.jsonl", code=1)
    assert "line 4 was altered" in altered.stdout and "changed after it was exported" in altered.stderr
    assert "line 4" in served("run", "replay", "altered.jsonl", "--app", "shop:client", code=1).stdout

    shop = (served.folder / "shop.py").read_text()
    (served.folder / "shop_2.py").write_text(shop.replace('step.sleep("cool-off"', 'step.sleep("nap"'))
    line = 1 + next(number for number, text in enumerate(shop.splitlines()) if "cool-off" in text)
    diverged = served("run", "replay", "kept.jsonl", "--app", "shop_2:client", code=1).stdout
    assert f"shop_2.py:{line}    await step.sleep" in diverged
    (served.folder / "empty.py").write_text("import stepfold\nclient = stepfold.Client()\n")
    served("run", "replay", "kept.jsonl", "--app", "empty:client", code=3)


def test_a_projection_is_rebuilt_and_says_how_far_it_is(served: Shell) -> None:
    start(served, "order", "counted", "--wait")
    (served.folder / "tables.py").write_text(
        "import sqlalchemy as sa\n"
        "from stepfold.projections import Projection\n"
        "class Seen(Projection):\n"
        "    name = 'seen'\n"
        "    metadata = sa.MetaData()\n"
        "    rows = sa.Table('seen', metadata, sa.Column('run_id', sa.String(200)), sa.Column('type', sa.String(40)))\n"
        "    def apply(self, connection, event, run):\n"
        "        connection.execute(self.rows.insert().values(run_id=run.id, type=event.type))\n"
    )
    database = f"sqlite:///{served.folder}/other.db"
    assert served.json("projection", "lag", "--database", database) == []
    assert "seen rebuilt" in served("projection", "rebuild", "tables:Seen", "--database", database).stderr
    lags = served.json("projection", "lag", "--database", database)
    assert {lag["projection"] for lag in lags} == {"seen"} and len(lags) == 4
    assert all(lag["position"] <= lag["end"] and lag["behind"] == lag["end"] - lag["position"] for lag in lags)
    assert sum(lag["position"] for lag in lags) > 0
    assert "seen" in served("projection", "lag", "--database", database).stdout


def test_nothing_is_coloured_unless_it_goes_to_a_terminal(served: Shell) -> None:
    start(served, "order", "coloured", "--wait", flaky=1)
    for command in ("show", "history", "watch"):
        piped = served("run", command, "coloured").stdout
        assert "\x1b" not in piped and all(line == line.rstrip() for line in piped.splitlines())
        assert "\x1b[" in on_a_terminal(served, "run", command, "coloured")
    assert on_a_terminal(served, "run", "show", "coloured").count("paid coloured") == 2


def test_a_narrow_terminal_breaks_no_id(served: Shell) -> None:
    run_id = "0123456789abcdef" * 2
    start(served, "order", run_id, "--wait", flaky=1)
    listed = ["run", "list", "--search", run_id]
    assert "completed" in on_a_terminal(served, *listed, columns=50)
    for columns in (32, 50, 80):
        assert run_id in on_a_terminal(served, *listed, columns=columns)
    wide = on_a_terminal(served, "run", "show", run_id, columns=100)
    narrow = on_a_terminal(served, "run", "show", run_id, columns=24)
    assert "attempts" in wide and "pay" in wide and "pay" in narrow and "attempts" not in narrow


def test_an_id_is_no_markup(served: Shell) -> None:
    run_id = "[red]:smile:[/x]"
    start(served, "order", run_id, "--wait")
    assert f"{run_id}  order" in served("run", "list", "--search", run_id).stdout
    assert served("run", "show", run_id).stdout.startswith(f"{run_id}  order")
    assert run_id in served("run", "export", run_id, "--file", "marked.jsonl").stderr


def on_a_terminal(shell: Shell, *arguments: str, columns: int = 80) -> str:
    """What a command prints where stdout and stderr are a terminal; it must succeed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shell.command(*arguments),
        cwd=shell.folder,
        env={**shell.env, "TERM": "xterm-256color", "COLUMNS": str(columns)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 65536):
            printed += part
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return printed.decode()


def test_who_asks_and_why_are_in_the_history(shell: Shell) -> None:
    start(shell, "approved", "named", "--by", "ann", "--why", "a test")
    start(shell, "approved", "unnamed")
    shell("run", "cancel", "named", "--why", "enough", "--by", "ben")
    shown = shell.json("run", "show", "named")
    assert (shown["by"], shown["why"], shown["reason"], shown["cancelled_by"]) == ("ann", "a test", "enough", "ben")
    assert "asked       by ann: a test" in shell("run", "show", "named").stdout
    assert shell.json("run", "show", "unnamed")["by"].endswith(f"@{socket.gethostname()}")
    assert "by ben" in shell("run", "history", "named").stdout
    refused = shell("run", "signal", "unnamed", "go", "--by", "", code=2)
    assert "is not the name of who asks" in refused.stderr
