"""The families of records, with the fields that all records of a family have. Pure.

the fields of each type    lifecycle.py (start, cancellation, quarantine, end, claims) and operations/*.py
when a record counts       fold.py; `counts_if` of each type says it in words
all types in one list      events.py; tests/unit/records.txt lists all fields of all types
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from ..values.times import utc
from ..values.words import Beside, sender

Tone = Literal["plain", "trouble", "failure", "success", "message"]

FORMAT = 2
"""The newest record format that this code can judge; the claims of its workers name it."""
PLAIN = 1
"""The format of records that readers of every format judge alike: requests, and decisions that format 1 knew."""


def _or_none(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


PASSED_OVER = WrapValidator(_or_none)
"""Marks an optional field that was added later. A value of a wrong type counts as absent and never makes the record void, since
older readers, which do not know the field, accept the record."""


Words = Annotated[str | None, PASSED_OVER]
"""A text for people, which decides nothing."""
Clock = Annotated[int | None, PASSED_OVER]
"""A time by the worker's clock, ms since 1970, which decides nothing."""


class ErrorModel(BaseModel):
    """An exception: `type` is the class's name for builtins, `module.Class` otherwise."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str
    traceback: str | None = None
    step_id: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class Base(BaseModel):
    """The fields of every event, as in the record. `at`: the writer's clock, milliseconds since 1970, UTC."""

    model_config = ConfigDict(extra="allow")

    never_ends: ClassVar[bool] = False
    """Whether an event of this type neither ends its run nor affects whether another event may end it: a reader that waits for
    the end can skip it."""

    comes_early: ClassVar[bool] = False
    """Whether the fold keeps a request of this type for a run that has not started."""

    counts_if: ClassVar[str] = ""
    """The precondition of an event of this type beyond the rules of its family, in words for readers of the topic."""

    tone: ClassVar[Tone] = "plain"
    """How a display sets off events of this type."""

    counted_as: ClassVar[Literal["steps_completed", "attempts_failed", "attempts_lost"] | None] = None
    """The number of a run that an event of this type raises by one."""

    when_refused: ClassVar[str] = ""
    """The reason to tell the sender of a request that came through an inbox and that the rule of this type refuses; "": tell
    nobody."""

    v: int = PLAIN
    at: int
    offset: int | None = Field(default=None, exclude=True, description="Place in the partition; not part of the value.")
    timestamp: int | None = Field(
        default=None, exclude=True, description="The log's time of the record, in ms; not part of the value."
    )

    @property
    def time(self) -> datetime | None:
        """The log's time of the record as a datetime in UTC; None if it is not known."""
        return None if self.timestamp is None else utc(self.timestamp)

    def detail(self, beside: Beside) -> str:
        """The content beyond type and step id, in words for people; "" if there is none."""
        return ""


class Place(BaseModel):
    """A place in an inbox. `inbox` is the identity of the inbox: one that was deleted and made again has another identity."""

    model_config = ConfigDict(extra="allow", strict=True)

    inbox: str
    partition: int
    offset: int


class Cause(BaseModel):
    """The position of a message at its source: the record that caused it, and its number among those that this record caused."""

    model_config = ConfigDict(extra="allow", strict=True)

    partition: int
    offset: int
    n: int


class ParentModel(BaseModel):
    """The operation that started a run. `start`: the digest of the request that started the parent, 16 hexadecimal digits."""

    model_config = ConfigDict(extra="allow")

    run_id: str
    start: str
    step_id: str
    detached: bool = False


class Request(Base):
    """A record from outside, under no claim. `request` makes a repeat harmless for as long as the partition remembers it. These
    make it harmless for ever: `from`, the place of a request that came through an inbox; `cause`, the position of a message of
    another run. `by`: who asked, as the asker says it.
    """

    run_id: str
    request: str
    from_: Annotated[Place | None, Field(alias="from"), PASSED_OVER] = None
    cause: Annotated[Cause | None, PASSED_OVER] = None
    by: Words = None

    def sender(self) -> str:
        """The sender and why, in words; "" if there is neither. A cancellation says why among its details."""
        return sender(self.by, getattr(self, "why", None))


class OperationRequest(Request):
    """A request about one operation."""

    step_id: str


class Decision(Base):
    """A record of the owner, under its claim. The first decision of a run that was started without version carries `version`."""

    is_result: ClassVar[bool] = False
    """Whether the record carries a value of the user's code: if the log refuses it as too large, the attempt or the run fails."""

    passes_on: ClassVar[bool] = False
    """Whether the value goes to another run in a message, which must fit into the log, too."""

    run_id: str
    claim: int
    version: str | None = None


class OperationDecision(Decision):
    """A decision about one operation. `step_id`: its path through its scopes, numbered when repeated (`charge#2`)."""

    never_ends = True

    step_id: str


class FromCode(OperationDecision):
    """A decision that says where the code stands. `at_line`: the file and line of the code that asked for the operation."""

    at_line: Words = None
