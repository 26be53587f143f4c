"""The log and the code that a command uses: `--app module:client`, `--url`, or the default of `Client()`."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlsplit

import typer

from ..client.client import DEFAULT_URL, Client
from ..errors import ConfigError, ErrorInfo
from ..values.names import printable
from .output import remark
from .problems import Exit, Problem

T = TypeVar("T")
_OURS = (__file__, contextlib.__file__)

App = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="Your client as [bold]module:client[/], or a function that makes it; found from the current directory.",
    ),
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
        help=f"The log. Without it: the log of APP's client, else STEPFOLD_URL, else {DEFAULT_URL}.",
    ),
]

By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Who asks, for the history. Without it: your user name and this machine."),
]
Why = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Why you ask, for the history.")]


def asker(by: str | None) -> str | None:
    """The sender's name for a request: the given one, else `user@machine`, or the part of it that is known."""
    if by is not None:
        return by
    try:
        name = printable(f"{getpass.getuser()}@{socket.gethostname()}")[:200]
    except (OSError, KeyError, ImportError):  # a container without user names
        return None
    return name or None


def client_of(app: str | None, url: str | None) -> Client:
    """The client for a command; a URL has priority over the app's own log. Raises Problem and ConfigError."""
    if app is None:
        return Client(url)
    client = load(app)
    if url is not None:
        client.log = Client(url).log
    else:
        tell_of_two_logs(app, client)
    return client


def tell_of_two_logs(app: str, client: Client) -> None:
    """Note to the user if the code names one log and the environment another: the user may mean either."""
    named = os.environ.get("STEPFOLD_URL")
    if not named:
        return
    with contextlib.suppress(ConfigError):
        named = Client(named).log.name
    if named != client.log.name:
        remark(f"{app} names the log {client.log.name}, which is used; STEPFOLD_URL={named} is ignored (--url decides)")


def load(app: str) -> Client:
    """The client that `module:client` names, or that the function `module:create` returns. Raises Problem if there is no such
    client."""
    module_name, colon, name = app.partition(":")
    if not colon or not name or module_name.endswith(".py") or not all(map(str.isidentifier, module_name.split("."))):
        guess = module_name.removesuffix(".py").strip("/.").replace("/", ".")
        raise Problem(f"{app!r} is not an APP: write module:client, such as {guess or 'orders'}:{name or 'client'}")
    module = import_from_here(module_name)
    with users_code(f"looking for {app}"):
        found: Any = getattr(module, name, None)
        if inspect.isroutine(found):
            with users_code(f"calling {app}()"):
                found = found()
            app = f"{app}()"
        if isinstance(found, Client):
            return found
        if inspect.iscoroutine(found):
            found.close()
        clients = [key for key, value in vars(module).items() if isinstance(value, Client)]
    has = f"it has {', '.join(f'{module_name}:{key}' for key in clients)}" if clients else "it has no stepfold.Client"
    if found is None and not app.endswith("()"):
        raise Problem(f"module {module_name!r} has no {name!r}; {has}")
    raise Problem(f"{app} is of type {type(found).__name__}, not a stepfold.Client; {has}")


def import_from_here(module_name: str) -> ModuleType:
    """Import a module of the user from the current directory. Raises Problem for any error in it."""
    try:
        folder = str(Path.cwd())
    except OSError:
        raise Problem("the current directory does not exist any more: change into one that does") from None
    if folder not in sys.path:
        sys.path.insert(0, folder)
    doing = f"importing {module_name!r}"
    with users_code(doing):
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
                where = f"in {folder} or on Python's path"
                raise Problem(f"there is no module {error.name!r} {where}: run this where it can be imported") from None
            raise


@contextlib.contextmanager
def users_code(doing: str) -> Generator[None]:
    """Run user code in the block. Any error becomes a Problem that says where. Output goes to stderr: stdout is for data."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Problem:
        raise
    except KeyboardInterrupt:
        raise  # Ctrl-C
    except BaseException as error:  # noqa: BLE001  # any error of the user's module, SystemExit too, is for the user to fix
        raise Problem(f"{doing} failed: {_told(error)}") from None


def _told(error: BaseException) -> str:
    """The error of the user's code in words, and where it was raised. Never raises, even if `str(error)` does."""
    told = type(error).__name__
    try:
        told = str(ErrorInfo.of(error))
        if isinstance(error, SyntaxError) and error.filename is not None:
            return f"{error.msg} ({error.filename}:{error.lineno})"
    except BaseException:  # noqa: BLE001  # describing the error failed: the type must do
        return told
    return f"{told}{place_of(error)}"


def place_of(error: BaseException | None) -> str:
    """The line of the user's own code that raised the error, for the end of a message; "" if unknown. Never raises."""
    try:
        trace = None if error is None else error.__traceback__
        frames = [f for f in traceback.extract_tb(trace) if "importlib" not in f.filename and f.filename not in _OURS]
    except BaseException:  # noqa: BLE001  # reading the traceback failed: leave the line out
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


@asynccontextmanager
async def connected(client: Client, *, may_create: bool = False) -> AsyncGenerator[Client]:
    """The client, connected to a log that other processes can reach. Raises Problem and LogUnavailable.

    `may_create`: create a SQLite file that does not exist; otherwise it is a Problem.
    """
    check_reachable(client, may_create=may_create)
    quiet()
    try:
        await client.__aenter__()
    except ConfigError as error:
        raise Problem(str(error), Exit.LOG) from None
    try:
        yield client
    finally:
        await client.__aexit__(None, None, None)


def quiet() -> None:
    """For commands that do not log: they report errors as exceptions, so libraries need not log them too."""
    logging.getLogger().addHandler(logging.NullHandler())


def check_reachable(client: Client, *, may_create: bool) -> None:
    """Raises Problem for a log in memory, which other processes cannot reach, and for a file that does not exist."""
    name, url = client.log.name, urlsplit(client.log.url)
    if url.scheme == "memory":
        raise Problem(f"{name} lives inside one process, so the command line cannot reach it: use sqlite:// or kafka:// (--url)")
    path = unquote(url.path[1:], errors="surrogateescape")
    if url.scheme == "sqlite" and not may_create and not Path(path).exists():
        raise Problem(f"there is no file {path!r}, so there is no log: name another with --url, --app or STEPFOLD_URL", Exit.LOG)


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(coroutine)


async def until_first(*work: Coroutine[Any, Any, None]) -> None:
    """Run all coroutines until the first has ended, then cancel the others. Raises the error of the first."""
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
    """Make SIGTERM end this command as Ctrl-C does, so that the command stops its child processes.

    Call it at the beginning of a command, before an event loop starts. A shell without job control makes background processes
    ignore SIGINT, and asyncio handles SIGINT only if the handler is Python's own.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
