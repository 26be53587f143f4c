"""`stepfold callback …`: answer a callback by its id."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from ..client.client import Client
from ..client.tail import read_run
from ..client.view import RunHistory
from ..operations.callback import CallbackId
from .output import local, remark, zone
from .problems import Exit, Problem
from .run import Data, json_of
from .target import AppOption, By, UrlOption, Why, asker, client_of, connected, run_async

app = typer.Typer(no_args_is_help=True, help="Answer callbacks by their ids, or send them heartbeats.")

_OVER = {
    "done": "it was answered {}",
    "failed": "it was answered {}, with a failure",
    "timed out": "it timed out {}",
}

Id = Annotated[str, typer.Argument(metavar="ID", help="The id that the workflow's code has handed out.", show_default=False)]


@app.command()
def complete(id: Id, data: Data = None, by: By = None, why: Why = None, app: AppOption = None, url: UrlOption = None) -> None:
    """Answer a callback. Ends with 1 if the answer does not count: the callback is over, or never had this id."""
    value = json_of(data)
    _answer(id, app, url, lambda client: client.complete_callback(id, value, by=asker(by), why=why), "the answer to")


@app.command()
def fail(
    id: Id,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="Why it has failed.", show_default=False)],
    type: Annotated[str, typer.Option("--type", metavar="TEXT", help="The type of the error.")] = "CallbackFailed",
    by: By = None,
    why: Why = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Say that a callback has failed: its `await` raises CallbackFailed. Ends with 1 if that does not count."""
    _answer(id, app, url, lambda client: client.fail_callback(id, message, type, by=asker(by), why=why), "the failure of")


@app.command()
def heartbeat(id: Id, by: By = None, why: Why = None, app: AppOption = None, url: UrlOption = None) -> None:
    """Say that somebody still works on the answer. Ends with 1 if nobody waits for it any more."""
    _answer(id, app, url, lambda client: client.heartbeat_callback(id, by=asker(by), why=why), "the heartbeat of")


def _answer(id: str, app: str | None, url: str | None, send: Callable[[Client], Coroutine[Any, Any, bool]], what: str) -> None:
    callback = CallbackId.parse(id)
    client = client_of(app, url)
    sent = f"{what} callback {callback.step_id!r}"

    async def go() -> None:
        async with connected(client):
            try:
                counts = await send(client)
            except ValueError as error:
                raise Problem(str(error)) from None
            if not counts:
                reason = _reason(await read_run(client.log, callback.run_id), callback)
                raise Problem(f"{sent} of run {callback.run_id!r} does not count: {reason}", Exit.NO)
        remark(f"{sent} is in the history of {callback.run_id}")

    run_async(go())


def _reason(history: RunHistory, callback: CallbackId) -> str:
    """Why an answer to this callback does not count."""
    line = next((line for line in history.story() if line.step_id == callback.step_id), None)
    if line is None or all(getattr(event, "nonce", None) != callback.nonce for event in history.events):
        return "it never had this id"
    at_ms, _ = line.points[-1]
    return _OVER.get(line.became, "the code no longer waits for it").format(f"at {local(at_ms)} {zone()}")
