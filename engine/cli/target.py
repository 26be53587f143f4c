"""Which log and which code a command means: `--app module:client`, `--url`, or what `Client()` takes by itself."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import sys
import traceback
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

import typer

from ..client import DEFAULT_URL, Client
from ..errors import ConfigError
from .problems import Exit, Problem

T = TypeVar("T")

App = Annotated[
    str, typer.Argument(metavar="APP", help="Your client as [bold]module:client[/], found from the current directory.")
]
AppOption = Annotated[
    str | None,
    typer.Option("--app", "-a", metavar="APP", help="Your client as [bold]module:client[/]: its log and its workflows."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        metavar="URL",
        help=f"The log. Without it: the client's of APP, else STEPFOLD_URL, else {DEFAULT_URL}.",
    ),
]


def client_of(app: str | None, url: str | None) -> Client:
    """The client that a command is to use; a URL wins over the app's own. Raises Problem and ConfigError."""
    if app is None:
        return Client(url)
    client = load(app)
    if url is not None:
        client.log = Client(url).log
    return client


def load(app: str) -> Client:
    """The client that `module:client` names. Raises Problem, which says what was found instead."""
    module_name, colon, name = app.partition(":")
    if not colon or not name or module_name.endswith(".py") or not all(map(str.isidentifier, module_name.split("."))):
        guess = Path(module_name).with_suffix("").as_posix().strip("/.").replace("/", ".")
        raise Problem(f"{app!r} is no APP: write module:client, such as {guess or 'orders'}:{name or 'client'}")
    module = import_from_here(module_name)
    found = getattr(module, name, None)
    if isinstance(found, Client):
        return found
    clients = [key for key, value in vars(module).items() if isinstance(value, Client)]
    has = f"it has {', '.join(f'{module_name}:{key}' for key in clients)}" if clients else "it makes no stepfold.Client"
    if found is None:
        raise Problem(f"module {module_name!r} has no {name!r}; {has}")
    raise Problem(f"{app} is of type {type(found).__name__}, no stepfold.Client; {has}")


def import_from_here(module_name: str) -> ModuleType:
    """A module of the user's, found from the current directory. Raises Problem for whatever goes wrong in it."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            where = f"in {folder} or on Python's path"
            raise Problem(f"there is no module {error.name!r} {where}: run this where it can be imported") from None
        raise Problem(_import_failed(module_name, error)) from None
    except Exception as error:  # noqa: BLE001  # whatever the user's module raises is the user's to mend
        raise Problem(_import_failed(module_name, error)) from None


def _import_failed(module_name: str, error: Exception) -> str:
    """What the user's own code raised, and where."""
    if isinstance(error, SyntaxError):
        return f"importing {module_name!r} failed: {error.msg} ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"importing {module_name!r} failed: {type(error).__name__}: {error}{where}"


@asynccontextmanager
async def connected(client: Client, *, may_create: bool = False) -> AsyncGenerator[Client]:
    """The client, connected to a log that other processes can reach. Raises Problem, LogUnavailable.

    `may_create`: whether a SQLite file that does not exist is made, or is a mistake.
    """
    check_reachable(client, may_create=may_create)
    logging.getLogger().addHandler(logging.NullHandler())  # what goes wrong is raised; libraries need not say it as well
    try:
        await client.__aenter__()
    except ConfigError as error:
        raise Problem(str(error), Exit.LOG) from None
    try:
        yield client
    finally:
        await client.__aexit__(None, None, None)


def check_reachable(client: Client, *, may_create: bool) -> None:
    """Raises Problem for a log that lives in one process only, and for a file that is not there."""
    name = client.log.name
    if name.startswith("memory://"):
        raise Problem(f"{name} lives inside one process, so the command line cannot reach it: use sqlite:// or kafka:// (--url)")
    path = name.removeprefix("sqlite:///")
    if path != name and not may_create and not Path(path).exists():
        raise Problem(f"there is no file {path!r}, so no log: name another with --url, --app or STEPFOLD_URL", Exit.LOG)


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(coroutine)


async def until_first(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of it until the first has ended, then stop the others. Raises what ended it."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def end_as_with_ctrl_c() -> None:
    """SIGTERM ends this command as Ctrl-C does, so that it takes its child processes along.

    For the beginning of a command, before it starts an event loop: a shell without job control has what it puts into the
    background ignore SIGINT, and asyncio takes SIGINT over only where the handler is Python's own.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
