"""`stepfold run query`: the answer of a query of a run's code, by a replay in the command's process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell import Shell, shell_in

APP = """
from stepfold import Client, Context, Step

client = Client()


@client.workflow(id="import")
async def rows(ctx: Context[int], step: Step) -> int:
    print("the code runs")
    ctx.state.done = []
    for row in range(ctx.input.data):
        ctx.state.done.append(await step.run("load", int, row))
    return len(ctx.state.done)


@rows.query
async def done(ctx: Context[int], above: float = -1, *, limit: int = 10) -> list[int]:
    return [row for row in ctx.state.done if row > above][:limit]


@rows.query
async def fails(ctx: Context[int]) -> None:
    raise ValueError("no")
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with shell_in(tmp_path_factory.mktemp("importing")) as shell:
        (shell.folder / "importing.py").write_text(APP)
        (shell.folder / "other.py").write_text("from stepfold import Client\n\nclient = Client()\n")
        worker = shell.start("worker", "importing:client")
        shell("run", "start", "import", "--data", "4", "--run-id", "i1", "--wait")
        worker.terminate()
        worker.wait()
        yield shell


def test_the_answer_is_json_on_stdout_and_the_code_prints_elsewhere(shell: Shell) -> None:
    answered = shell("run", "query", "i1", "done", "--app", "importing:client")
    assert answered.stdout == "[0,1,2,3]\n" and "the code runs" in answered.stderr


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("[1]", "[2,3]"),
        ('{"above": 0, "limit": 2}', "[1,2]"),
        ("[]", "[0,1,2,3]"),
        ("@above.json", "[3]"),
    ],
)
def test_arguments_are_a_list_or_an_object_by_name(shell: Shell, arguments: str, answer: str) -> None:
    (shell.folder / "above.json").write_text("[2]")
    assert shell("run", "query", "i1", "done", arguments, "-a", "importing:client").stdout == f"{answer}\n"


def test_the_run_as_it_was(shell: Shell) -> None:
    offsets = [one["offset"] for one in shell.json("run", "history", "i1") if one["type"] == "step-completed"]
    answered = shell("run", "query", "i1", "done", "--until", str(offsets[1]), "-a", "importing:client")
    assert answered.stdout == "[0,1]\n"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("nobody", "done"), 3, "no run 'nobody'"),
        (("i1", "dnoe"), 3, "has no query 'dnoe'; it has: done, fails"),
        (("i1", "done", "5"), 2, "ARGUMENTS must be a JSON list"),
        (("i1", "done", "[1"), 2, "ARGUMENTS is not JSON"),
        (("i1", "done", '["x"]'), 2, "argument 'above' of query 'done' of workflow 'import' is not valid"),
        (("i1", "done", '{"belwo": 1}'), 2, "unexpected keyword argument 'belwo'"),
        (("i1", "fails"), 1, "query 'fails' of run 'i1' failed: ValueError: no (at importing.py:"),
        (("i1", "done", "--app", "other:client"), 3, "import the module that registers it"),
    ],
)
def test_mistakes(shell: Shell, command: tuple[str, ...], code: int, words: str) -> None:
    app = () if "--app" in command else ("--app", "importing:client")
    answered = shell("run", "query", *command, *app, code=code)
    assert words in " ".join(answered.stderr.split()) and answered.stdout == ""


def test_an_app_must_be_named(shell: Shell) -> None:
    assert "--app" in shell("run", "query", "i1", "done", code=2).stderr
