"""Queries: functions of a workflow that read the state of a run, for whoever asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import orjson
from pydantic import ValidationError

from ..errors import ConfigError, ErrorInfo, InputInvalid, ValueInvalid
from ..values.annotations import annotations_of, name_of, return_annotation
from ..values.codec import Codec, Written, describe, limited
from ..values.digits import loads
from ..values.names import valid_name
from .context import Context

_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments of one call of a query, behind the context."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Query:
    """A function that was registered as a query. `name`: that of the function; `answer`: the codec of its result.

    Raises ConfigError for a function that cannot be one.
    """

    def __init__(self, fn: Callable[..., Any], workflow_id: str) -> None:
        name = getattr(fn, "__name__", None)
        if not callable(fn) or not valid_name(name):
            raise ConfigError(f"a query of workflow {workflow_id!r} must be a function with a name: {fn!r} is not one")
        self.fn = fn
        self.name = name
        self.words = f"query {name!r} of workflow {workflow_id!r}"
        first, *others = inspect.signature(fn).parameters.values() or (None,)
        if first is None or first.kind is inspect.Parameter.KEYWORD_ONLY or any(one.kind in _MANY for one in (first, *others)):
            raise ConfigError(
                f"{self.words}: {name_of(fn)} must take the context, and its other arguments by name: "
                f"`async def {name}(ctx: Context[...], limit: int) -> ...`"
            )
        self._signature = inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in others])
        annotations = annotations_of(fn, *(one.name for one in others))
        self._codecs = {
            one.name: Codec(annotations.get(one.name, Any), f"argument {one.name!r} of {self.words}") for one in others
        }
        self.answer = Codec(return_annotation(fn), f"the answer of {self.words}", name_of(fn))

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """The arguments as the function gets them: copies, validated as its annotations say. Raises InputInvalid."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            said = f"{self.words}: {error}; it is {self.name}{self._signature}"
            raise InputInvalid(said, [{"msg": str(error)}]) from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = self._own(name, value)
        return Arguments(bound.args, bound.kwargs)

    def _own(self, name: str, value: Any) -> Any:
        codec = self._codecs[name]
        try:
            if type(value) is Written:
                return codec.decode(orjson.loads(codec.accept_json(loads(limited(value.json)))))
            return codec.decode(orjson.loads(codec.accept(value)))
        except ValidationError as error:
            said = f"argument {name!r} of {self.words} is not valid: {describe(error)}"
            raise InputInvalid(said, error.errors(include_url=False)) from error
        except Exception as error:  # the user's types may raise anything
            why = str(error) if isinstance(error, ValueInvalid) else str(ErrorInfo.of(error))
            raise InputInvalid(f"argument {name!r} of {self.words} is not valid: {why}", [{"msg": why}]) from error

    async def ask(self, ctx: Context[Any, Any], arguments: Arguments) -> Any:
        """The result of the function, awaited if it is a coroutine."""
        value = self.fn(ctx, *arguments.args, **arguments.kwargs)
        return await value if inspect.iscoroutine(value) else value

    def encode(self, value: Any) -> bytes:
        """The answer as JSON. Raises ValueInvalid."""
        try:
            return self.answer.encode(value)
        except ValueInvalid as error:
            raise ValueInvalid(f"the answer of {self.words} cannot be written as JSON: {error}") from error


class QueryTable:
    """The queries of one workflow, by name."""

    def __init__(self, workflow_id: str) -> None:
        self._workflow_id = workflow_id
        self._by_name: dict[str, Query] = {}

    def add(self, fn: Callable[..., Any]) -> None:
        """Register a function. Raises ConfigError for one that cannot be a query, and for a name that is taken."""
        query = Query(fn, self._workflow_id)
        if query.name in self._by_name:
            raise ConfigError(f"{query.words} is registered twice; give one of the functions another name")
        self._by_name[query.name] = query

    def find(self, query: str | Callable[..., Any]) -> Query | None:
        """The query of this name, or of this function; None if there is none."""
        known = self._by_name.get(query if isinstance(query, str) else cast(str, getattr(query, "__name__", "")))
        return known if known is None or isinstance(query, str) or known.fn is query else None

    def names(self) -> list[str]:
        """The names of all queries, in order."""
        return sorted(self._by_name)
