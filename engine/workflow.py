"""Workflows as they are registered: a handler with an id, a version and typed input and output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, get_args, get_origin

from pydantic import ValidationError
from typing_extensions import TypeVar

from .codec import Codec, annotations_of, describe, dumps, limited
from .context import Context
from .errors import ConfigError, InputInvalid
from .execution import Execution
from .step import Step, StepPorts

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

DEFAULT_VERSION = "1"


class Workflow(Generic[In, Out]):
    """A registered workflow. Start it with `client.start_workflow(workflow, data)`."""

    def __init__(
        self, handler: Callable[[Any, Any], Coroutine[Any, Any, Out]], id: str, version: str, input_schema: Any = None
    ) -> None:
        name = getattr(handler, "__qualname__", repr(handler))
        if not inspect.iscoroutinefunction(handler):
            raise ConfigError(f"workflow {id!r}: {name} is not an async function; write `async def {name}(ctx, step)`")
        if len(inspect.signature(handler).parameters) != 2:
            raise ConfigError(
                f"workflow {id!r}: {name} must take two arguments: `async def {name}(ctx: Context[...], step: Step)`"
            )
        for what, value in (("id", id), ("version", version)):
            if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
                raise ConfigError(f"workflow {id!r}: {what} {value!r} must be 1 to 200 printable characters")
        self.handler = handler
        self.id = id
        self.version = version
        annotations = annotations_of(handler)
        self.input = Codec(
            _input_annotation(handler, annotations) if input_schema is None else input_schema, f"the input of workflow {id!r}"
        )
        self.output = Codec(annotations.get("return", Any), f"the result of workflow {id!r}")

    def __repr__(self) -> str:
        return f"<Workflow {self.id!r} version {self.version!r}>"

    def encode_input(self, data: Any) -> bytes:
        """The input as JSON. Raises InputInvalid."""
        try:
            return self.input.accept(data)
        except ValidationError as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} is not valid: {describe(error)}", error.errors(include_url=False)
            ) from error
        except (TypeError, ValueError) as error:
            raise InputInvalid(f"the input of workflow {self.id!r} is not JSON: {error}", [{"msg": str(error)}]) from error

    def decode_input(self, value: Any) -> Any:
        """The typed input for recorded JSON. Raises InputInvalid."""
        try:
            return self.input.decode(value)
        except ValidationError as error:
            raise InputInvalid(
                f"the input of workflow {self.id!r} is not valid: {describe(error)}", error.errors(include_url=False)
            ) from error

    def start(self, execution: Execution, ports: StepPorts, ctx_ext: Callable[[str], object]) -> Coroutine[Any, Any, Out]:
        """The handler's coroutine for one run. Raises InputInvalid inside it, so that the run fails."""
        return self._run(execution, ports, ctx_ext)

    async def _run(self, execution: Execution, ports: StepPorts, ctx_ext: Callable[[str], object]) -> Out:
        data = self.decode_input(execution.run.input)
        context: Context[Any] = Context(execution, data, ctx_ext(execution.run.id))
        return await self.handler(context, Step(execution, ports))


def _input_annotation(handler: Callable[..., Any], annotations: dict[str, Any]) -> Any:
    first = next(iter(inspect.signature(handler).parameters))
    annotation = annotations.get(first, Any)
    if annotation in (Context, Any):
        return Any
    if get_origin(annotation) is Context:
        return get_args(annotation)[0]
    raise ConfigError(f"{handler.__qualname__}: its first argument is annotated {annotation!r}; write `ctx: Context[YourModel]`")


class Registry:
    """The workflows of one client, by id and version; the version registered last is the one that new runs get."""

    def __init__(self) -> None:
        self._by_id: dict[str, dict[str, Workflow[Any, Any]]] = {}
        self.on_change: list[Callable[[], None]] = []

    def add(self, workflow: Workflow[Any, Any]) -> None:
        """Raises ConfigError when another handler is registered under this id and version."""
        versions = self._by_id.setdefault(workflow.id, {})
        if workflow.version in versions:
            there = versions[workflow.version].handler.__qualname__
            raise ConfigError(
                f"workflow {workflow.id!r} version {workflow.version!r} is registered twice: {there} and "
                f"{workflow.handler.__qualname__}; give one another id or version"
            )
        versions[workflow.version] = workflow
        for tell in self.on_change:
            tell()

    def find(self, workflow_id: str, version: str | None) -> Workflow[Any, Any] | None:
        """The workflow; without a version, the one registered last."""
        versions = self._by_id.get(workflow_id)
        if not versions:
            return None
        return versions[next(reversed(versions))] if version is None else versions.get(version)

    def __iter__(self) -> Iterator[Workflow[Any, Any]]:
        return (workflow for versions in self._by_id.values() for workflow in versions.values())


def plain_input(data: Any, what: str) -> bytes:
    """JSON bytes of data whose model is not here. Raises InputInvalid when it is not JSON."""
    try:
        dump = getattr(data, "model_dump_json", None)
        return limited(dump(by_alias=True).encode()) if dump is not None else dumps(data)
    except (TypeError, ValueError) as error:
        raise InputInvalid(f"{what} is not JSON: {error}", [{"msg": str(error)}]) from error
