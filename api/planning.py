"""Routes of what is computed: plans, diffs and explanations, as operations and as reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from io import StringIO
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from rich.console import Console

from bpfilter.api.identity import Role
from bpfilter.api.operations import Operation, Operations, State
from bpfilter.api.problems import ApiError
from bpfilter.api.roles import at_least
from bpfilter.api.schemas import DiffRequest, ExplainRequest, Identity, PlanRequest
from bpfilter.api.sources import Kept, Known
from bpfilter.api.work import compared, explained, planned, shadowed
from bpfilter.report.difference import render_difference
from bpfilter.report.markdown import difference_markdown, plan_markdown
from bpfilter.report.page import difference_page, plan_page, shadow_page
from bpfilter.report.shadow_markdown import shadow_markdown
from bpfilter.report.shadow_text import render_shadow
from bpfilter.report.terminal import terminal
from bpfilter.report.text import render_plan

routes = APIRouter(prefix="/v1", dependencies=[Depends(at_least(Role.READ))])

_COLUMNS = 100
_Render = Callable[[dict[str, Any]], str]
_Accept = Annotated[
    str, Header(description="application/json, text/html, text/markdown or text/plain.")
]
_FORMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/html": {"schema": {"type": "string"}},
            "text/markdown": {"schema": {"type": "string"}},
            "text/plain": {"schema": {"type": "string"}},
        },
    }
}


@routes.post("/plans", operation_id="createPlan", status_code=HTTPStatus.ACCEPTED)
async def create_plan(request: Request, wanted: PlanRequest, response: Response) -> dict[str, Any]:
    """Translate and prove a ruleset; follow the operation, the report is at /v1/plans/{id}."""

    def keep(source: Kept) -> None:
        started.source = source

    operations: Operations = request.app.state.operations
    known = _known(operations)
    started = operations.start("plan", lambda say: planned(wanted, known, keep, say))
    return _accepted(started, response)


@routes.post("/diffs", operation_id="createDiff", status_code=HTTPStatus.ACCEPTED)
async def create_diff(request: Request, wanted: DiffRequest, response: Response) -> dict[str, Any]:
    """Which packets two rulesets treat differently; the report is at /v1/diffs/{id}."""
    operations: Operations = request.app.state.operations
    known, directory = _known(operations), request.app.state.keeper.directory
    started = operations.start("diff", lambda say: compared(wanted, known, directory, say))
    return _accepted(started, response)


@routes.post("/explain", operation_id="createExplanation", status_code=HTTPStatus.ACCEPTED)
async def create_explanation(
    request: Request, wanted: ExplainRequest, response: Response
) -> dict[str, Any]:
    """One packet's way through the rules and the program; follow the operation."""
    operations: Operations = request.app.state.operations
    known, directory = _known(operations), request.app.state.keeper.directory
    started = operations.start("explain", lambda say: explained(wanted, known, directory, say))
    return _accepted(started, response)


def _accepted(operation: Operation, response: Response) -> dict[str, Any]:
    response.headers["Location"] = f"/v1/operations/{operation.identity}"
    return operation.document()


def _known(operations: Operations) -> Known:
    """The rulesets of this server's plans."""

    def find(identity: str) -> Kept:
        source = operations.get(identity).source
        if source is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "not-found", f"{identity} is no plan of a ruleset")
        return source

    return find


@routes.get("/operations/{identity}", operation_id="getOperation")
async def operation(request: Request, identity: Identity) -> dict[str, Any]:
    """How far an operation is; its result or problem when it has ended."""
    found: Operation = request.app.state.operations.get(identity)
    return found.document()


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
    """A plan's report: JSON, a page, Markdown or text as `Accept` says; the ETag is its digest."""
    document = finished(request, "plan", identity)
    tag = {"ETag": f'"{document["digest"]}"'}
    forms = {"text/html": plan_page, "text/markdown": plan_markdown}
    return _negotiated(document, accept, {**forms, "text/plain": _plain(render_plan)}, tag)


@routes.get("/diffs/{identity}", operation_id="getDiff", responses=_FORMS)
async def diff(request: Request, identity: Identity, accept: _Accept = "*/*") -> Response:
    """A diff's report: JSON, a page, Markdown or text as `Accept` says."""
    document = finished(request, "diff", identity)
    forms = {"text/html": difference_page, "text/markdown": difference_markdown}
    plain = {"text/plain": _plain(render_difference)}
    return _negotiated(document, accept, {**forms, **plain}, {})


@routes.get("/shadow/report", operation_id="getShadowReport", responses=_FORMS)
async def shadow_report(request: Request, accept: _Accept = "*/*") -> Response:
    """The shadow report: JSON, a page, Markdown or text as `Accept` says."""
    document = await asyncio.to_thread(shadowed, request.app.state.keeper)
    forms = {"text/html": shadow_page, "text/markdown": shadow_markdown}
    plain = {"text/plain": _plain(render_shadow)}
    return _negotiated(document, accept, {**forms, **plain}, {})


def _plain(render: Callable[[dict[str, Any], Console], None]) -> _Render:
    """What the command line prints, without colour."""

    def text(document: dict[str, Any]) -> str:
        written = StringIO()
        render(document, terminal(file=written, width=_COLUMNS, color_system=None))
        return written.getvalue()

    return text


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
