"""`stepfold worker`: execute an app's workflows until told to stop."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..client.client import Client
from ..errors import ConfigError
from ..values.duration import duration_ms
from ..values.text import shown
from ..worker import eventloop
from ..worker.serving import LoopEnded, serve
from ..worker.stopping import end_process, end_process_soon
from ..worker.worker import Worker
from .output import complain, remark
from .problems import Exit, Problem
from .processes import keep_running, name_of
from .target import App, UrlOption, check_reachable, client_of, run_async

LOOK_S = 0.4

MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="ADDRESS",
        help="Serve figures for Prometheus at PORT of loopback, or at HOST:PORT (stepfold\\[metrics]).",
    ),
]


def worker(
    app: App,
    url: UrlOption = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="How many steps to run at a time.")] = 100,
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="After a request to stop, wait this long for running steps.")
    ] = "10s",
    processes: Annotated[int, typer.Option("--processes", min=1, help="How many workers to start, each in its own process.")] = 1,
    metrics: MetricsOption = None,
    number: Annotated[int | None, typer.Option("--number", hidden=True, help="One of --processes.")] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when stdin closes.")] = False,
    imports_to: Annotated[Path | None, typer.Option("--imports-to", hidden=True, help="Keep the imported modules there.")] = None,
) -> int:
    """Execute the workflows of APP until Ctrl-C or SIGTERM.

    Start as many as you like, on any machine that reaches the log: they share its partitions. One process keeps one core busy;
    with [bold]--processes[/] this one starts that many, and replaces those that die. Each serves its own [bold]--metrics[/], on
    this port and those after it.
    """
    if number is not None:
        multiprocessing.current_process().name = name_of(number)  # log records hold this name as `processName`
    if with_parent or number is not None:
        end_with_stdin()
    if processes > 1:
        log_to_stderr()
        options = [f"--concurrency={concurrency}", f"--grace={grace}", *([f"--url={url}"] if url is not None else [])]
        options += [*([f"--metrics={metrics}"] if metrics is not None else []), "--", app]
        return run_async(keep_running(options, processes))
    try:
        duration_ms(grace)
    except ValueError as error:
        raise Problem(f"--grace: {error}") from None
    client = client_of(app, url)
    check_reachable(client, may_create=True)
    if not list(client.registry):
        raise Problem(f"{app} has no workflows to execute: register one with @client.workflow(id=...)")
    if imports_to is not None:
        keep_imports(imports_to)
    log_to_stderr("" if number is None else "%(processName)s: ")
    who = "worker" if number is None else name_of(number)
    remark(f"{who} {os.getpid()} on {client.log.name} ({eventloop.name()}): {workflows_of(client)}")
    metrics = port_of(metrics, number)
    return _serve(client, concurrency, grace, metrics, tell_parent if number is not None else lambda: None)


def _serve(client: Client, concurrency: int, grace: str, metrics: str | None, on_start: Callable[[], None]) -> Exit:
    """Serve until told to stop. After that the process ends soon, even if the user's code leaves threads that never end."""
    code = Exit.OK

    def on_lost(message: str) -> None:
        nonlocal code
        code = Exit.KILLED
        with contextlib.suppress(OSError):  # nobody reads it
            complain(f"stepfold: {message}")
        end_process_soon(code)

    def on_end(worker: Worker | None) -> None:
        if worker is not None and worker.abandoned:
            end_process(code)
        end_process_soon(code if worker is not None or code else Exit.LOG)

    try:
        serve(
            client.log.name,
            client.worker(concurrency=concurrency, grace=grace, metrics=metrics),
            on_start=on_start,
            on_lost=on_lost,
            on_end=on_end,
        )
    except LoopEnded:
        pass
    except ConfigError as error:
        raise Problem(str(error), Exit.LOG) from None
    return code


def port_of(metrics: str | None, number: int | None) -> str | None:
    """The address for the metrics of process `number`, counted from 1: each process has a port of its own."""
    if metrics is None or number is None:
        return metrics
    host, colon, port = metrics.rpartition(":")
    shifts = port.isdecimal() and int(port) > 0
    return f"{host}{colon}{int(port) + number - 1}" if shifts else metrics


def workflows_of(client: Client) -> str:
    """The registered workflows, in words."""
    return ", ".join(f"{workflow.id} (version {workflow.version})" for workflow in client.registry)


def end_with_stdin() -> None:
    """Stop the worker when the parent process has ended in any way: stdin closes then, because the parent held its other end."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="stepfold-parent").start()


def tell_parent() -> None:
    """Tell the parent that this process serves."""
    with contextlib.suppress(OSError):  # the parent has gone
        os.write(0, b"!")


def keep_imports(file: Path) -> None:
    """Keep a file with the paths of the user's imported modules, one a line, for `dev`."""
    ours = (
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    )

    def imported() -> list[str]:
        paths = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        return sorted({path for path in paths if isinstance(path, str) and path.endswith(".py") and not path.startswith(ours)})

    def keep() -> None:
        kept: list[str] | None = None
        while True:
            with contextlib.suppress(Exception):  # a module with unusual attributes, or a deleted folder
                if (found := imported()) != kept:
                    new = file.with_suffix(".new")
                    new.write_text("\n".join(found), errors="surrogateescape")
                    new.replace(file)
                    kept = found
            time.sleep(LOOK_S)

    threading.Thread(target=keep, daemon=True, name="stepfold-imports").start()


class _RunFormatter(logging.Formatter):
    """Adds run and step to a log line if the record has them and the text does not contain them."""

    def format(self, record: logging.LogRecord) -> str:
        text = shown(super().format(record), lines=True)  # other libraries log text from outside, too
        names = [str(getattr(record, name, "")) for name in ("run_id", "step_id")]
        missing = [name for name in names if name and name not in text]
        return f"{text} [{' '.join(missing)}]" if missing else text


def log_to_stderr(who: str = "") -> None:
    """Log to stderr, with the prefix `who`, unless the app has configured logging."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RunFormatter(f"%(asctime)s %(levelname)-7s {who}%(message)s"))
    root.addHandler(handler)
    logging.getLogger("stepfold").setLevel(logging.INFO)
