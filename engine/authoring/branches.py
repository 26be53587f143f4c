"""The operations of `Step` that consist of others: branches side by side, and compensations. Without records of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Self, TypeVar, cast

from ..replay.execution import Execution
from ..values.names import quoted
from ..values.same import shown
from .batch import BatchResult, BatchRun, Completion, Judge, RaceResult
from .compensation import Compensations

MAX_BRANCHES = 100_000
"""The limit for the items of a `map`: an iterator may never end."""
T = TypeVar("T")
Item = TypeVar("Item")


class Branches:
    """Each branch gets a `Step` of a scope of its own, `step id/key`."""

    __slots__ = ()
    _execution: Execution

    def _path(self, step_id: str) -> str:
        raise NotImplementedError

    def _scoped(self, *names: str) -> Self:
        raise NotImplementedError

    def _check_run(self, step_id: str, fn: Any, retry: Any, timeout: Any, method: str = "run") -> None:
        raise NotImplementedError

    async def map(
        self,
        step_id: str,
        items: Iterable[Item],
        fn: Callable[[Self, Item], Coroutine[Any, Any, T]],
        *,
        key: Callable[[Item], str] | None = None,
        concurrency: int | None = None,
        complete: Completion | None = None,
    ) -> BatchResult[T]:
        """Run the async function `fn(step, item)` for each item, side by side; its `step` has the scope `step_id/<key or index>`.

        `key`: makes the name of an item's scope; without it the index is the name. `concurrency`: how many branches may run at a
        time; all by default. `complete`: when the batch is over early; what still runs is then cancelled. A branch that raises
        an Exception has failed, and does not stop the others.

        Raises ValueError for a bad id, key, `concurrency` or `complete`, for two items with one key, and for more than 100,000
        items; TypeError if `fn` is not a function.
        """
        listed = list(islice(items, MAX_BRANCHES + 1))
        if len(listed) > MAX_BRANCHES:
            raise ValueError(f"step.map({step_id!r}) was given more than {MAX_BRANCHES:,} items: split them into several batches")
        keys = [str(index) for index in range(len(listed))] if key is None else [key(item) for item in listed]
        steps = self._steps(step_id, keys)
        if not callable(fn):
            raise TypeError(f"step.map({step_id!r}) was given {shown(fn)}: give an async function of a step and an item")
        judge = (complete or Completion()).judge(step_id, len(listed))
        branches = [partial(fn, step, item) for step, item in zip(steps, listed, strict=True)]
        return await BatchRun[T](self._execution, step_id, keys, judge).run(branches, _checked(concurrency))

    async def parallel(
        self,
        step_id: str,
        branches: Mapping[str, Callable[[Self], Coroutine[Any, Any, T]]] | Sequence[Callable[[Self], Coroutine[Any, Any, T]]],
        *,
        concurrency: int | None = None,
        complete: Completion | None = None,
    ) -> BatchResult[T]:
        """Run async functions of a scoped `Step` side by side, by name or as a list. The rest is as for `map`."""
        keys, functions = self._named(step_id, branches)
        steps = self._steps(step_id, keys)
        judge = (complete or Completion()).judge(step_id, len(keys))
        calls = [partial(fn, step) for fn, step in zip(functions, steps, strict=True)]
        return await BatchRun[T](self._execution, step_id, keys, judge).run(calls, _checked(concurrency))

    async def race(self, step_id: str, branches: Mapping[str, Callable[[Self], Coroutine[Any, Any, T]]]) -> RaceResult[T]:
        """Run async functions of a scoped `Step` side by side. The first that ends wins, and the others are cancelled.

        Raises the error of a branch that wins by failing; ValueError for a bad id or name, and without any branch.
        """
        keys, functions = self._named(step_id, branches)
        if not keys:
            raise ValueError(f"step.race({step_id!r}) was given no branch")
        calls = [partial(fn, step) for fn, step in zip(functions, self._steps(step_id, keys), strict=True)]
        batch = BatchRun[T](self._execution, step_id, keys, _first)
        await batch.run(calls, None)
        winner = batch.first
        assert winner is not None
        if winner.error is not None:
            raise winner.error
        return RaceResult(winner.key, cast(T, winner.result))

    @asynccontextmanager
    async def compensations(self) -> AsyncGenerator[Compensations]:
        """A block that undoes what it has done: `async with step.compensations() as undo`.

        `undo.push(step_id, fn, *args)` notes an undo step. If an error or a cancellation leaves the block, the noted steps run,
        the last one first, shielded from the cancellation of the run. Then the error goes on. A compensation that fails in its
        last attempt does not stop the others; the error gets a note.
        """
        undo = Compensations(self, self._check_run)
        try:
            yield undo
        except GeneratorExit:  # the run leaves the memory of its worker, and goes on elsewhere
            raise
        except BaseException as error:
            await undo.run(error)
            raise

    def _steps(self, step_id: str, keys: Sequence[str]) -> list[Self]:
        self._path(step_id)
        seen: set[str] = set()
        for key in keys:
            if type(key) is not str:
                raise ValueError(f"{shown(key)} ({type(key).__name__}) is not a key of {step_id!r}: give a plain str")
            if key in seen:
                raise ValueError(f"two branches of {step_id!r} have the key {quoted(key)}: give each its own")
            seen.add(key)
        return [self._scoped(step_id, key) for key in keys]

    def _named(
        self, step_id: str, branches: Mapping[str, Callable[[Self], Any]] | Sequence[Callable[[Self], Any]]
    ) -> tuple[list[str], list[Callable[[Self], Any]]]:
        named = branches if isinstance(branches, Mapping) else {str(index): fn for index, fn in enumerate(branches)}
        for key, fn in named.items():
            if not callable(fn):
                raise TypeError(f"branch {shown(key)} of {step_id!r} is {shown(fn)}: give an async function of a step, uncalled")
        return list(named), list(named.values())


def _checked(concurrency: int | None) -> int | None:
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ValueError(f"concurrency={shown(concurrency)}: give a whole number, 1 or more, or None for all at a time")
    return concurrency


_first: Judge = lambda successes, failures, total: "all-completed"
