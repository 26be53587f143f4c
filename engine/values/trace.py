"""The W3C trace context of a request, as a caller gave it. Pure.

Anyone may send one, so `of` is total: a context that is not valid counts as none, and never refuses the request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_STATE_CHARS = 512
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?", re.ASCII)
_STATE = re.compile(rf"[ -~\t]{{1,{MAX_STATE_CHARS}}}", re.ASCII)


class Trace(NamedTuple):
    """`parent` and `state` as the headers `traceparent` (of version 00) and `tracestate` have them."""

    parent: str
    state: str | None = None

    @classmethod
    def of(cls, parent: object, state: object = None) -> Trace | None:
        """The context of two values of any type; None without a valid parent. A later version counts as far as 00 goes."""
        fits = _PARENT.fullmatch(parent) if type(parent) is str else None
        if fits is None or (fits[1] == "00" and fits[5] is not None):
            return None
        known = type(state) is str and _STATE.fullmatch(state) is not None
        return cls(f"00-{fits[2]}-{fits[3]}-{fits[4]}", f"{state}" if known else None)

    @property
    def fields(self) -> dict[str, str]:
        """As fields of a record."""
        return {"traceparent": self.parent} | ({} if self.state is None else {"tracestate": self.state})
