"""Tasks and futures that hash by their creation number, so that sets of them iterate alike in every process.

Importing this module changes asyncio for the whole process: it replaces the hash of the future that `asyncio.gather` returns
(see the end of the module). Futures of other loops keep the usual hash.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from .loop import DeterministicLoop

T = TypeVar("T")


class DeterministicFuture(asyncio.Future[T]):
    """A future that hashes by its creation number."""

    __slots__ = ("creation_hash",)

    creation_hash: int

    def __hash__(self) -> int:
        return self.creation_hash


class DeterministicTask(asyncio.Task[T]):
    """A task that hashes by its creation number.

    `shielded` counts the shields around it. While it is above 0, the cancellation of the run does not reach the task, not even
    through `gather` or a `TaskGroup`. A task that is made inside a shield is shielded from its beginning.
    """

    __slots__ = ("_cancel_later", "_shielded_at_first", "creation_hash", "shielded")

    creation_hash: int
    shielded: int

    def __init__(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        creation_hash: int,
        loop: asyncio.AbstractEventLoop,
        name: str,
        context: contextvars.Context | None = None,
        shielded: int = 0,
    ) -> None:
        # First: asyncio's constructor adds the task to a set.
        self.creation_hash = creation_hash
        self.shielded = self._shielded_at_first = shielded
        self._cancel_later = False
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self.creation_hash

    def cancel(self, msg: Any = None) -> bool:
        if self.shielded and cast("DeterministicLoop", self.get_loop()).pressing:
            return False
        return super().cancel(msg)

    def cancel_outside_shield(self) -> None:
        """Cancel the task, when it has left the shields that it has entered itself."""
        if self.shielded > self._shielded_at_first:
            self._cancel_later = True
        else:
            self.cancel()

    def left_shield(self) -> None:
        """Note that the task has left a shield."""
        self.shielded -= 1
        if self._cancel_later and self.shielded == self._shielded_at_first:
            self._cancel_later = False
            self.cancel()

    @property
    def waits_for(self) -> asyncio.Future[Any] | None:
        """The future that a blocked task waits for."""
        return getattr(self, "_fut_waiter", None)


def _gathering_hash(future: Any) -> int:
    # `asyncio.gather` makes its future without `create_future`: with the usual hash its place in a set would be random.
    number: int | None = getattr(future, "creation_hash", None)
    if number is None:
        new_number: Callable[[], int] | None = getattr(future.get_loop(), "next_future_hash", None)
        number = future.creation_hash = object.__hash__(future) if new_number is None else new_number()
    return number


# For the whole process: asyncio has no other way to set the hash of this future.
vars(asyncio.tasks)["_GatheringFuture"].__hash__ = _gathering_hash
