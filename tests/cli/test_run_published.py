"""`stepfold run published`, and `run watch` with values that a run publishes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell import Shell, shell_in

APP = """
from stepfold import Client, Context, Step

client = Client()


@client.workflow(id="import")
async def rows(ctx: Context[int], step: Step) -> int:
    for done in range(1, ctx.input.data + 1):
        await step.publish("progress", {"done": done, "of": ctx.input.data})
    await step.publish("state", "ready")
    return ctx.input.data


@client.workflow(id="silent")
async def silent(ctx: Context[int], step: Step) -> None:
    pass
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with shell_in(tmp_path_factory.mktemp("importing")) as shell:
        (shell.folder / "importing.py").write_text(APP)
        shell.start("worker", "importing:client")
        shell("run", "start", "import", "--data", "3", "--run-id", "i1", "--wait")
        shell("run", "start", "silent", "--data", "0", "--run-id", "s1", "--wait")
        yield shell


def test_the_last_values_of_a_run(shell: Shell) -> None:
    found = shell.json("run", "published", "i1")
    assert [(one["key"], one["value"], one["seq"]) for one in found] == [
        ("progress", {"done": 3, "of": 3}, 3),
        ("state", "ready", 1),
    ]
    assert all(one["at"].endswith("Z") for one in found)
    shown = shell("run", "published", "i1").stdout
    assert '{"done":3,"of":3}' in shown and "ready" in shown and "ago" in shown
    assert "run s1 has published nothing" in shell("run", "published", "s1").stderr


def test_one_value_is_printed_as_json(shell: Shell) -> None:
    assert shell("run", "published", "i1", "state").stdout == '"ready"\n'
    assert shell("run", "published", "i1", "progress").stdout == '{"done":3,"of":3}\n'
    assert "run i1 has published nothing under 'other'" in shell("run", "published", "i1", "other", code=3).stderr
    assert "no run 'nobody'" in shell("run", "published", "nobody", code=3).stderr


def test_a_watcher_sees_each_value(shell: Shell) -> None:
    watched = shell("run", "watch", "i1").stdout
    assert [f'progress: {{"done":{done},"of":3}}' in watched for done in (1, 2, 3)] == [True] * 3
    assert 'state: "ready"' in watched
