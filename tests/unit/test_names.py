"""One rule for the ids of runs, steps, signals, workflows, versions and scopes, on every Python."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stepfold import Client, Context, Step
from stepfold.authoring.workflow import Workflow
from stepfold.client.requests import cancel_requested, signal_received, started
from stepfold.values.names import printable, valid_name, valid_run_id

GOOD = [
    "a",
    "a b",
    "ключ",
    "x" * 200,
    "family \U0001f468\u200d\U0001f469",
    "no\u00a0break",
    "\U000e0100",
    "\u0378 unassigned",
    "\ue000",
]
BAD = ["", "x" * 201, "a\nb", "\x00", "\x7f", "a\x85b", "\u2028", "\u2029", "\ud800", "\x1b[31m"]


async def nothing(ctx: Context[Any], step: Step) -> None:
    """A workflow."""


def uses(name: Any) -> list[Any]:
    """Everything that takes a name."""
    return [
        lambda: started(name, "w", "1", b"1", request="q", at=1),
        lambda: started("r", name, "1", b"1", request="q", at=1),
        lambda: started("r", "w", name, b"1", request="q", at=1),
        lambda: signal_received("r", name, b"1", request="q", at=1),
        lambda: signal_received(name, "s", b"1", request="q", at=1),
        lambda: cancel_requested(name, None, request="q", at=1),
        lambda: Workflow(nothing, name, "1"),
        lambda: Workflow(nothing, "w", name),
    ]


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_what_may_be_a_name_may_be_one_everywhere(name: str) -> None:
    assert valid_name(name) and valid_run_id(name) and printable(name) == name
    for use in uses(name):
        use()


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_may_not_be_a_name_is_one_nowhere(name: str) -> None:
    assert not valid_name(name) and not valid_run_id(name)
    for use in uses(name):
        with pytest.raises(Exception, match="printable characters"):
            use()


@pytest.mark.parametrize("name", [*GOOD, *BAD], ids=ascii)
async def test_steps_scopes_and_signals_go_by_the_same_rule(name: str) -> None:
    client = Client("memory://")
    refused: list[str] = []

    @client.workflow(id="w")
    async def w(ctx: Context[None], step: Step) -> None:
        async def scope() -> None:
            async with step.scope(name):
                pass

        for use in (lambda: step.run(name, str), scope, lambda: step.wait_for_signal("wait", signal=name, timeout=0)):
            try:
                await use()
            except ValueError as error:
                refused.append(str(error))

    async with client, client.worker(), asyncio.timeout(20):
        await (await client.start_workflow(w)).result()
    assert len(refused) == (3 if name in BAD else 0), refused


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_what_is_no_text_is_no_name(name: Any) -> None:
    assert not valid_name(name)


def test_of_a_text_what_is_printable_can_be_a_name() -> None:
    assert printable("a\n\u200db\x1b[31mc") == "a\u200db[31mc"
