"""Evaluates annotations of functions, in the scope where the function was defined, and only the annotations that a caller needs.

So other parameters may be annotated with names that exist only for type checkers (imported under `if TYPE_CHECKING:`).
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import wraps
from types import CellType, CodeType, FrameType, FunctionType, MethodType
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, cast, get_args, get_origin
from weakref import ref

from ..errors import ConfigError

T = TypeVar("T")


def by_function(compute: Callable[[Callable[..., Any]], T]) -> Callable[[Callable[..., Any]], T]:
    """Cache the result of `compute` for each function, for as long as the function lives."""
    remembered: dict[int, tuple[ref[Any], T]] = {}  # by id: a third of the time of a WeakKeyDictionary

    @wraps(compute)
    def look_up(fn: Callable[..., Any]) -> T:
        if isinstance(fn, MethodType):  # each access makes a new one
            fn = fn.__func__
        number = id(fn)
        known = remembered.get(number)
        if known is not None and known[0]() is fn:
            return known[1]
        found = compute(fn)

        def forget(dead: ref[Any]) -> None:
            known = remembered.get(number)
            if known is not None and known[0] is dead:
                del remembered[number]

        with suppress(TypeError):  # an object that nothing refers to weakly
            remembered[number] = ref(fn, forget), found
        return found

    return look_up


def unwrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that decorators have wrapped, by `__wrapped__`.

    Unlike `inspect.unwrap` it asks no `__getattr__`: a proxy or a mock may answer with another of its kind, for ever.
    """
    seen = {id(fn)}
    while True:
        held = fn.__func__ if isinstance(fn, MethodType) else fn
        if type(held) is FunctionType:  # a tenth of the time
            has_more = "__wrapped__" in held.__dict__
        else:
            has_more = inspect.getattr_static(held, "__wrapped__", None) is not None
        if not has_more:
            return fn
        fn = cast(Any, held).__wrapped__
        if id(fn) in seen:
            return fn
        seen.add(id(fn))


def return_annotation(fn: Callable[..., Any]) -> Any:
    """The type of the result of `fn`, after awaiting; Any without an annotation. Raises ConfigError."""
    if not inspect.isroutine(fn) and not isinstance(fn, type):  # a partial or an object with __call__ annotates its fields
        fn = getattr(fn, "func", getattr(fn, "__call__", fn))  # noqa: B004  # the method itself is wanted
    annotation = annotations_of(fn, "return").get("return", Any)
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Awaitable):  # a plain function that returns an awaitable
        return (get_args(annotation) or (Any,))[-1]
    return annotation


def annotations_of(fn: Callable[..., Any], *names: str) -> dict[str, Any]:
    """The annotations of these names, evaluated where the function was defined; names without an annotation are left out.

    A mock or a proxy, which answers with anything, has no annotations. Raises ConfigError if an annotation cannot be evaluated,
    for example for a name that does not exist at run time.
    """
    try:
        raw = _raw(fn)
    except Exception as error:  # Python 3.14 evaluates annotations here
        raise ConfigError(f"{said(fn)} cannot be evaluated: {type(error).__name__}: {error}") from error
    wanted = {name: raw[name] for name in names if name in raw}
    if not any(_is_open(annotation) for annotation in wanted.values()):
        return wanted
    known = _enclosing(fn)
    while True:
        holder = type("annotations", (), {"__annotations__": wanted, "__module__": getattr(fn, "__module__", __name__)})
        try:
            return typing.get_type_hints(holder, getattr(fn, "__globals__", {}), known, include_extras=True)
        except NameError as error:
            missing = str(error.name or "")
            found = _in_callers(fn, missing) if missing not in known else None
            if found is None:
                raise ConfigError(f"{said(fn)}: {error}; {_advice(fn, missing)}") from error
            known[missing] = found[0]
        except Exception as error:
            raise ConfigError(f"{said(fn)} cannot be evaluated: {type(error).__name__}: {error}") from error


if sys.version_info >= (3, 14):
    import annotationlib

    def _raw(fn: Callable[..., Any]) -> dict[str, Any]:
        if not inspect.isroutine(getattr(fn, "__annotate__", None)):
            return _held(fn)
        return annotationlib.get_annotations(fn, format=annotationlib.Format.FORWARDREF)

else:

    def _raw(fn: Callable[..., Any]) -> dict[str, Any]:
        return _held(fn)


def _held(fn: Callable[..., Any]) -> dict[str, Any]:
    found: Any = getattr(fn, "__annotations__", None)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def said(fn: Callable[..., Any]) -> str:
    """How error messages name the annotations of a function."""
    return f"the annotations of {name_of(fn)}"


def name_of(fn: Callable[..., Any]) -> str:
    """How error messages name a function."""
    return str(getattr(fn, "__qualname__", repr(fn)))


def _is_open(annotation: Any) -> bool:
    """Whether the annotation contains a name that is not yet looked up."""
    if isinstance(annotation, str | ForwardRef):
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return False
    args = get_args(annotation)
    return any(_is_open(one) for one in (args[:1] if origin is Annotated else args))


_UNSET = CellType()
"""The cell of a closure's name that has no value yet."""


def _enclosing(fn: Callable[..., Any]) -> dict[str, Any]:
    cells = getattr(fn, "__closure__", None) or ()
    code = getattr(fn, "__code__", None)
    names: tuple[str, ...] = code.co_freevars if isinstance(code, CodeType) else ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=False) if cell != _UNSET}


def _in_callers(fn: Callable[..., Any], name: str) -> tuple[Any] | None:
    """The value of a local name in the functions that enclose the definition of `fn`, as a tuple of one, if they are running."""
    outer = set(_outer_names(fn))
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # inspect's way reads source files
    while frame is not None:
        if frame.f_code.co_qualname in outer and frame.f_globals is getattr(fn, "__globals__", None):
            local = frame.f_locals
            if name in local:
                return (local[name],)
        frame = frame.f_back
    return None


def _outer_names(fn: Callable[..., Any]) -> Iterator[str]:
    """The qualified names of the functions that enclose the definition of `fn`, from the inside out."""
    name = str(getattr(fn, "__qualname__", ""))
    while ".<locals>." in name:
        name = name.rpartition(".<locals>.")[0]
        yield name


def _advice(fn: Callable[..., Any], missing: str) -> str:
    if any(missing in _locals_of(fn, outer) for outer in _outer_names(fn)):
        return f"{missing} is defined inside a function: define it at module level, or give a workflow input_schema={missing}"
    return "types must be importable at run time, not only under TYPE_CHECKING"


def _locals_of(fn: Callable[..., Any], outer: str) -> frozenset[str]:
    """The local names of the function `outer`, which encloses `fn`; empty if it cannot be found from its module."""
    top, *inner = outer.split(".<locals>.")
    found: Any = fn.__globals__ if hasattr(fn, "__globals__") else {}
    for number, name in enumerate(top.split(".")):
        found = found.get(name) if number == 0 else getattr(found, name, None)
    code: Any = getattr(unwrapped(found) if callable(found) else None, "__code__", None)
    for name in inner:
        inside = code.co_consts if isinstance(code, CodeType) else ()
        code = next((one for one in inside if isinstance(one, CodeType) and one.co_name == name), None)
    return frozenset(code.co_varnames + code.co_cellvars) if isinstance(code, CodeType) else frozenset()
