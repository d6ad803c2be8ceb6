"""The REST API, version 1: an OpenAPI 3.1 application over one network namespace's daemon.

Every answer that is no success is an RFC 9457 problem. Mutations take `?dry_run=true`: the same
way, nothing changed. The deployment is one declarative resource with an ETag, so that two
operators cannot overwrite each other unseen.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from bpfilter import __version__
from bpfilter.api import problems
from bpfilter.api.access import Guard
from bpfilter.api.identity import Caller, Role
from bpfilter.api.keeper import Deployment, Keeper
from bpfilter.api.metrics import exposition
from bpfilter.api.operations import Operation, Operations
from bpfilter.api.problems import ApiError, Problem
from bpfilter.api.schemas import (
    DeploymentRequest,
    DiffRequest,
    ExplainRequest,
    Identity,
    PlanRequest,
)
from bpfilter.api.work import compared, explained, goal_of, live_ruleset, planned
from bpfilter.rollout.doctor import examine
from bpfilter.rollout.journal import Stage
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.writer import write

_EVENT_SECONDS = 0.5
_KEEP_ALIVE_TURNS = 30
_PROBLEM: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "A refusal"},
    "5XX": {"model": Problem, "description": "The host cannot do it"},
}

Audit = Callable[[Caller, str, Any], None]
DryRun = Annotated[bool, Query(description="Check everything, change nothing.")]
IfMatch = Annotated[str | None, Header(description="The ETag that the change is based on.")]


def application(keeper: Keeper, guard: Guard, audit: Audit) -> FastAPI:
    """The API over a daemon; `guard` knows callers, `audit` is told of every mutation."""
    app = FastAPI(
        title="bpfilter",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url="/v1/docs",
        redoc_url=None,
        responses=_PROBLEM,
        separate_input_output_schemas=False,
    )
    app.state.keeper, app.state.audit = keeper, audit
    app.state.operations = Operations()
    app.state.guard = guard
    problems.install(app)
    app.include_router(_open)
    app.include_router(_reading, dependencies=[Depends(_at_least(Role.READ))])
    app.include_router(_operating)
    return app


def _caller(request: Request) -> Caller:
    guard: Guard = request.app.state.guard
    return guard.caller(request)


def _at_least(role: Role) -> Callable[[Request], Caller]:
    def check(request: Request) -> Caller:
        caller = _caller(request)
        if caller.role < role:
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                f"{caller.name} has role {caller.role.name.lower()}, this needs"
                f" {role.name.lower()}",
                hint="roles are given in [api.roles] of the configuration",
            )
        return caller

    return check


Operator = Annotated[Caller, Depends(_at_least(Role.OPERATE))]

_open = APIRouter()
_reading = APIRouter(prefix="/v1")
_operating = APIRouter(prefix="/v1")


def _keeper(request: Request) -> Keeper:
    keeper: Keeper = request.app.state.keeper
    return keeper


@_open.get("/healthz", operation_id="health", response_class=PlainTextResponse)
async def health() -> str:
    """Whether this process answers."""
    return "ok\n"


@_open.get("/readyz", operation_id="ready", response_class=PlainTextResponse)
async def ready(request: Request) -> PlainTextResponse:
    """200 if a daemon runs and what it was asked for is in force, else 503."""
    found = (await asyncio.to_thread(_keeper(request).deployment)).document
    fine = found["running"] and found["stage"] == found["goal"] and found.get("in_force", False)
    return PlainTextResponse("ok\n" if fine else "not in force\n", 200 if fine else 503)


@_reading.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus metrics; no label holds an address."""
    keeper = _keeper(request)
    found = await asyncio.to_thread(keeper.deployment)
    kinds = [event.kind for _, event in await asyncio.to_thread(keeper.events)]
    return PlainTextResponse(
        exposition(found.document, kinds), media_type="text/plain; version=0.0.4"
    )


@_reading.get("/host", operation_id="getHost")
async def host() -> dict[str, Any]:
    """What on this host stands for and against bpfilter, as `bpfilter doctor` finds it."""
    findings = await asyncio.to_thread(examine)
    return {"findings": [asdict(finding) for finding in findings]}


@_reading.get("/rulesets/{family}", operation_id="getRuleset")
async def ruleset(family: Family, accept: Annotated[str, Header()] = "*/*") -> Response:
    """The live ruleset; its ETag is the digest. `Accept: text/plain` gives iptables-save text."""
    found = await asyncio.to_thread(live_ruleset, family)
    headers = {"ETag": f'"{found.digest}"'}
    if "text/plain" in accept:
        return PlainTextResponse(_printable(write(found, counters=True)), headers=headers)
    document = {
        "family": str(found.family),
        "backend": found.backend and str(found.backend),
        "digest": found.digest,
        "rules": sum(1 for _ in found.rules()),
        "text": _printable(write(found)),
    }
    return JSONResponse(document, headers=headers)


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@_reading.post("/plans", operation_id="createPlan", status_code=HTTPStatus.ACCEPTED)
async def create_plan(request: Request, wanted: PlanRequest) -> JSONResponse:
    """Translate and prove a ruleset; follow the operation for the plan report."""
    operation = request.app.state.operations.start("plan", lambda say: planned(wanted, say))
    return _accepted(operation)


@_reading.post("/diffs", operation_id="createDiff", status_code=HTTPStatus.ACCEPTED)
async def create_diff(request: Request, wanted: DiffRequest) -> JSONResponse:
    """Which packets two rulesets treat differently; follow the operation for the answer."""
    operation = request.app.state.operations.start("diff", lambda say: compared(wanted, say))
    return _accepted(operation)


