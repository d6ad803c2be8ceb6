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
from bpfilter.api.audit import Trail
from bpfilter.api.contract import describe
from bpfilter.api.identity import Caller, Role
from bpfilter.api.keeper import Deployment, Keeper
from bpfilter.api.limits import BodyLimits, Streams
from bpfilter.api.metrics import exposition
from bpfilter.api.operations import Operations
from bpfilter.api.planning import finished, routes
from bpfilter.api.problems import ApiError, Problem
from bpfilter.api.roles import Operator, at_least
from bpfilter.api.rulesets import printable, ruleset_document
from bpfilter.api.schemas import DeploymentRequest, Identity, Table
from bpfilter.api.work import goal_of, live_ruleset, still_live
from bpfilter.rollout.doctor import examine
from bpfilter.ruleset.fields import Family
from bpfilter.ruleset.writer import write
from bpfilter.settings import Api

_EVENT_SECONDS = 0.5
_KEEP_ALIVE_TURNS = 30
_PROBLEM: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "A refusal"},
    "5XX": {"model": Problem, "description": "The host cannot do it"},
}

Log = Callable[[Caller, str, Any], None]
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_OBJECT: dict[str, Any] = {"schema": {"type": "object"}}
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Not in force", "content": {"text/plain": _TEXT}}
}
_RULESET: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": _OBJECT, "text/plain": _TEXT}}
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": _OBJECT,
            "application/jsonl": _TEXT,
            "text/event-stream": _TEXT,
        }
    }
}
DryRun = Annotated[bool, Query(description="Check everything, change nothing.")]
IfMatch = Annotated[str | None, Header(description="The ETag that the change is based on.")]


def application(keeper: Keeper, guard: Guard, trail: Trail, log: Log, limits: Api) -> FastAPI:
    """The API over a daemon; `guard` knows callers, `trail` and `log` are told of mutations."""
    app = blueprint()
    app.state.keeper, app.state.guard = keeper, guard
    app.state.trail, app.state.log = trail, log
    app.state.operations = Operations()
    app.state.turn = asyncio.Lock()
    app.state.streams = Streams(limits.event_clients)
    app.add_middleware(BodyLimits, limits=limits)
    return app


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return describe(self)


def blueprint() -> FastAPI:
    """The routes and their description, without a daemon behind them."""
    app = _Application(
        title="bpfilter",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url="/v1/docs",
        redoc_url=None,
        responses=_PROBLEM,
        separate_input_output_schemas=False,
    )
    problems.install(app)
    for router in (_open, _scraped, _reading, routes, _operating, _administering):
        app.include_router(router)
    return app


_open = APIRouter()
_reading = APIRouter(prefix="/v1", dependencies=[Depends(at_least(Role.READ))])
_scraped = APIRouter(dependencies=[Depends(at_least(Role.READ))])
_operating = APIRouter(prefix="/v1")
_administering = APIRouter(prefix="/v1", dependencies=[Depends(at_least(Role.ADMIN))])


def _keeper(request: Request) -> Keeper:
    keeper: Keeper = request.app.state.keeper
    return keeper


@_open.get("/healthz", operation_id="health", response_class=PlainTextResponse)
async def health() -> str:
    """Whether this process answers."""
    return "ok\n"


@_open.get("/readyz", operation_id="ready", response_class=PlainTextResponse, responses=_NOT_READY)
async def ready(request: Request) -> PlainTextResponse:
    """200 if a daemon runs and what it was asked for is in force, else 503."""
    found = (await asyncio.to_thread(_keeper(request).deployment)).document
    fine = found["running"] and found["stage"] == found["goal"] and found.get("in_force", False)
    return PlainTextResponse("ok\n" if fine else "not in force\n", 200 if fine else 503)


@_scraped.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
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


@_reading.get("/rulesets/{family}", operation_id="getRuleset", responses=_RULESET)
async def ruleset(family: Family, accept: Annotated[str, Header()] = "*/*") -> Response:
    """The live ruleset rule by rule; its ETag is the digest.

    `Accept: text/plain` gives iptables-save text.
    """
    found = await asyncio.to_thread(live_ruleset, family)
    headers = {"ETag": f'"{found.digest}"'}
    if "text/plain" in accept:
        return PlainTextResponse(printable(write(found, counters=True)), headers=headers)
    return JSONResponse(ruleset_document(found), headers=headers)


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
    goal = goal_of(wanted)
    async with request.app.state.turn:
        before = await asyncio.to_thread(keeper.deployment)
        _match(if_match, before.revision)
        await asyncio.to_thread(keeper.check, goal, wanted.interfaces)
        if wanted.plan is not None:
            await asyncio.to_thread(still_live, finished(request, "plan", wanted.plan))
        if not dry_run:
            await _audit(request, caller, "put deployment", wanted.model_dump(mode="json"))
            seen = None if if_match == "*" else before.wish
            await asyncio.to_thread(keeper.deploy, goal, wanted.interfaces, seen)
        found = await asyncio.to_thread(keeper.deployment)
    return _deployed(found)


