"""The actions that a run offers to people now, for all who show it, from its folded state. Pure.

They are an offer: a request counts only if the fold accepts it (`core/fold.py` `_request`, and the rule of each record).
"""

from __future__ import annotations

from ..core.state import RunState


def actions(run: RunState) -> frozenset[str]:
    """The requests that the run accepts now, in words: "signal", "cancel", and those to its open operations."""
    if run.ended:
        return frozenset()
    allowed = {"signal"} if run.cancel_requested else {"signal", "cancel"}
    return frozenset(allowed.union(*(op.actions for op in run.open.values())))
