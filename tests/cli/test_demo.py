"""`stepfold demo` as it is: it ends by itself, everything it promises held, and nothing stays behind."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
from shell import Shell, processes_of, until

HELD = [
    "✔ the run completed",
    "✔ every step did its work once",
    "✔ none of the 4 steps that had finished before the kill ran again",
    "✔ the history records every attempt that began, including the one that died",
    "✔ parcel/pack began in process",
    "✔ exported ",
    "✔ replaying the exported history gives the same steps and the same result",
]
EVENTS = [
    *("started", "step-completed", "step-failed", "step-completed", "sleep-scheduled", "sleep-completed", "wait-started"),
    *("signal-received", "step-completed", "step-completed", "attempt-lost", "step-completed", "step-completed", "completed"),
]


def left_behind(stage: Shell) -> list[str]:
    """Files and processes of a demo whose temporary files are in the shell's folder."""
    return processes_of(stage.folder) + [str(path) for path in stage.folder.glob("stepfold-*")]


@pytest.fixture
def stage(shell: Shell) -> Shell:
    shell.env["TMPDIR"] = str(shell.folder)
    return shell


def test_the_demo_holds_what_it_promises(stage: Shell) -> None:
    done = stage("demo")
    lines = done.stdout.splitlines()
    verdicts = [line for line in lines if line.startswith(("✔", "✗"))][-len(HELD) :]
    assert [line[: len(held)] for line, held in zip(verdicts, HELD, strict=False)] == HELD, done.stdout + done.stderr
    assert "records, chained by SHA-256" in verdicts[5]  # how many: each owner in between is one more
    assert sum("kill -9" in line for line in lines) == 1
    history = lines[lines.index("The history, as any program can read it") + 2 :][: len(EVENTS)]
    assert [line.split()[3] for line in history] == EVENTS
    assert left_behind(stage) == []


def test_the_demo_in_the_browser(stage: Shell) -> None:
    demo = stage.start("demo", "--dashboard")
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line)
        if "the dashboard stays until Ctrl-C: " in line:
            break
    url = lines[-1].partition("Ctrl-C: ")[2].strip()
    assert f"dashboard {url} (" in "".join(lines), lines
    verdicts = [line for line in lines if line.startswith(("✔", "✗"))][-len(HELD) :]
    assert [line[: len(held)] for line, held in zip(verdicts, HELD, strict=False)] == HELD
    page = httpx.get(url)
    assert (page.status_code, "state completed" in page.text, "parcel/pack" in page.text) == (200, True, True)
    assert 'name="/input/order_id"' in httpx.get(f"{url.partition('/runs/')[0]}/start?workflow=order").text
    demo.send_signal(signal.SIGINT)
    demo.stdout.read()
    assert demo.wait() == 130
    assert left_behind(stage) == []


@pytest.mark.kafka
def test_the_demo_on_kafka(stage: Shell) -> None:
    lines = stage("demo", "--kafka").stdout.splitlines()
    assert any("a plain Kafka producer, without stepfold, wrote a start to demo.inbox" in line for line in lines)
    assert not [line for line in lines if line.startswith("✗")]
    for held in HELD[:5]:
        assert any(line.startswith(held) for line in lines), held
    assert left_behind(stage) == []


def test_the_producer_of_the_demo_knows_nothing_of_stepfold() -> None:
    from stepfold.cli import demo_producer

    lines = Path(demo_producer.__file__).read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["import asyncio", "import sys", "from aiokafka import AIOKafkaProducer"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_takes_everything_along(stage: Shell, number: signal.Signals) -> None:
    demo = stage.start("demo")
    assert demo.stdout is not None
    next(line for line in demo.stdout if "step-completed    reserve" in line)
    demo.send_signal(number)
    assert "Traceback" not in demo.stdout.read()
    assert demo.wait() == 130
    assert left_behind(stage) == []


def test_a_demo_that_is_killed_takes_its_workers_along(stage: Shell) -> None:
    demo = stage.start("demo")
    assert demo.stdout is not None
    next(line for line in demo.stdout if "step-completed    reserve" in line)
    assert len(processes_of(stage.folder)) == 2
    demo.kill()
    until(lambda: not processes_of(stage.folder))
