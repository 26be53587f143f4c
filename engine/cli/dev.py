"""`stepfold dev`: a worker that restarts when a file that it imported changes, the dashboard, and the events of its runs.

The worker is the command `stepfold worker` in a process of its own, so each start imports the code anew. This process watches
files and the log, serves the dashboard, and never executes workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import shlex
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..client.client import DEFAULT_URL, Client
from ..core.fold import PartitionState, fold
from ..events import parse
from ..log import Log
from ..worker import eventloop
from .output import Text, console, local, remark
from .picture import event_row
from .problems import Problem
from .projection import ProjectionsOption, yours
from .target import App, UrlOption, connected, end_as_with_ctrl_c, load, run_async, tell_of_two_logs, until_first
from .web import address, bound, http_app, serve_http, settle
from .worker import MetricsOption

if TYPE_CHECKING:
    from stepfold.projections import Projection

LOOK_S = 0.4
STOP_S = 5.0
PORT = 8080
_SKIPPED = {"node_modules", "site-packages", "__pycache__", "venv", "env", "build", "dist"}


def dev(
    app: App,
    url: UrlOption = None,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Start a real Kafka broker on this machine (stepfold\\[broker]).")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the dashboard; a free one if it is taken.")] = PORT,
    open_: Annotated[bool, typer.Option("--open", help="Open the dashboard in your browser.")] = False,
    projection: ProjectionsOption = None,
    metrics: MetricsOption = None,
) -> None:
    """Run a worker that restarts when a file that it imported changes, serve the dashboard, and show the events of all runs.

    Works on an embedded log: the SQLite file that APP's client names, else sqlite:///stepfold.db.

    With [bold]--kafka[/] it works on a broker of its own, whose data are deleted afterwards.

    The dashboard needs [bold]stepfold\\[web][/]; without it everything else works.
    """
    end_as_with_ctrl_c()
    client = load(app)
    show = functools.partial(_show_dashboard, port=port, open_=open_, projections=yours(projection))
    if kafka:
        with local_kafka("dev") as broker_url:
            client.log = Client(broker_url).log
            eventloop.run(_develop(app, client, show, metrics))
        return
    if url is not None:
        client.log = Client(url).log
    elif client.log.url.startswith("sqlite://"):
        tell_of_two_logs(app, client)
    else:
        remark(f"{app} names the log {client.log.name}; dev uses {DEFAULT_URL} instead (--url or --kafka choose another)")
        client.log = Client(DEFAULT_URL).log
    eventloop.run(_develop(app, client, show, metrics))


@contextlib.contextmanager
def local_kafka(namespace: str, options: str = "") -> Generator[str]:
    """Run a local broker during the block; yields the URL of a namespace on it that has its topics. Raises ConfigError."""
    from stepfold.drivers.broker import LocalBroker
    from stepfold.drivers.kafka import KafkaDriver

    remark("starting a local Kafka broker")
    with LocalBroker(say=remark) as broker:
        url = f"kafka://{broker.bootstrap}/{namespace}{options}"
        run_async(KafkaDriver.from_url(url).create_topics(partitions=4, replication=1))
        yield url


def start_worker(
    app: str, url: str, *options: str, output: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `stepfold worker` as a child process. It ends when this process ends. It does not get the terminal's Ctrl-C: this
    process handles that.

    `output`: the file for its output, instead of this process's; `env`: added to the environment.
    """
    with output.open("ab") if output is not None else contextlib.nullcontext() as file:
        return subprocess.Popen(
            [sys.executable, "-m", "stepfold.cli.app", "worker", app, "--url", url, "--with-parent", *options],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )


