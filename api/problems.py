"""Errors as RFC 9457 problem documents: one shape for ours, for validation and for HTTP itself.

`type` is a stable relative reference, /v1/problems/<name>, whose last part is the error class's
`problem`; `hint`, `rule`, `source` and `line` are added where the error knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from bpfilter.errors import BpfilterError

MEDIA_TYPE = "application/problem+json"
TYPES = "/v1/problems/"

_STATUS: Mapping[str, HTTPStatus] = {
    "ruleset-refused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "settings-invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "compile": HTTPStatus.UNPROCESSABLE_ENTITY,
    "usage": HTTPStatus.UNPROCESSABLE_ENTITY,
    "rollout": HTTPStatus.CONFLICT,
    "precondition-failed": HTTPStatus.PRECONDITION_FAILED,
    "proof-failed": HTTPStatus.CONFLICT,
    "foreign-xdp": HTTPStatus.CONFLICT,
    "early-refused": HTTPStatus.CONFLICT,
}
"""By `BpfilterError.problem`; every other error of ours is a failure of the host: 503."""


class Problem(BaseModel):
    """An RFC 9457 problem. `errors`: of a request that does not validate, one per place."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    source: str | None = None
    line: int | None = None
    rule: str | None = None
    errors: tuple[Mapping[str, str], ...] = ()


class ApiError(Exception):
    """A refusal by the API itself; becomes a problem with this status and type."""

    def __init__(
        self,
        status: HTTPStatus,
        problem: str,
        detail: str,
        *,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.problem, self.detail = status, problem, detail
        self.hint, self.headers = hint, dict(headers or {})


def of_error(error: BpfilterError | ApiError) -> Problem:
    """The problem that an error of ours is."""
    if isinstance(error, ApiError):
        return Problem(
            type=TYPES + error.problem,
            title=error.status.phrase,
            status=error.status,
            detail=error.detail,
            hint=error.hint,
        )
    status = _STATUS.get(error.problem, HTTPStatus.SERVICE_UNAVAILABLE)
    return Problem(
        type=TYPES + error.problem,
        title=status.phrase,
        status=status,
        detail=error.message,
        hint=error.hint,
        source=getattr(error, "source", None),
        line=getattr(error, "line", None),
        rule=_text(getattr(error, "rule", None)),
    )


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""

    @app.exception_handler(BpfilterError)
    async def ours(request: Request, error: BpfilterError) -> JSONResponse:
        return response(of_error(error))

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return response(of_error(error), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response(_invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        name = status.phrase.lower().replace(" ", "-")
        problem = Problem(
            type=TYPES + name, title=status.phrase, status=status, detail=str(error.detail)
        )
        return response(problem, error.headers)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        detail = f"the API met a defect of its own: {type(error).__name__}"
        problem = Problem(
            type=TYPES + "defect",
            title=status.phrase,
            status=status,
            detail=detail,
            hint="please report this with what the log says; nothing that is deployed changed",
        )
        return response(problem)


def response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem as an HTTP response."""
    body = problem.model_dump(exclude_none=True, exclude_defaults=True)
    return JSONResponse(body, problem.status, dict(headers or {}), MEDIA_TYPE)


def _invalid(errors: Sequence[Any]) -> Problem:
    places = tuple(
        {"pointer": "/".join(str(part) for part in error["loc"]), "detail": str(error["msg"])}
        for error in errors
    )
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    first = places[0] if places else {"pointer": "body", "detail": "does not validate"}
    return Problem(
        type=TYPES + "validation",
        title=status.phrase,
        status=status,
        detail=f"{first['pointer']}: {first['detail']}",
        hint="see /v1/openapi.json for what is expected",
        errors=places,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
