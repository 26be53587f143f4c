"""The operations of `Step` that start other runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, overload

from typing_extensions import TypeVar

from ..errors import ConfigError, PayloadTooLarge
from ..log import MAX_PAYLOAD_BYTES
from ..operations.call import Call
from ..operations.child import ChildCall, Policy, as_recorded
from ..replay.execution import Execution
from ..replay.frames import Source, source_of_caller
from ..replay.futures import DeterministicTask
from ..values.codec import written
from ..values.duration import Duration, duration_ms
from ..values.names import BUILT_IN, no_run_id, quoted, valid_name, valid_run_id
from ..values.same import shown

if TYPE_CHECKING:
    from .workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")

_POLICIES = ("cancel", "abandon")


class Children:
    """A child is a run of its own, in any partition, on any worker."""

    __slots__ = ()
    _execution: Execution
    _scope: str

    def _path(self, step_id: str) -> str:
        raise NotImplementedError

    async def _wait(self, step_id: str, call: Call, source: Source) -> Any:
        raise NotImplementedError

    @overload
    def invoke_workflow(
        self,
        step_id: str,
        workflow: Workflow[In, Out],
        data: In | dict[str, Any] = ...,
        *,
        timeout: Duration | None = None,
        on_parent_close: Literal["cancel", "abandon"] = "cancel",
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Out]: ...

    @overload
    def invoke_workflow(
        self,
        step_id: str,
        workflow: str,
        data: Any = None,
        *,
        timeout: Duration | None = None,
        on_parent_close: Literal["cancel", "abandon"] = "cancel",
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Any]: ...

    def invoke_workflow(
        self,
        step_id: str,
        workflow: Workflow[Any, Any] | str,
        data: Any = None,
        *,
        timeout: Duration | None = None,
        on_parent_close: Literal["cancel", "abandon"] = "cancel",
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Start a run of another workflow, and wait for its result.

        `workflow`: a registered one, or the id of one that some worker knows; the input of a registered one is validated before
        anything is written. `run_id`: the child's; without it, the id begins with the parent's. `timeout`: how long to wait for
        the end, from now on.

        If the parent is cancelled or ends, or the code stops waiting, the child is cancelled, too, or goes on with
        `on_parent_close="abandon"`. A cancelled parent gets CancelledError after such children have ended. A cancellation does
        not reach a child that was invoked within `step.shield()`.

        Raises ChildFailed (with a RunAlreadyExists in `.error` if another start has the id), ChildCancelled and ChildTimedOut;
        InputInvalid and PayloadTooLarge for the input, ConfigError for what is not a workflow, and ValueError for a bad id,
        duration or policy.
        """
        if on_parent_close not in _POLICIES:
            raise ValueError(f'on_parent_close={shown(on_parent_close)}: it must be "cancel" or "abandon"')
        timeout_ms = None if timeout is None else duration_ms(timeout)
        call = self._child(step_id, workflow, data, run_id, on_parent_close, timeout_ms, detached=False)
        return self._begin(self._path(step_id), call, source_of_caller())

    @overload
    def start_workflow(
        self, step_id: str, workflow: Workflow[In, Any], data: In | dict[str, Any] = ..., *, run_id: str | None = None
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def start_workflow(
        self, step_id: str, workflow: str, data: Any = None, *, run_id: str | None = None
    ) -> Coroutine[Any, Any, str]: ...

    def start_workflow(
        self, step_id: str, workflow: Workflow[Any, Any] | str, data: Any = None, *, run_id: str | None = None
    ) -> Coroutine[Any, Any, str]:
        """Start a run of another workflow exactly once, and return its run id. Nothing of this run touches it from then on.

        The start is durable when the `await` returns. If another run has the `run_id`, that run stays as it is, and none is
        started. The rest is as for `invoke_workflow`.
        """
        call = self._child(step_id, workflow, data, run_id, "abandon", None, detached=True)
        return self._begin(self._path(step_id), call, source_of_caller())

    async def _begin(self, path: str, call: ChildCall, source: Source) -> Any:
        task = asyncio.current_task()
        call.shielded = isinstance(task, DeterministicTask) and task.shielded > 0
        return await self._wait(path, call, source)

    def _child(
        self,
        step_id: str,
        workflow: Workflow[Any, Any] | str,
        data: Any,
        run_id: str | None,
        on_parent_close: Policy,
        timeout_ms: int | None,
        *,
        detached: bool,
    ) -> ChildCall:
        execution = self._execution
        if run_id is not None and not valid_run_id(run_id):
            raise ValueError(no_run_id(run_id))
        make: Callable[[Any], Any] | None
        if isinstance(workflow, str):
            name, version, make = _named(workflow), None, as_recorded
        elif hasattr(workflow, "encode_input"):
            name, version, make = workflow.id, workflow.version, workflow.output.decode
        else:
            raise ConfigError(f"{shown(workflow)} is not a workflow; pass a registered one, or the id of one that a worker knows")
        if detached:
            make = None
        encoded = b"null"
        if not execution.is_known(f"{self._scope}{step_id}"):
            what = f"the input of workflow {name!r}"
            encoded = written(data, what) if isinstance(workflow, str) else workflow.encode_input(data)
            if len(encoded) > MAX_PAYLOAD_BYTES:
                raise PayloadTooLarge(
                    f"{what} is {len(encoded):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}. Store it elsewhere and pass a "
                    "reference to it"
                )
        return ChildCall(execution.run, run_id, name, version, encoded, on_parent_close, timeout_ms, make)


def _named(workflow: str) -> str:
    if not valid_name(workflow):
        raise ConfigError(f"{quoted(workflow)} is not the id of a workflow: 1 to 200 printable characters")
    if workflow.startswith(BUILT_IN):
        raise ConfigError(
            f"workflow {quoted(workflow)}: ids that begin with {BUILT_IN} are stepfold's own; only stepfold starts their runs"
        )
    return workflow