def stop_worker(process: subprocess.Popen[bytes], patience_s: float = STOP_S) -> None:
    """Tell a worker to stop, and kill it after `patience_s`. Idempotent."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


async def _develop(
    app: str, client: Client, show: Callable[[Client], Coroutine[Any, Any, None]], metrics: str | None = None
) -> None:
    out = console()
    async with connected(client, may_create=True):
        elsewhere = "" if client.log.name == DEFAULT_URL else f" --url {shlex.quote(client.log.url)}"
        remark(f"log {client.log.name} ({eventloop.name()}); start runs with: stepfold run start WORKFLOW --data JSON{elsewhere}")
        printing = [_print_events(client.log, partition, out) for partition in range(client.log.partitions)]
        await until_first(_keep_running(app, client, metrics), show(client), *printing)


async def _show_dashboard(client: Client, port: int, open_: bool, projections: Sequence[Projection]) -> None:
    """Serve the dashboard, and the dashboards of `projections`. After an error this waits until cancelled, so that the worker
    continues."""
    try:
        app = http_app()
        with bound("127.0.0.1", port, or_any=True) as listening:
            remark(f"dashboard {address(listening)}")
            if open_:
                await asyncio.to_thread(webbrowser.open, address(listening))
            settle()
            await serve_http(app(client, projections=projections), listening)
    except Problem as problem:
        remark(f"no dashboard: {problem}")
    await asyncio.Event().wait()


async def _keep_running(app: str, client: Client, metrics: str | None) -> None:
    """Run a worker, and restart it after each change; the dashboard then shows the workflows of the new code."""
    more = () if metrics is None else ("--metrics", metrics)
    with tempfile.TemporaryDirectory(prefix="stepfold-dev-") as folder:
        while True:
            code = await asyncio.to_thread(_Code, Path.cwd(), Path(folder, "imports"))
            process = start_worker(app, client.log.url, "--grace", "1s", "--imports-to", str(code.imports), *more)
            try:
                ended = False
                while (changed := await asyncio.to_thread(code.changed, everything=ended)) is None:
                    if not ended and process.poll() is not None:
                        ended = True
                        remark(
                            f"the worker ended (exit code {process.returncode}); dev starts it again when a Python file changes"
                        )
                    await asyncio.sleep(LOOK_S)
                remark(f"{changed} changed: the worker restarts")
            finally:
                await asyncio.shield(asyncio.to_thread(stop_worker, process))
            _import_anew(app, client, Path.cwd())


def _import_anew(app: str, client: Client, here: Path) -> None:
    """Import the modules below the folder again, for the dashboard's forms. If an import fails, the modules stay as they were."""
    ours = {name: module for name, module in sys.modules.items() if _is_below(getattr(module, "__file__", None), here)}
    for name in ours:
        del sys.modules[name]
    importlib.invalidate_caches()
    try:
        client.registry = load(app).registry
    except Problem:  # the worker has logged the error
        sys.modules.update(ours)


def _is_below(file: str | None, folder: Path) -> bool:
    """Whether a file is the user's own code: below this folder, and not below one of `_SKIPPED`."""
    path = Path(file or "/")
    return path.is_relative_to(folder) and not _SKIPPED & set(path.relative_to(folder).parts) and path.suffix == ".py"


class _Code:
    """The files of a worker, as they were when it started."""

    def __init__(self, here: Path, imports: Path) -> None:
        self.imports = imports  # the file in which the worker lists its imports
        self._here = here
        self._seen = _python_files(here)
        imports.unlink(missing_ok=True)

    def changed(self, *, everything: bool) -> Path | None:
        """A file that has changed, among the worker's imports, or with `everything` below the folder; None if none has."""
        if everything:
            now = _python_files(self._here)
            paths = now.keys() | self._seen.keys()
        else:
            lines = self.imports.read_text(errors="surrogateescape").splitlines() if self.imports.exists() else []
            paths = {path.relative_to(self._here) if path.is_relative_to(self._here) else path for path in map(Path, lines)}
            now = {path: at for path in paths if (at := _changed_at(self._here / path)) is not None}
            for path in paths - self._seen.keys():
                self._seen[path] = now.get(path, 0)  # a new import, or one outside the folder: compare it from now on
        return min((path for path in paths if now.get(path) != self._seen.get(path)), default=None)


def _changed_at(path: Path) -> int | None:
    """The time of a file's last change, ns; None if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _python_files(folder: Path) -> dict[Path, int]:
    """The Python files below a folder, by relative path, with the times of their last changes (ns)."""
    found: dict[Path, int] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            if name.endswith(".py"):
                path = Path(root, name)
                changed_at = _changed_at(path)
                if changed_at is not None:
                    found[path.relative_to(folder)] = changed_at
    return found


async def _print_events(log: Log, partition: int, out: Console) -> None:
    """Print the accepted events of all runs of a partition, from now on."""
    _, end = await log.bounds(partition)
    state = PartitionState(partition, log.partitions)
    reader = log.reader(partition, 0)
    try:
        while True:
            for record in await reader.read(1000, None):
                change = fold(state, record)
                if change is None or change.run is None or record.offset < end:
                    continue
                type_, step_id, said = event_row(parse(change.event, record.offset, record.timestamp))
                type_.pad_right(18 - len(type_.plain))
                time = (local(record.timestamp, date=False), "dim")
                out.print(Text.assemble(time, "  ", (change.run.id, "bold"), "  ", type_, f"{step_id} ", (said.plain, "dim")))
    finally:
        await reader.close()
