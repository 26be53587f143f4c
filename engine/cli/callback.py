"""`stepfold callback …`: answer a callback by its id."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from ..client.client import Client
from ..operations.callback import CallbackId
from .output import remark
from .problems import Exit, Problem
from .run import Data, json_of
from .target import AppOption, UrlOption, client_of, connected, run_async

app = typer.Typer(no_args_is_help=True, help="Answer callbacks by their ids, or send them heartbeats.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The id that the workflow's code has handed out.", show_default=False)]


@app.command()
def complete(id: Id, data: Data = None, app: AppOption = None, url: UrlOption = None) -> None:
    """Answer a callback. Ends with 1 if the answer does not count: the callback is over, or never had this id."""
    value = json_of(data)
    _answer(id, app, url, lambda client: client.complete_callback(id, value), "the answer")


@app.command()
def fail(
    id: Id,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="Why it has failed.", show_default=False)],
    type: Annotated[str, typer.Option("--type", metavar="TEXT", help="The type of the error.")] = "CallbackFailed",
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Say that a callback has failed: its `await` raises CallbackFailed. Ends with 1 if that does not count."""
    _answer(id, app, url, lambda client: client.fail_callback(id, message, type), "the failure")


@app.command()
def heartbeat(id: Id, app: AppOption = None, url: UrlOption = None) -> None:
    """Say that somebody still works on the answer. Ends with 1 if nobody waits for it any more."""
    _answer(id, app, url, lambda client: client.heartbeat_callback(id), "the heartbeat")


def _answer(id: str, app: str | None, url: str | None, send: Callable[[Client], Coroutine[Any, Any, bool]], what: str) -> None:
    callback = CallbackId.parse(id)
    client = client_of(app, url)

    async def go() -> None:
        async with connected(client):
            try:
                counts = await send(client)
            except ValueError as error:
                raise Problem(str(error)) from None
        if not counts:
            reason = f"callback {callback.step_id!r} of run {callback.run_id!r} is over, or never had this id"
            raise Problem(f"{what} does not count: {reason}", Exit.NO)
        remark(f"{what} is in the history of {callback.run_id}")

    run_async(go())
