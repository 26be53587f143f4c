"""`stepfold worker`: execute an app's workflows until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from ..client import Client
from ..duration import duration_ms
from ..errors import ConfigError
from .output import remark
from .problems import Exit, Problem
from .target import App, UrlOption, check_reachable, client_of


def worker(
    app: App,
    url: UrlOption = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="Steps at a time.")] = 100,
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="Told to stop, wait so long for running steps.")
    ] = "10s",
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when stdin closes.")] = False,
) -> None:
    """Execute the workflows of APP until Ctrl-C or SIGTERM.

    Start as many as you like, on any machine that reaches the log: they share its partitions.
    """
    try:
        duration_ms(grace)
    except ValueError as error:
        raise Problem(f"--grace: {error}") from None
    client = client_of(app, url)
    check_reachable(client, may_create=True)
    if not list(client.registry):
        raise Problem(f"{app} has no workflows to execute: register one with @client.workflow(id=...)")
    if with_parent:
        end_with_stdin()
    log_to_stderr()
    remark(f"worker {os.getpid()} on {client.log.name}: {workflows_of(client)}")
    try:
        client.run_worker(concurrency=concurrency, grace=grace)
    except ConfigError as error:
        raise Problem(str(error), Exit.LOG) from None


def workflows_of(client: Client) -> str:
    """The registered workflows, for people."""
    return ", ".join(f"{workflow.id} (version {workflow.version})" for workflow in client.registry)


def end_with_stdin() -> None:
    """Stop in good order when whoever started this process has gone, however it went: its end of our stdin closes then."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="stepfold-parent").start()


class _RunFormatter(logging.Formatter):
    """Adds run and step, where a record has them and does not name them."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        names = [str(getattr(record, name, "")) for name in ("run_id", "step_id")]
        missing = [name for name in names if name and name not in text]
        return f"{text} [{' '.join(missing)}]" if missing else text


def log_to_stderr() -> None:
    """Show log records, unless the app has its own way of logging."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RunFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    root.addHandler(handler)
    logging.getLogger("stepfold").setLevel(logging.INFO)
