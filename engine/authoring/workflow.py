"""Registered workflows: a handler with an id, a version, and typed input and output."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, get_args, get_origin

import orjson
from pydantic import ValidationError
from typing_extensions import TypeVar

from ..errors import ConfigError, InputInvalid, ValueInvalid
from ..replay.execution import Execution
from ..values.annotations import annotations_of, name_of
from ..values.codec import Codec, Written, describe, dumps, limited
from ..values.digits import loads
from ..values.names import quoted, valid_name
from ..values.same import shown
from .context import Context
from .query import QueryTable
from .step import Step, StepPorts

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)
P = ParamSpec("P")
T = TypeVar("T")

Keep = Callable[[Context[Any, Any]], None]
"""Gets the context of a run when its code begins."""

DEFAULT_VERSION = "1"
_NUMBER = re.compile("([0-9]+)")

logger = logging.getLogger("stepfold.worker")


class Workflow(Generic[In, Out]):
    """A registered workflow. Start it with `client.start_workflow(workflow, data)`."""

    def __init__(
        self,
        handler: Callable[[Any, Any], Coroutine[Any, Any, Out]],
        id: str,
        version: str,
        input_schema: Any = None,
        state: Callable[[], Any] | None = None,
    ) -> None:
        name = name_of(handler)
        if not inspect.iscoroutinefunction(handler):
            raise ConfigError(f"workflow {id!r}: {name} is not an async function; write `async def {name}(ctx, step)`")
        if not _takes_two(handler):
            raise ConfigError(
                f"workflow {id!r}: {name} must take two arguments by position: `async def {name}(ctx: Context[...], step: Step)`"
            )
        for what, value in (("id", id), ("version", version)):
            if not valid_name(value):
                raise ConfigError(f"workflow {quoted(id)}: {what} {quoted(value)} must be 1 to 200 printable characters")
        self.handler = handler
        self.id = id
        self.version = version
        first = next(iter(inspect.signature(handler).parameters))
        annotations = annotations_of(handler, "return") if input_schema is not None else annotations_of(handler, first, "return")
        self.input = Codec(
            _input_annotation(handler, annotations.get(first, Any)) if input_schema is None else input_schema,
            f"the input of workflow {id!r}",
        )
        self.output = Codec(annotations.get("return", Any), f"the result of workflow {id!r}", name)
        _check_state(id, name, annotations.get(first), state)
        self.state: Callable[[], Any] = SimpleNamespace if state is None else state
        self.queries = QueryTable(id)

    def __repr__(self) -> str:
        return f"<Workflow {self.id!r} version {self.version!r}>"

    def query(self, fn: Callable[Concatenate[Context[In, Any], P], T]) -> Callable[Concatenate[Context[In, Any], P], T]:
        """Register a function as a query: `client.inspect(run_id).query("its name", ...)` replays the run, then calls it.

        It gets the run's context and the arguments of the call, and only reads: it may be async, and may not wait. Its
        annotations type arguments and answer. Raises ConfigError.
        """
        self.queries.add(fn)
        return fn

    def encode_input(self, data: Any) -> bytes:
        """The input as JSON. Raises InputInvalid.

        If the model adds other values each time (`default_factory=uuid4`), a dict is recorded as given, so that a repeated start
        has the same input.
        """
        try:
            if type(data) is Written:
                return self.encode_json(loads(limited(data.json)))
            encoded = self.input.accept(data)
            return self._as_given(data) or encoded if self.input.makes_anew and isinstance(data, dict) else encoded
        except ValidationError as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} is not valid: {describe(error)}", error.errors(include_url=False)
            ) from error
        except (TypeError, ValueError) as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} cannot be recorded as JSON: {error}", [{"msg": str(error)}]
            ) from error

    def encode_json(self, value: Any) -> bytes:
        """The input as JSON, for JSON that another program wrote, as `digits.loads` returns it. Raises InputInvalid."""
        try:
            return self.input.accept_json(value)
        except ValidationError as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} is not valid: {describe(error)}", error.errors(include_url=False)
            ) from error
        except ValueInvalid as error:
            raise InputInvalid(f"the input of workflow {self.id!r}: {error}", [{"msg": str(error)}]) from error

    def encode_result(self, value: Any) -> bytes:
        """The result of the handler as JSON. Raises ValueInvalid."""
        try:
            return self.output.encode(value)
        except ValueInvalid as error:
            raise ValueInvalid(f"the result of workflow {self.id!r} cannot be recorded as JSON: {error}") from error

    def _as_given(self, data: Any) -> bytes | None:
        try:
            encoded = dumps(data)
            self.input.decode(orjson.loads(encoded))
        except (TypeError, ValueError):  # plain JSON cannot hold it, or the model cannot read it from that
            return None
        return encoded

    def decode_input(self, value: Any) -> Any:
        """The typed input for recorded JSON. Raises InputInvalid."""
        try:
            return self.input.decode(value)
        except ValidationError as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} is not valid: {describe(error)}", error.errors(include_url=False)
            ) from error

    def completed_input(self, value: Any) -> bytes | None:
        """The recorded input as the model completes it, as JSON; None if the record holds all of it.

        A model's defaults or validators may make another value each time (`default_factory=uuid4`). If another service has
        started the run, no record holds that value yet. Raises InputInvalid for input that does not validate or cannot be
        written.
        """
        if not self.input.makes_anew:
            return None
        encoded = self.encode_input(self.decode_input(value))
        return None if orjson.loads(encoded) == value else encoded

    def start(
        self, execution: Execution, ports: StepPorts, ctx_ext: Callable[[str], object], keep: Keep | None = None
    ) -> Coroutine[Any, Any, Out]:
        """The handler's coroutine for one run. The coroutine raises InputInvalid for bad input, so that the run fails."""
        return self._run(execution, ports, ctx_ext, keep)

    async def _run(self, execution: Execution, ports: StepPorts, ctx_ext: Callable[[str], object], keep: Keep | None) -> Out:
        data = self.decode_input(execution.run.input)
        context: Context[Any, Any] = Context(execution, data, ctx_ext(execution.run.id), self.state)
        if keep is not None:
            keep(context)
        return await self.handler(context, Step(execution, ports))


