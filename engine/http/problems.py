"""Errors as problem details (RFC 9457): one table for the whole error tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from .. import errors
from ..errors import InputInvalid, StepfoldError

MEDIA_TYPE = "application/problem+json"


class ProblemDetail(BaseModel):
    """A problem detail. `type`: a stable URN; `code`: its last part; `errors`: each wrong part of the request by its JSON
    pointer; `instance`: the path of the request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, str]] | None = None
    instance: str | None = None


class HttpRefusal(Exception):
    """Raised to answer a request with a problem. `headers`: of the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = ProblemDetail(
            type=f"urn:stepfold:{code}",
            title=code.replace("-", " ").capitalize(),
            status=status,
            detail=detail,
            code=code,
            errors=errors,
        )
        self.headers = headers or {}


STATUS: dict[type[StepfoldError], int] = {
    errors.ConfigError: 503,  # an error of the server's setup: routes check the names in requests
    errors.LogUnavailable: 503,
    errors.PayloadTooLarge: 413,
    errors.InputInvalid: 422,
    errors.ValueInvalid: 422,
    errors.RunNotFound: 404,
    errors.RunEnded: 409,
    errors.RunAlreadyExists: 409,
    errors.WorkflowFailed: 422,
    errors.WorkflowCancelled: 422,
    errors.CallbackFailed: 500,
    errors.CallbackTimedOut: 500,
    errors.CallbackIdInvalid: 404,
    errors.ProjectionFailed: 503,
    errors.NonDeterminism: 500,
    errors.StepError: 500,
    StepfoldError: 500,
}
"""The status of an error: that of the nearest of its base classes."""


def refusal(error: Exception) -> HttpRefusal:
    """The answer to an error that a handler raised."""
    if isinstance(error, HttpRefusal):
        return error
    if isinstance(error, ValidationError):
        return invalid(error, "the request")
    if isinstance(error, InputInvalid):
        return HttpRefusal(422, _code(type(error)), str(error), errors=_pointers(error.errors, "/input"))
    if isinstance(error, StepfoldError):
        status = next(STATUS[base] for base in type(error).__mro__ if base in STATUS)
        return HttpRefusal(status, _code(type(error)), str(error), headers={"Retry-After": "1"} if status == 503 else None)
    return HttpRefusal(500, "fault", "this is a bug in stepfold; the server's log has the traceback")


def _code(error: type[StepfoldError]) -> str:
    """The code of an error, such as `run-not-found` for RunNotFound."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", error.__name__).lower()


def invalid(error: ValidationError, what: str) -> HttpRefusal:
    """The answer to a query or body that its model rejects. It does not repeat the values: they may be secret."""
    errors = _pointers(error.errors(include_url=False, include_input=False, include_context=False), "")
    said = "; ".join(f"{one['pointer'] or 'the whole'}: {one['detail']}" for one in errors[:5])
    return HttpRefusal(422, "invalid", f"{what} is not valid: {said}", errors=errors)


def _pointers(errors: Iterable[Any], within: str) -> list[dict[str, str]]:
    """pydantic's errors as JSON pointers and messages."""
    return [{"pointer": within + "".join(map(_step, one.get("loc", ()))), "detail": one.get("msg", "")} for one in errors]


def _step(part: object) -> str:
    return f"/{str(part).replace('~', '~0').replace('/', '~1')}"


def answer(refused: HttpRefusal, instance: str) -> Response:
    """The response. `instance`: the path of the request."""
    body: dict[str, Any] = refused.problem.model_dump(exclude_none=True) | {"instance": instance}
    return Response(orjson.dumps(body), refused.problem.status, refused.headers, MEDIA_TYPE)
