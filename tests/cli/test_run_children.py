"""`stepfold run children`, and `run show` of a child."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell import Shell, shell_in

APP = """
from stepfold import Client, Context, Step

client = Client()


@client.workflow(id="ship")
async def ship(ctx: Context[int], step: Step) -> int:
    return ctx.input.data * 2


@client.workflow(id="mail")
async def mail(ctx: Context[str], step: Step) -> None:
    pass


@client.workflow(id="order")
async def order(ctx: Context[int], step: Step) -> int:
    total = await step.invoke_workflow("ship", ship, ctx.input.data)
    await step.start_workflow("mail", mail, "shipped", run_id="mail-1")
    return total
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with shell_in(tmp_path_factory.mktemp("shipping")) as shell:
        (shell.folder / "shipping.py").write_text(APP)
        shell.start("worker", "shipping:client")
        shell("run", "start", "order", "--data", "3", "--run-id", "o1", "--wait")
        shell("run", "watch", "mail-1")
        yield shell


def test_the_children_of_a_run(shell: Shell) -> None:
    [shipped, mailed] = shell.json("run", "children", "o1")
    assert shipped.pop("id").startswith("o1/ship~")
    assert shipped == {"workflow": "ship", "step_id": "ship", "state": "completed", "detached": False}
    assert mailed == {"id": "mail-1", "workflow": "mail", "step_id": "mail", "state": "detached", "detached": True}
    shown = shell("run", "children", "o1").stdout
    assert "o1/ship~" in shown and "completed" in shown and "mail-1" in shown and "detached" in shown
    assert "run mail-1 has started no runs" in shell("run", "children", "mail-1").stderr
    assert "no run 'nobody'" in shell("run", "children", "nobody", code=3).stderr


def test_a_child_shows_its_parent(shell: Shell) -> None:
    child = shell.json("run", "children", "o1")[0]["id"]
    assert "o1 (step ship)" in shell("run", "show", child).stdout
    assert "o1 (step mail, detached)" in shell("run", "show", "mail-1").stdout
    status = shell.json("run", "show", child)
    assert (status["parent"], status["parent_step"]) == ("o1", "ship")
    parent = shell.json("run", "show", "o1")
    assert (parent["parent"], parent["parent_step"]) == (None, None)
    assert [step["child"] for step in parent["steps"]] == [child, "mail-1"]
