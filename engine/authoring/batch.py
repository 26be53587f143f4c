"""Branches of a workflow that run side by side: what became of each, and when the batch is over."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from ..errors import BatchFailed
from ..replay.execution import Execution
from ..replay.futures import DeterministicTask
from ..values.same import shown

T = TypeVar("T")

Status = Literal["completed", "failed", "cancelled", "not-started"]
Reason = Literal["all-completed", "min-successful", "failures-exceeded"]
Judge = Callable[[int, int, int], Reason | None]
"""Why a batch is over after so many successes and failures of so many branches; None if it goes on."""


@dataclass(frozen=True)
class Completion:
    """When a batch is over before all of its branches have ended. Without any of these, all run.

    `min_successful`: as soon as so many have succeeded. `tolerated_failures`: as soon as more have failed.
    `tolerated_failure_ratio`: as soon as a larger share of all branches has failed, 0 to 1.

    Raises ValueError for a number that means nothing.
    """

    min_successful: int | None = None
    tolerated_failures: int | None = None
    tolerated_failure_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_successful", 1), ("tolerated_failures", 0)):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < least):
                raise ValueError(f"Completion({name}={shown(number)}): give a whole number, {least} or more")
        ratio = self.tolerated_failure_ratio
        if ratio is not None and not (type(ratio) in (int, float) and isfinite(ratio) and 0 <= ratio <= 1):
            raise ValueError(f"Completion(tolerated_failure_ratio={shown(ratio)}): give a number from 0 to 1")

    def judge(self, step_id: str, total: int) -> Judge:
        """The judge of a batch of `total` branches. Raises ValueError if `min_successful` is above it."""
        if self.min_successful is not None and self.min_successful > total:
            raise ValueError(f"min_successful={self.min_successful} can never be reached: {step_id!r} has {total} branches")
        return self._reason

    def _reason(self, successes: int, failures: int, total: int) -> Reason | None:
        if self.tolerated_failures is not None and failures > self.tolerated_failures:
            return "failures-exceeded"
        if self.tolerated_failure_ratio is not None and failures > self.tolerated_failure_ratio * total:
            return "failures-exceeded"
        if successes + failures == total:
            return "all-completed"
        return "min-successful" if self.min_successful is not None and successes >= self.min_successful else None


@dataclass
class BatchItem(Generic[T]):
    """One branch. `key`: its scope, for `map` without keys its index as text. `result` counts if it is completed; `error` is the
    exception of a failed one.
    """

    index: int
    key: str
    status: Status = "not-started"
    result: T | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class BatchResult(Generic[T]):
    """The outcome of a batch: its branches in the order in which they were given, and why it was over."""

    step_id: str
    items: Sequence[BatchItem[T]]
    reason: Reason

    @property
    def succeeded(self) -> int:
        """How many branches completed."""
        return sum(item.status == "completed" for item in self.items)

    @property
    def failed(self) -> int:
        """How many branches failed."""
        return sum(item.status == "failed" for item in self.items)

    def successes(self) -> list[T]:
        """The results of the completed branches."""
        results: list[Any] = [item.result for item in self.items if item.status == "completed"]
        return results

    def errors(self) -> list[Exception]:
        """The errors of the failed branches."""
        return [item.error for item in self.items if item.error is not None]

    def results(self) -> list[T]:
        """The results of all branches. Raises BatchFailed if one of them did not complete; its cause is the first failure."""
        done = self.successes()
        if len(done) == len(self.items):
            return done
        total, failed = len(self.items), self.failed
        first = next((item for item in self.items if item.error is not None), None)
        message = f"of the {total} branches of {self.step_id!r} {failed} failed and {total - len(done) - failed} did not end"
        if first is None:
            raise BatchFailed(message)
        raise BatchFailed(f"{message}; branch {first.key!r}: {type(first.error).__name__}: {first.error}") from first.error


class RaceResult(NamedTuple, Generic[T]):
    """The branch that ended first: its key and its result."""

    key: str
    value: T


Branch = Callable[[], Coroutine[Any, Any, T]]


def _started(step_id: str, key: str, branch: Branch[T]) -> Coroutine[Any, Any, T]:
    made = branch()
    if not inspect.isawaitable(made):
        raise TypeError(f"branch {key!r} of {step_id!r} returned {shown(made)}: give an async function")
    return made


class BatchRun(Generic[T]):
    """Runs branches, at most `concurrency` at a time, each as a task of its own.

    The outcome depends only on the order in which the journal ends the branches. An early end cancels those that still run; a
    branch inside a shield leaves it first.
    """

    def __init__(self, execution: Execution, step_id: str, keys: Iterable[str], judge: Judge) -> None:
        self.first: BatchItem[T] | None = None  # the one that ended first
        self.items: list[BatchItem[T]] = [BatchItem(index, key) for index, key in enumerate(keys)]
        self._successes = self._failures = 0
        self._execution = execution
        self._step_id = step_id
        self._judge = judge
        self._reason: Reason | None = None
        self._running: dict[int, DeterministicTask[None]] = {}
        self._freed = asyncio.Event()

    async def run(self, branches: Sequence[Branch[T]], concurrency: int | None) -> BatchResult[T]:
        """Run all branches, unless the judge ends the batch before."""
        async with asyncio.TaskGroup() as group:
            for item, branch in zip(self.items, branches, strict=True):
                while self._reason is None and concurrency is not None and len(self._running) >= concurrency:
                    self._freed.clear()
                    await self._freed.wait()
                if self._reason is not None:
                    break
                task = group.create_task(self._run(item, branch))
                assert isinstance(task, DeterministicTask)
                self._running[item.index] = task
            while self._running and self._reason is None:
                self._freed.clear()
                await self._freed.wait()
        return BatchResult(self._step_id, self.items, self._reason or "all-completed")

    async def _run(self, item: BatchItem[T], branch: Branch[T]) -> None:
        try:
            item.result = await _started(self._step_id, item.key, branch)
        except asyncio.CancelledError:
            if self._reason is not None or self._execution.cancelling:
                item.status = "cancelled"
                raise
            item.status, item.error = "failed", RuntimeError(f"branch {item.key!r} of {self._step_id!r} was cancelled")
        except Exception as error:  # noqa: BLE001  # the outcome of a branch is for the caller to judge
            item.status, item.error = "failed", error
        else:
            item.status = "completed"
        finally:
            self._running.pop(item.index, None)
            self._freed.set()
        self.first = self.first or item
        if item.status == "completed":
            self._successes += 1
        else:
            self._failures += 1
        if self._reason is None:
            self._reason = self._judge(self._successes, self._failures, len(self.items))
            if self._reason is not None:
                for task in self._running.values():
                    task.cancel_outside_shield()
