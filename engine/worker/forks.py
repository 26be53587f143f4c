"""A step may fork. Its child has a copy of the worker's event loop and threads, and must not act as a worker with them.

The child may do what it likes and end by itself. It ends where its code gives control back to the worker.
"""

from __future__ import annotations

import logging
import os
from typing import NoReturn, Protocol
from weakref import WeakSet

logger = logging.getLogger("stepfold.worker")


class Forked(Protocol):
    """A part of the worker to which users' code gives control back."""

    def is_copy(self) -> None:
        """Called in the child: from now on, end the process where control comes back."""
        ...


_all: WeakSet[Forked] = WeakSet()


def end_in_child(one: Forked) -> None:
    """Let `one` end each child process that users' code forks."""
    _all.add(one)


def end_child() -> NoReturn:
    """End a forked child without exit handlers and without flushing: those belong to its parent."""
    logger.error("the child of a fork has come back to the worker: it ends. End it by os._exit, or use subprocess")
    os._exit(1)


def _in_child() -> None:
    copies = list(_all)
    _all.clear()  # the child may fork, too
    for one in copies:
        one.is_copy()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
