"""The families of records, and what all of a family have. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from ..values.times import utc

FORMAT = 2
"""The newest record format that this code understands; its claims say so."""
PLAIN = 1
"""What readers of every format judge alike: requests, and the decisions that format 1 knew."""


def _or_none(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


PASSED_OVER = WrapValidator(_or_none)
"""Marks an optional field that came later: no reader finds a record void for it, for those who do not know it could not. What is
not of its type counts as absent."""


class ErrorModel(BaseModel):
    """An exception: `type` is the class's name for builtins, `module.Class` otherwise."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str
    traceback: str | None = None
    step_id: str | None = None


class Base(BaseModel):
    """What every event has. Its fields are as in the record: `at` is the writer's clock, milliseconds since 1970, UTC."""

    model_config = ConfigDict(extra="allow")

    never_ends: ClassVar[bool] = False
    """Whether no event of this type ends its run, nor decides whether another may: who waits for the end need not look at it."""

    comes_early: ClassVar[bool] = False
    """Whether such a request is kept where its run has not begun."""

    v: int = PLAIN
    at: int
    offset: int | None = Field(default=None, exclude=True, description="Place in the partition; not part of the value.")
    timestamp: int | None = Field(
        default=None, exclude=True, description="The log's time of the record, in ms; not part of the value."
    )

    @property
    def time(self) -> datetime | None:
        """The log's time of the record, UTC, as all times that are no part of a record are given; None where it is not known."""
        return None if self.timestamp is None else utc(self.timestamp)


class Place(BaseModel):
    """A place of an inbox: `inbox` names it for ever, so that one that was deleted and made again has another name."""

    model_config = ConfigDict(extra="allow", strict=True)

    inbox: str
    partition: int
    offset: int


class Request(Base):
    """From outside, under no claim. `request` makes a repeat harmless, for as long as it is remembered; `from`, of a request that
    was found in an inbox, does so for ever.
    """

    run_id: str
    request: str
    from_: Annotated[Place | None, Field(alias="from"), PASSED_OVER] = None


class Decision(Base):
    """The owner's, under its claim. The first decision of a run that was started without a version carries `version`."""

    run_id: str
    claim: int
    version: str | None = None


class StepDecision(Decision):
    """`step_id`: the path of the step, sleep or wait through its scopes, numbered when repeated (`charge#2`)."""

    never_ends = True

    step_id: str