async def _audit(request: Request, caller: Caller, what: str, detail: Any) -> None:
    await asyncio.to_thread(request.app.state.trail.record, caller, what, detail)
    request.app.state.log(caller, what, detail)


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
    keeper = _keeper(request)
    if dry_run:
        await asyncio.to_thread(keeper.pending, identity)
        return {"result": f"would confirm {identity}"}
    await _audit(request, caller, "confirm", identity)
    return {"result": (await asyncio.to_thread(keeper.confirm, identity)).sentence}


@_operating.post("/deployment/commits/{identity}/cancel", operation_id="cancelCommit")
async def cancel(
    request: Request, identity: Identity, caller: Operator, dry_run: DryRun = False
) -> dict[str, str]:
    """Take an unconfirmed stage change back now: to off, as if its time were over."""
    keeper = _keeper(request)
    await asyncio.to_thread(keeper.pending, identity)
    if dry_run:
        return {"result": f"would cancel {identity}"}
    await _audit(request, caller, "cancel", identity)
    return {"result": (await asyncio.to_thread(keeper.cancel, identity)).sentence}


@_operating.post("/deployment/rollback", operation_id="rollback")
async def rollback(request: Request, caller: Operator, dry_run: DryRun = False) -> dict[str, str]:
    """Back to off at once: iptables decides alone."""
    if dry_run:
        return {"result": "would go back to off"}
    await _audit(request, caller, "rollback", None)
    answer = await asyncio.to_thread(_keeper(request).rollback)
    return {"result": answer.sentence}


@_reading.get("/counters", operation_id="getCounters", responses=_RULESET)
async def merged_counters(
    request: Request,
    family: Family | None = None,
    table: Annotated[Table, Query(description="Of the text.")] = "filter",
    accept: Annotated[str, Header()] = "*/*",
) -> Response:
    """Each rule's counters as they would be without bpfilter, in iptables' order.

    `Accept: text/plain` gives the listing of `iptables -nvxL` with these numbers.
    """
    keeper = _keeper(request)
    if "text/plain" in accept:
        chosen = family or Family.IPV4
        return PlainTextResponse(await asyncio.to_thread(keeper.listing, chosen, table))
    return JSONResponse(await asyncio.to_thread(keeper.counters, family))


@_reading.get("/history", operation_id="getHistory")
async def history(request: Request) -> dict[str, Any]:
    """The steps of the present journal: what was done to the host, oldest first."""
    return {"steps": [asdict(step) for step in await asyncio.to_thread(_keeper(request).steps)]}


@_administering.get("/audit", operation_id="getAudit")
async def audited(
    request: Request, after: Annotated[int, Query(ge=0, le=1 << 62)] = 0
) -> dict[str, Any]:
    """Who asked for which change, oldest first, those behind `after`."""
    found = await asyncio.to_thread(request.app.state.trail.mutations, after)
    return {"mutations": [asdict(each) for each in found]}


@_reading.get("/events", operation_id="getEvents", responses=_EVENTS)
async def events(
    request: Request,
    after: Annotated[int, Query(ge=0, le=1 << 62, description="Only later ones.")] = 0,
    accept: Annotated[str, Header()] = "*/*",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """What happened: JSON, JSON lines, or server-sent events that go on and can be resumed."""
    keeper = _keeper(request)
    known = last_event_id is not None and _EVENT_NUMBER.fullmatch(last_event_id) is not None
    start = int(last_event_id or after) if known else after
    if "text/event-stream" in accept:
        streams: Streams = request.app.state.streams
        streams.refuse_too_many()
        followed = _stream(request, keeper, start, streams)
        return StreamingResponse(followed, media_type="text/event-stream")
    found = [_event(*each) for each in await asyncio.to_thread(keeper.events, start)]
    if "application/jsonl" in accept:
        lines = "".join(json.dumps(event) + "\n" for event in found)
        return Response(lines, media_type="application/jsonl")
    return JSONResponse({"events": found})


_EVENT_NUMBER = re.compile(r"[0-9]{1,18}")
"""What this API gave as an event's number; anything else in Last-Event-ID is nobody's."""


def _event(number: int, event: Any) -> dict[str, Any]:
    return {"id": number, **asdict(event)}


async def _stream(
    request: Request, keeper: Keeper, after: int, streams: Streams
) -> AsyncIterator[str]:
    quiet = 0
    with streams.one():
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