@_reading.post("/explain", operation_id="createExplanation", status_code=HTTPStatus.ACCEPTED)
async def create_explanation(request: Request, wanted: ExplainRequest) -> JSONResponse:
    """One packet's way through the rules and the program; follow the operation."""
    operation = request.app.state.operations.start("explain", lambda say: explained(wanted, say))
    return _accepted(operation)


def _accepted(operation: Operation) -> JSONResponse:
    place = {"Location": f"/v1/operations/{operation.identity}"}
    return JSONResponse(_operation(operation), HTTPStatus.ACCEPTED, place)


def _operation(operation: Operation) -> dict[str, Any]:
    document = asdict(operation)
    document["id"] = document.pop("identity")
    return document


@_reading.get("/operations/{identity}", operation_id="getOperation")
async def operation(request: Request, identity: Identity) -> dict[str, Any]:
    """How far an operation is; its result or problem when it has ended."""
    return _operation(request.app.state.operations.get(identity))


@_reading.get("/deployment", operation_id="getDeployment")
async def deployment(request: Request) -> JSONResponse:
    """Stage, goal, gates, pending confirmation and what was compared; the ETag is its revision."""
    return _deployed(await asyncio.to_thread(_keeper(request).deployment))


@_reading.get("/shadow", operation_id="getShadow")
async def shadow(request: Request) -> dict[str, Any]:
    """What was predicted, compared and decided, rule by rule in iptables' order."""
    return await asyncio.to_thread(_keeper(request).detail)


def _deployed(found: Deployment) -> JSONResponse:
    return JSONResponse(found.document, headers={"ETag": f'"{found.revision}"'})


@_operating.put("/deployment", operation_id="putDeployment")
async def put_deployment(
    request: Request,
    wanted: DeploymentRequest,
    caller: Operator,
    if_match: IfMatch = None,
    dry_run: DryRun = False,
) -> JSONResponse:
    """Say what shall be deployed. Needs If-Match with the deployment's ETag (`*` for any)."""
    keeper = _keeper(request)
    present = await asyncio.to_thread(keeper.deployment)
    _match(if_match, present.revision)
    goal = goal_of(wanted)
    if not dry_run:
        request.app.state.audit(caller, "put deployment", wanted.model_dump(mode="json"))
        if wanted.stage is Stage.OFF:
            await asyncio.to_thread(keeper.rollback)
        else:
            await asyncio.to_thread(keeper.deploy, goal, wanted.interfaces)
    return _deployed(await asyncio.to_thread(keeper.deployment))


def _match(if_match: str | None, revision: str) -> None:
    if if_match is None:
        raise ApiError(
            HTTPStatus.PRECONDITION_REQUIRED,
            "precondition-required",
            "If-Match is missing: say which deployment the change is based on",
            hint="take the ETag of GET /v1/deployment, or * for whatever is there",
        )
    known = {tag.strip().strip('"') for tag in if_match.split(",")}
    if known.isdisjoint({"*", revision}):
        raise ApiError(
            HTTPStatus.PRECONDITION_FAILED,
            "precondition-failed",
            "the deployment is another one than the change is based on",
            hint="GET /v1/deployment, look at what changed, and try again",
        )


@_operating.post("/deployment/commits/{identity}/confirm", operation_id="confirmCommit")
async def confirm(
    request: Request, identity: Identity, caller: Operator, dry_run: DryRun = False
) -> dict[str, str]:
    """Confirm a stage change: it stays."""
    if dry_run:
        return {"result": f"would confirm {identity}"}
    request.app.state.audit(caller, "confirm", identity)
    answer = await asyncio.to_thread(_keeper(request).confirm, identity)
    return {"result": answer.sentence}


@_operating.post("/deployment/rollback", operation_id="rollback")
async def rollback(request: Request, caller: Operator, dry_run: DryRun = False) -> dict[str, str]:
    """Back to off at once: iptables decides alone."""
    if dry_run:
        return {"result": "would go back to off"}
    request.app.state.audit(caller, "rollback", None)
    answer = await asyncio.to_thread(_keeper(request).rollback)
    return {"result": answer.sentence}


@_reading.get("/events", operation_id="getEvents")
async def events(
    request: Request,
    after: Annotated[int, Query(ge=0, description="Only later ones.")] = 0,
    accept: Annotated[str, Header()] = "*/*",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """What happened: JSON, JSON lines, or server-sent events that go on and can be resumed."""
    keeper = _keeper(request)
    known = last_event_id is not None and _EVENT_NUMBER.fullmatch(last_event_id) is not None
    start = int(last_event_id or after) if known else after
    if "text/event-stream" in accept:
        return StreamingResponse(_stream(request, keeper, start), media_type="text/event-stream")
    found = [_event(*each) for each in await asyncio.to_thread(keeper.events, start)]
    if "application/jsonl" in accept:
        lines = "".join(json.dumps(event) + "\n" for event in found)
        return Response(lines, media_type="application/jsonl")
    return JSONResponse({"events": found})


_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")
"""What this API gave as an event's number; anything else in Last-Event-ID is nobody's."""


def _event(number: int, event: Any) -> dict[str, Any]:
    return {"id": number, **asdict(event)}


async def _stream(request: Request, keeper: Keeper, after: int) -> AsyncIterator[str]:
    quiet = 0
    while not await request.is_disconnected():
        found: Sequence[Any] = await asyncio.to_thread(keeper.events, after)
        for number, event in found:
            after = number
            data = json.dumps(_event(number, event))
            yield f"id: {number}\nevent: {event.kind}\ndata: {data}\n\n"
        quiet = 0 if found else quiet + 1
        if quiet >= _KEEP_ALIVE_TURNS:
            quiet = 0
            yield ": still here\n\n"
        await asyncio.sleep(_EVENT_SECONDS)
