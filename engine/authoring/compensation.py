"""Compensations: steps that undo what a run has done, in reverse order, if it fails or is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import TypeVarTuple, Unpack

from ..errors import ErrorInfo
from ..values.duration import Duration
from ..values.retry import Retry
from ..values.taken import taken

if TYPE_CHECKING:
    from .step import Step

Ts = TypeVarTuple("Ts")


class _Undo(NamedTuple):
    step_id: str
    fn: Callable[..., object]
    args: tuple[Any, ...]
    retry: Retry | None
    timeout: Duration | None


class Compensations:
    """The undo steps of a block; `step.compensations()` makes it."""

    def __init__(self, step: Any, check: Callable[[str, Any, Retry | None, Duration | None], None]) -> None:
        self._step: Step[Any] = step
        self._check = check
        self._undos: list[_Undo] = []

    def push(
        self,
        step_id: str,
        fn: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> None:
        """Note an undo step, `fn(*args)`. It runs if an error or a cancellation leaves the block.

        The arguments are copied now. `retry` and `timeout`: as for `step.run`. Raises ValueError for a bad id, TypeError if `fn`
        is not a function or an argument can be iterated only once, and RuntimeError inside a step.
        """
        self._check(step_id, fn, retry, timeout)
        own, copies = taken((fn, args))
        self._undos.append(_Undo(step_id, own, copies, retry, timeout))

    async def run(self, error: BaseException) -> None:
        """Run the undo steps, the last one first, shielded from the cancellation of the run. Adds a note to `error` for each
        that fails."""
        with self._step.shield():
            while self._undos:
                step_id, fn, args, retry, timeout = self._undos.pop()
                try:
                    await self._step.run(step_id, fn, *args, retry=retry, timeout=timeout)
                except Exception as failure:  # noqa: BLE001  # the others follow, and the original error goes on
                    error.add_note(f"compensation {step_id!r} failed: {ErrorInfo.of(failure)}")
