"""A callback as the code of a workflow holds it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic

from typing_extensions import TypeVar

from ..replay.execution import Op

T = TypeVar("T", default=Any)


class Callback(Generic[T]):
    """A question to somebody outside, who answers by `id`. `await callback` gives the data of the answer.

    The code may await it at any time, several times and from several tasks, or never. A time-out of the code's own around the
    `await` leaves the callback open. The `await` raises CallbackFailed, CallbackTimedOut, and InputInvalid for data that do not
    fit the schema.
    """

    __slots__ = ("_future", "_id", "_step_id")

    def __init__(self, id: str, op: Op) -> None:
        assert op.future is not None
        self._future = op.future
        self._id = id
        self._step_id = op.id

    @property
    def id(self) -> str:
        """The id by which somebody outside answers. It cannot be guessed, and whoever has it may answer."""
        return self._id

    def __repr__(self) -> str:
        return f"<Callback {self._step_id!r}>"

    def __await__(self) -> Generator[Any, None, T]:
        if not self._future.done():
            loop = self._future.get_loop()
            if not loop.is_running():
                raise RuntimeError(f"callback {self._step_id!r} was awaited outside its workflow")
            waiter = loop.create_future()

            def wake(_: object) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            self._future.add_done_callback(wake)
            try:
                yield from waiter
            finally:
                self._future.remove_done_callback(wake)
        return self._future.result()
