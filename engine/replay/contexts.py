"""Contexts for users' code: no run or attempt sees the changes that another makes to its decimal context. Pure.

`contextvars.copy_context` copies the variables, not the objects in them. The decimal context is such an object, and
`decimal.getcontext().prec = 5` changes it in place, for everybody whose context was copied from the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from decimal import DefaultContext, getcontext, setcontext


def contexts() -> Callable[[], Context]:
    """A maker of contexts: copies of the current one, each with a decimal context of its own, set as the current one is now.

    Copying a decimal context costs ten times as much as all else here. So if the current one is set as Python's default, the
    copies have none: Python makes it where it is first used.
    """
    current = getcontext()
    here = copy_context()
    decimals = current.copy()
    decimals.clear_flags()
    default = DefaultContext.copy()
    default.clear_flags()
    if repr(decimals) == repr(default):
        bare = Context()
        for variable, value in here.items():
            if value is not current or variable.name != "decimal_context":
                bare.run(variable.set, value)
        return bare.copy

    def new() -> Context:
        own = here.copy()
        own.run(setcontext, decimals.copy())
        return own

    return new
