"""The drivers, and the URLs that name them. A driver is imported when it is first used.

`engine/log.py` is the port that a driver implements, `engine/testing/suite/` tests one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from stepfold.errors import ConfigError
from stepfold.log import Log
from stepfold.values.text import shown

if TYPE_CHECKING:
    from .kafka import KafkaContext, KafkaDriver, KafkaStep
    from .memory import MemoryDriver
    from .sqlite import SQLiteDriver

__all__ = ["KafkaContext", "KafkaDriver", "KafkaStep", "MemoryDriver", "SQLiteDriver", "open_driver"]

_HOMES = {
    "KafkaContext": ".kafka",
    "KafkaDriver": ".kafka",
    "KafkaStep": ".kafka",
    "MemoryDriver": ".memory",
    "SQLiteDriver": ".sqlite",
}
_SCHEMES = {"kafka": "KafkaDriver", "memory": "MemoryDriver", "sqlite": "SQLiteDriver"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_HOMES[name], __name__)
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise ConfigError(
            f"{name} locks files as only Linux, macOS and other POSIX systems do; on Windows run it in WSL "
            f"(https://learn.microsoft.com/windows/wsl), or use memory:// or kafka://"
        ) from error
    return getattr(home, name)


def open_driver(url: str) -> Log:
    """The driver that the URL names. Opens nothing yet. Raises ConfigError, which names the valid forms.

    memory://                                                  a log of its own, in this process
    memory://name                                              one log for all in this process that use the name
    sqlite:///orders.db, sqlite:////var/lib/orders.db          a file, by a relative or an absolute path
        ?durability=normal&partitions=8                        see SQLiteDriver
    kafka://host:port[,host:port]/namespace                    see KafkaDriver.from_url
    """
    text = cast(object, url)  # a caller without types may give anything
    scheme, mark, _ = text.partition("://") if isinstance(text, str) else ("", "", "")
    if not mark or scheme not in _SCHEMES:
        raise ConfigError(
            f"{url!r} names no log; expected memory://, memory://name, sqlite:///path/to/file.db or kafka://host:port/namespace"
        )
    if url != shown(url):
        raise ConfigError(f"'{shown(url)}' names no log: it contains an invisible character")
    try:
        driver: Log = __getattr__(_SCHEMES[scheme]).from_url(url)
    except ValueError as error:
        raise ConfigError(f"{url!r} names no log: {error}") from None
    return driver