def _takes_two(handler: Callable[..., Any]) -> bool:
    signature = inspect.signature(handler)
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return len(signature.parameters) == 2


def _check_state(id: str, name: str, annotation: Any, state: object) -> None:
    if state is not None and not callable(state):
        raise ConfigError(
            f"workflow {id!r}: state={shown(state)} is not a class; give the class of ctx.state, such as state=Cart"
        )
    kinds = get_args(annotation)[1:] if get_origin(annotation) is Context else ()
    if state is None and kinds and kinds[0] not in (Any, SimpleNamespace):
        of = getattr(kinds[0], "__name__", str(kinds[0]))
        raise ConfigError(
            f"workflow {id!r}: {name} takes a Context with a state of {of}: write @client.workflow(..., state={of})"
        )


def _input_annotation(handler: Callable[..., Any], annotation: Any) -> Any:
    if annotation in (Context, Any):
        return Any
    if get_origin(annotation) is Context:
        return get_args(annotation)[0]
    raise ConfigError(f"{handler.__qualname__}: its first argument is annotated {annotation!r}; write `ctx: Context[YourModel]`")


def version_order(version: str) -> tuple[Any, ...]:
    """The sort key of a version: "2" is below "10", "1.9" below "1.10", and "1.10" below "1.10a"."""
    return (*(int(part) if number else part for part, number in _parts(version)), version)


def _parts(version: str) -> Iterator[tuple[str, bool]]:
    return ((part, index % 2 == 1) for index, part in enumerate(_NUMBER.split(version)))


class Registry:
    """The workflows of one client, by id and version. A run that is started without a version gets the highest."""

    def __init__(self) -> None:
        self._by_id: dict[str, dict[str, Workflow[Any, Any]]] = {}
        self._highest: dict[str, Workflow[Any, Any]] = {}
        self._told: set[str] = set()
        self.on_change: list[Callable[[], None]] = []

    def add(self, workflow: Workflow[Any, Any]) -> None:
        """Register a workflow. Raises ConfigError if this id and version are taken."""
        versions = self._by_id.setdefault(workflow.id, {})
        if workflow.version in versions:
            there = versions[workflow.version].handler.__qualname__
            raise ConfigError(
                f"workflow {workflow.id!r} version {workflow.version!r} is registered twice: {there} and "
                f"{workflow.handler.__qualname__}; give one of them another id or version"
            )
        versions[workflow.version] = workflow
        self._highest[workflow.id] = max(versions.values(), key=lambda one: version_order(one.version))
        for tell in self.on_change:
            tell()

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None:
        """The workflow, or None; without a version, the highest one. Warns once per id if there are several versions."""
        versions = self._by_id.get(workflow_id)
        if not versions:
            return None
        if version is not None:
            return versions.get(version)
        highest = self._highest[workflow_id]
        if len(versions) > 1 and workflow_id not in self._told:
            self._told.add(workflow_id)
            logger.warning(
                "a run of workflow %r was started without a version and gets %r, the highest version registered here: %s. A "
                "worker with other versions would choose another one: start the run with version=",
                workflow_id,
                highest.version,
                ", ".join(map(repr, sorted(versions, key=version_order))),
                extra={"workflow": workflow_id},
            )
        return highest

    def __iter__(self) -> Iterator[Workflow[Any, Any]]:
        return (workflow for versions in self._by_id.values() for workflow in versions.values())
