"""Whatever is typed ends with a documented exit code and a line that says why: never with what is not in the error tree."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shell import shell_in

import stepfold.cli.app
from stepfold import Client, ConfigError, StepfoldError
from stepfold.cli.problems import Problem
from stepfold.cli.run import json_of
from stepfold.cli.selecting import time_of
from stepfold.cli.target import load
from stepfold.drivers import open_driver
from stepfold.events import encode
from stepfold.log import Entry, partition_of

CODES = {0, 1, 2, 3, 4}

ODD_TEXTS = [
    "", " ", "-", "--", "@", "@/", "@.", "@nothing", ":", "::", ".", "..", "/", "\\", "%", "%s", "{}", "[red]", "[/]", "null",
    "0", "-1", "1e999", "NaN", "9" * 400, "x" * 5000, "\n", "\t", "a\nb", "\x1b[2J", "\u202e", "\u2028", "\ufeff", "ß", "世界",
    "\U0001f600", "\udcff", "@claim", "r1", "sqlite:///x.db", "'; DROP TABLE history; --",
]  # fmt: skip
URLS = [
    "sqlite://", "sqlite:///", "sqlite:////", "sqlite:///.", "sqlite:///..", "sqlite:///?", "sqlite:///a.db?partitions=0",
    "sqlite:///a.db?partitions=x", "sqlite:///a.db?partitions=99999999999999999999", "sqlite:///a.db?durability=", "sqlite:///a.db#x",
    "sqlite:///a%00b.db", "sqlite:///%ff.db", "sqlite:///shop.py", "sqlite:///folder", "sqlite:////dev/null",
    "sqlite:///" + "n" * 300,
    "sqlite://host/a.db", "SQLITE:///a.db", "kafka://", "kafka:///", "kafka://h", "kafka://h:1", "kafka://h:1/", "kafka://h:1/.",
    "kafka://h:1/..", "kafka://h:0/ns", "kafka://h:99999/ns", "kafka://:1/ns", "kafka://[::1/ns", "kafka://[::1]:x/ns",
    "kafka://u:p@h:1/ns", "kafka://h:1/n s", "kafka://h:1/" + "n" * 300, "kafka://h:1/ns?session_timeout_s=x",
    "kafka://h:1/ns?session_timeout_s=nan", "kafka://h:1/ns?nothing=1", "kafka://h:1/ns?security=", "memory://", "memory://a", "http://h",
    "://", "sqlite", "sqlite:", "kafka://h:1/é",
]  # fmt: skip
MODULES = {
    "raises": "raise RuntimeError('\\x1b[2J')",
    "exits": "import sys; sys.exit('bye')",
    "exits_0": "raise SystemExit(0)",
    "interrupts": "class Stop(BaseException): pass\nraise Stop",
    "generator_exit": "raise GeneratorExit",
    "unshowable": "class E(Exception):\n    def __str__(self): raise ValueError\n    __repr__ = __str__\nraise E",
    "unshowable_base": "class E(BaseException):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
    "no_traceback": "class E(Exception):\n    __traceback__ = property(lambda self: 1 / 0)\nraise E",
    "syntax": "client = = 1",
    "odd_syntax": "raise SyntaxError('x', ('f', 'not a number', None, object()))",
    "group": "raise ExceptionGroup('g', [ValueError(1), ValueError(2)])",
    "deep": "def f(): f()\nf()",
    "no_module": "import sys\nsys.modules[__name__] = 42",
    "hostile_getattr": "def __getattr__(name): raise RuntimeError(name)",
    "hostile_class": "class C:\n    @property\n    def __class__(self): raise RuntimeError\nclient = C()",
    "other": "client = 42",
    "none": "client = None",
    "awaits": "async def client(): pass",
    "factory_raises": "def client(): raise ValueError('no')",
    "factory_wants": "def client(one): pass",
    "factory_gives": "def client(): return 42",
    "prints": "print('not data')\nimport stepfold\nclient = stepfold.Client('sqlite:///none.db')",
    "bad_url": "import stepfold\nclient = stepfold.Client('nonsense')",
    "recursive": "import recursive\nclient = recursive.nothing",
    "needs": "import not_there",
    "encoding": "# coding: no-such-encoding\n",
    "memory": "import stepfold\nclient = stepfold.Client('memory://')",
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with shell_in(tmp_path_factory.mktemp("fuzz")) as shell:
        for name, text in MODULES.items():
            (shell.folder / f"{name}.py").write_text(text)
        (shell.folder / "latin.py").write_bytes(b"client = '\xff'\n")
        (shell.folder / "nul.py").write_bytes(b"client = 1\0\n")
        (shell.folder / "package").mkdir()
        (shell.folder / "folder").mkdir()
        (shell.folder / "not_json").write_bytes(b"\xff{")
        (shell.folder / "deep.json").write_text("[" * 3000 + "]" * 3000)
        before, path = Path.cwd(), list(sys.path)
        os.chdir(shell.folder)
        yield shell.folder
        os.chdir(before)
        sys.path[:] = path
        for name in (*MODULES, "latin", "nul", "package", "shop"):
            sys.modules.pop(name, None)


def typed(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `stepfold` with these arguments, in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["stepfold", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.delenv("STEPFOLD_URL", raising=False)
        with pytest.raises(SystemExit) as end:
            stepfold.cli.app.command()
    texts: list[str] = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    code = end.value.code
    assert isinstance(code, int)
    return code, texts[0], texts[1]


def check(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    code, out, err = typed(*arguments, stdin=stdin)
    assert code in CODES, f"{arguments} ended with {code}\n{out}\n{err}"
    assert "Traceback" not in err and not set(out + err) & set("\x1b\u202e\u2028\ufeff\x07"), err
    assert code in (0, 1) or err.splitlines()[-1].startswith("stepfold: "), err
    return code, err


@pytest.mark.parametrize("module", [*MODULES, "latin", "nul", "package", "folder", "not_there", "shop"])
def test_whatever_an_app_is_made_of_is_told_in_one_line(module: str) -> None:
    code, err = check("run", "list", "--app", f"{module}:client", "--database", "sqlite://")
    assert code in ((4,) if module in ("prints", "shop") else (2,))
    assert len([line for line in err.splitlines() if line.startswith("stepfold: ")]) == 1


def test_what_an_app_prints_is_no_data() -> None:
    _, out, err = typed("topics", "describe", "--schema", "--app", "prints:client")
    assert "not data" not in out
    _, out, err = typed("run", "start", "x", "--app", "prints:client")
    assert "not data" not in out and "no workflow 'x'" in err


@pytest.mark.parametrize("url", URLS)
def test_whatever_a_url_is_made_of_is_a_log_or_a_config_error(url: str) -> None:
    with contextlib.suppress(ConfigError):
        assert open_driver(url).name
    if not url.startswith("kafka://"):
        check("run", "show", "r1", "--url", url)
        check("run", "list", "--url", url, "--database", "sqlite:///of_fuzz.db")


@given(st.sampled_from(["", "sqlite://", "sqlite:///", "kafka://", "kafka://h:1/", "kafka://h:1/ns?", "memory://"]), st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_behind_a_scheme_is_a_log_or_a_config_error(scheme: str, rest: str) -> None:
    with contextlib.suppress(ConfigError):
        Client(scheme + rest)


@given(st.text() | st.sampled_from(ODD_TEXTS), st.text() | st.sampled_from(ODD_TEXTS))
@settings(max_examples=200, deadline=None)
def test_any_app_is_a_client_or_a_problem(module: str, name: str) -> None:
    for app in (module, f"{module}:{name}", f"shop:{name}"):
        with contextlib.suppress(Problem):
            load(app)


@given(st.text() | st.sampled_from(ODD_TEXTS))
@settings(max_examples=200, deadline=None)
def test_any_data_and_time_is_a_value_or_a_problem(text: str) -> None:
    with contextlib.suppress(Problem, StepfoldError):
        json_of(text if text != "-" else "")
    with contextlib.suppress(Problem, StepfoldError):
        time_of(text, 1_700_000_000_000)


COMMANDS = [
    ["run", "start", "WORKFLOW", "--data", "TEXT", "--run-id", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "start", "TEXT", "--app", "shop:client", "--url", "sqlite:///f.db"],
    ["run", "list", "--search", "TEXT", "--workflow", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "list", "--since", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "list", "--state", "TEXT"],
    ["run", "list", "--database", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "show", "TEXT", "--limit", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "show", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "history", "TEXT", "--url", "sqlite:///f.db", "-o", "TEXT"],
    ["run", "signal", "r1", "TEXT", "--data", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "cancel", "r1", "--why", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "export", "r1", "--file", "TEXT", "--url", "sqlite:///f.db"],
    ["run", "verify", "TEXT"],
    ["run", "replay", "TEXT", "--app", "shop:client"],
    ["projection", "rebuild", "TEXT", "--database", "sqlite:///p.db", "--url", "sqlite:///f.db"],
    ["projection", "lag", "TEXT", "--database", "sqlite:///p.db", "--url", "sqlite:///f.db"],
    ["topics", "create", "-p", "TEXT", "-r", "TEXT", "--url", "TEXT"],
    ["topics", "check", "--url", "TEXT"],
    ["inbox", "redrive", "TEXT", "--url", "TEXT"],
    ["worker", "TEXT"],
    ["worker", "shop:client", "--grace", "TEXT", "--url", "memory://"],
    ["dev", "TEXT"],
    ["TEXT", "TEXT"],
    ["run", "TEXT", "--TEXT"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("part", range(4))
def test_whatever_is_typed_ends_with_a_documented_exit_code(command: list[str], part: int) -> None:
    check("run", "start", "order", "--run-id", "r1", "--url", "sqlite:///f.db")
    for text in ODD_TEXTS[part::4]:
        if text == "--" and command[0] == "TEXT":
            continue  # ends the options: the next one is a command
        check(*(part.replace("TEXT", text) for part in command), stdin=b"\xff")


def test_files_of_any_kind_are_data_or_a_problem(folder: Path) -> None:
    check("run", "start", "order", "--run-id", "r1", "--url", "sqlite:///f.db")
    for data in ("@folder", "@not_json", "@deep.json", "@/dev/null", "@/dev/zero", "@/proc/self/mem"):
        code, err = check("run", "start", "order", "--data", data, "--url", "sqlite:///f.db")
        assert code == 2 and data.removeprefix("@") in err
    for file in ("folder", "not_json", "deep.json", "/dev/null", "/proc/self/mem"):
        check("run", "verify", file)
        check("run", "replay", file, "--app", "shop:client")
    code, err = check("run", "export", "r1", "--file", "folder", "--url", "sqlite:///f.db")
    assert code == 4 and "folder" in err


NUMBERS = [0, 1, -1, 10**9, 2**31, 2**53, 253_402_300_800_000, 2**63 - 1, 2**64 - 1, -(2**63), -62_135_596_800_001]
VALUES: list[Any] = [None, True, 1e300, -0.0, "\x1b]0;x\x07\u202e", "n" * 3000, {"\x1b[2J": ["\u2028"]}, [[[[]]]], 2**64 - 1]


QUARANTINE = {"type": "quarantined", "error": {"type": "\x1b[2J", "message": "\u202e", "traceback": "\n\n\x1b[2J\t"}}


def odd_records(run_id: str, claim: int) -> Iterator[dict[str, Any]]:
    """Events of one run, well-formed and accepted or not, that hold what nobody expects."""
    texts = [text for text in ODD_TEXTS if text.isprintable() or text.isascii()]
    yield {"type": "signal-received", "request": "early", "signal": "x", "data": "comes before its run"}
    yield {"type": "started", "request": "r", "workflow": "\x1b[2Jw\u202e", "input": VALUES}
    for number, at in enumerate(NUMBERS * 2):
        step = {"claim": claim, "at": at, "step_id": f"{texts[number]}{number}\x1b[2J\u202e"}
        value = VALUES[number % len(VALUES)]
        error = {"type": texts[number], "message": "\x1b[2J\n✔", "traceback": "a\n\x1b[2J\u2028", "more": value, "model_dump": 1}
        times = {"queued_at": NUMBERS[number % 5], "began_at": at, "at_line": texts[number]}
        yield {**step, "type": "step-heartbeat", "attempt": 1, "details": value}
        yield {
            **step,
            "type": "step-failed",
            "attempt": 1,
            "error": error,
            "next_at": at,
            "heartbeat": value,
            "offset": "x",
            **times,
        }
        given = {"input": [value] if number % 2 else value, "input_note": texts[number]}
        yield {**step, "type": "attempt-started", "attempt": 2, **given}
        yield {**step, "type": "attempt-lost", "attempt": 2}
        yield {**step, "type": "step-completed", "attempt": 3, "result": value, **times} if number % 2 else {"type": "nothing"}
        yield {**step, "type": "sleep-scheduled", "step_id": f"sleep{number}", "wake_at": at}
        yield {**step, "type": "sleep-completed", "step_id": f"sleep{number}"}
        yield {**step, "type": "wait-started", "step_id": f"wait{number}", "signal": texts[number], "timeout_at": at}
        yield {**step, "type": "wait-timed-out", "step_id": f"wait{number}"}
        yield {
            "type": "signal-received",
            "request": f"s{number}",
            "signal": texts[number],
            "data": value,
            "by": texts[number],
            "why": value,
        }
    yield {"type": "cancel-requested", "request": "c", "reason": "\x1b[2J\u202e", "by": "\x1b[2J\u202e"}


async def write(url: str, run_id: str, end: dict[str, Any] | None) -> None:
    async with Client(url) as client:
        log = client.log
        partition = partition_of(run_id, log.partitions)
        [ack] = await log.append(
            partition,
            [Entry("@claim", encode({"type": "claim", "v": 2, "at": 0, "prev": -1, "owner": "\x1b[2Jme\u202e", "nonce": "n"}))],
        )
        for fields in (*odd_records(run_id, ack.offset), {**(end or QUARANTINE), "claim": ack.offset}):
            await log.append(partition, [Entry(run_id, encode({"v": 1, "at": 2**63 - 1, "run_id": run_id, **fields}))])


@pytest.mark.parametrize("end", [None, "completed", "failed", "cancelled"])
def test_whatever_a_log_holds_is_shown(end: str | None) -> None:
    run_id, url = f"odd-{end}", f"sqlite:///odd-{end}.db"
    error = {"type": "\x1b[2J", "message": "\u202e"}
    ends = {"completed": {"result": VALUES}, "failed": {"error": error}, "cancelled": {}}
    asyncio.run(write(url, run_id, {"type": end, **ends[end]} if end else None))
    for form in ("table", "json", "jsonl"):
        for command in (["show", run_id], ["show", run_id, "-n", "1000"], ["history", run_id], ["list"]):
            code, err = check("run", *command, "--url", url, "-o", form)
            assert code == 0, err
    told = orjson.loads(typed("run", "history", run_id, "--url", url, "-o", "json")[1])
    assert [event["type"] for event in told[:2]] == ["signal-received", "started"] and len(told) > 100
    assert check("run", "export", run_id, "--url", url, "--file", "odd.jsonl")[0] == 0
    assert check("run", "verify", "odd.jsonl")[0] == 0
    assert check("run", "replay", "odd.jsonl", "--app", "shop:client")[0] == 3
    if end:
        assert check("run", "watch", run_id, "--url", url)[0] == (0 if end == "completed" else 1)
