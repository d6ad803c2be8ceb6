"""Routes of what is computed: plans, diffs and explanations, as operations and as reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

from bpfilter.api.identity import Role
from bpfilter.api.operations import Operation, State
from bpfilter.api.problems import ApiError
from bpfilter.api.roles import at_least
from bpfilter.api.schemas import DiffRequest, ExplainRequest, Identity, PlanRequest
from bpfilter.api.work import compared, explained, planned, shadowed
from bpfilter.report.markdown import difference_markdown, plan_markdown
from bpfilter.report.page import difference_page, plan_page, shadow_page
from bpfilter.report.shadow_markdown import shadow_markdown

routes = APIRouter(prefix="/v1", dependencies=[Depends(at_least(Role.READ))])

_Render = Callable[[dict[str, Any]], str]
_Accept = Annotated[str, Header(description="application/json, text/html or text/markdown.")]
_FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/html": {"schema": {"type": "string"}},
            "text/markdown": {"schema": {"type": "string"}},
        },
    }
}


@routes.post("/plans", operation_id="createPlan", status_code=HTTPStatus.ACCEPTED)
async def create_plan(request: Request, wanted: PlanRequest, response: Response) -> dict[str, Any]:
    """Translate and prove a ruleset; follow the operation, the report is at /v1/plans/{id}."""
    operation = request.app.state.operations.start("plan", lambda say: planned(wanted, say))
    return _accepted(operation, response)


@routes.post("/diffs", operation_id="createDiff", status_code=HTTPStatus.ACCEPTED)
async def create_diff(request: Request, wanted: DiffRequest, response: Response) -> dict[str, Any]:
    """Which packets two rulesets treat differently; the report is at /v1/diffs/{id}."""
    operation = request.app.state.operations.start("diff", lambda say: compared(wanted, say))
    return _accepted(operation, response)


@routes.post("/explain", operation_id="createExplanation", status_code=HTTPStatus.ACCEPTED)
async def create_explanation(
    request: Request, wanted: ExplainRequest, response: Response
) -> dict[str, Any]:
    """One packet's way through the rules and the program; follow the operation."""
    operation = request.app.state.operations.start("explain", lambda say: explained(wanted, say))
    return _accepted(operation, response)


def _accepted(operation: Operation, response: Response) -> dict[str, Any]:
    response.headers["Location"] = f"/v1/operations/{operation.identity}"
    return _operation(operation)


def _operation(operation: Operation) -> dict[str, Any]:
    document = asdict(operation)
    document["id"] = document.pop("identity")
    return document


@routes.get("/operations/{identity}", operation_id="getOperation")
async def operation(request: Request, identity: Identity) -> dict[str, Any]:
    """How far an operation is; its result or problem when it has ended."""
    return _operation(request.app.state.operations.get(identity))


@routes.get("/plans", operation_id="listPlans")
async def plans(request: Request) -> dict[str, Any]:
    """The plans that this server keeps, oldest first: ids, states and digests."""
    found = [
        {
            "id": each.identity,
            "state": each.state,
            "began": each.began,
            "digest": None if each.result is None else each.result["digest"],
            "family": None if each.result is None else each.result["family"],
        }
        for each in request.app.state.operations.of_kind("plan")
    ]
    return {"plans": found}


@routes.get("/plans/{identity}", operation_id="getPlan", responses=_FORMS)
async def plan(request: Request, identity: Identity, accept: _Accept = "*/*") -> Response:
    """A plan's report: JSON, or a page or Markdown as `Accept` says; the ETag is its digest."""
    document = finished(request, "plan", identity)
    tag = {"ETag": f'"{document["digest"]}"'}
    return _negotiated(
        document, accept, {"text/html": plan_page, "text/markdown": plan_markdown}, tag
    )


@routes.get("/diffs/{identity}", operation_id="getDiff", responses=_FORMS)
async def diff(request: Request, identity: Identity, accept: _Accept = "*/*") -> Response:
    """A diff's report: JSON, or a page or Markdown as `Accept` says."""
    document = finished(request, "diff", identity)
    forms = {"text/html": difference_page, "text/markdown": difference_markdown}
    return _negotiated(document, accept, forms, {})


@routes.get("/shadow/report", operation_id="getShadowReport", responses=_FORMS)
async def shadow_report(request: Request, accept: _Accept = "*/*") -> Response:
    """The shadow report: JSON, or a page or Markdown as `Accept` says."""
    document = await asyncio.to_thread(shadowed, request.app.state.keeper)
    forms = {"text/html": shadow_page, "text/markdown": shadow_markdown}
    return _negotiated(document, accept, forms, {})


def finished(request: Request, kind: str, identity: str) -> dict[str, Any]:
    """The result of an operation of a kind; ApiError 404 or 409 while there is none."""
    found = request.app.state.operations.get(identity)
    if found.kind != kind:
        raise ApiError(HTTPStatus.NOT_FOUND, "not-found", f"{identity} is no {kind}")
    if found.state is not State.DONE:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "not-finished",
            f"the {kind} {identity} is {found.state}",
            hint=f"follow /v1/operations/{identity}",
        )
    document: dict[str, Any] = found.result
    return document


def _negotiated(
    document: dict[str, Any], accept: str, forms: Mapping[str, _Render], headers: dict[str, str]
) -> Response:
    headers = {**headers, "Vary": "Accept"}
    for word in accept.split(","):
        form = word.partition(";")[0].strip()
        if form in forms:
            return Response(forms[form](document), headers=headers, media_type=form)
        if form in ("*/*", "application/json"):
            break
    return JSONResponse(document, headers=headers)
