"""The dashboard's routes, below /dashboard. Buttons do what `/v1` does, by the same functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute

from bpfilter.api.app import confirm, put_deployment, rollback
from bpfilter.api.dashboard import pages
from bpfilter.api.dashboard.entrance import (
    HEADERS,
    Entrance,
    NotSignedIn,
    Visitor,
    drop_cookie,
    read_form,
    set_cookie,
)
from bpfilter.api.dashboard.looks import Looks
from bpfilter.api.dashboard.sessions import INVITED
from bpfilter.api.dashboard.wishes import Wishes, promotion
from bpfilter.api.limits import Streams
from bpfilter.api.problems import ApiError, Problem, of_error
from bpfilter.api.work import shadowed
from bpfilter.errors import BpfilterError
from bpfilter.report.page import shadow_page

PATH = "/dashboard"
_TURN = 1.0
"""Seconds between two looks of a page that is open."""
_router = APIRouter(prefix=PATH, include_in_schema=False)

Act = Callable[[Request, Visitor, Mapping[str, str]], Awaitable[object]]


def install(app: FastAPI, entrance: Entrance, defaults: Wishes) -> None:
    """Serve the dashboard; `app` is an `api.app.application`."""
    app.state.entrance, app.state.wishes = entrance, defaults
    app.state.looks = Looks(app.state.keeper)
    app.include_router(_router)


def routed() -> set[tuple[str, str]]:
    """All routes, as (method, path)."""
    routes = (route for route in _router.routes if isinstance(route, APIRoute))
    return {(method, route.path) for route in routes for method in route.methods or ()}


def _entrance(request: Request) -> Entrance:
    entrance: Entrance = request.app.state.entrance
    return entrance


def _looks(request: Request) -> Looks:
    looks: Looks = request.app.state.looks
    return looks


def _page(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> HTMLResponse:
    return HTMLResponse(text, status, {**HEADERS, **(headers or {})})


def _go(place: str) -> RedirectResponse:
    """To another of our pages. Places are relative: a proxy may show us below a path of its own."""
    return RedirectResponse(place, HTTPStatus.SEE_OTHER, dict(HEADERS))


def _failed(error: BpfilterError | ApiError) -> HTMLResponse:
    problem: Problem = of_error(error)
    return _page(pages.problem_page(problem), problem.status, getattr(error, "headers", None))


def _local(request: Request) -> bool:
    return getattr(request.state, "peer", None) is not None


@_router.get("")
async def slashless(request: Request) -> Response:
    """The page's links are relative to the directory."""
    return _go("dashboard/")


@_router.get("/")
async def dashboard(request: Request, done: str = "") -> Response:
    """The page; who has no session is asked to sign in."""
    try:
        visitor = _entrance(request).visitor(request)
    except NotSignedIn:
        return _go("sign-in")
    except ApiError as error:
        return _failed(error)
    seen = await _looks(request).newest(fresh=bool(done))
    return _page(pages.dashboard_page(seen, visitor, request.app.state.wishes, done))


@_router.get("/static/{name}")
async def static(name: str) -> Response:
    """The script and the style."""
    if name not in pages.STATIC:
        return _failed(ApiError(HTTPStatus.NOT_FOUND, "not-found", "there is no such file"))
    media = pages.STATIC[name]
    headers = {**HEADERS, "Cache-Control": "max-age=3600"}
    return Response(pages.static_file(name), headers=headers, media_type=media)


@_router.get("/sign-in")
async def sign_in_form(request: Request) -> Response:
    """Asks for a token; on the unix socket it says how to be invited."""
    try:
        _entrance(request).check_host(request)
    except ApiError as error:
        return _failed(error)
    return _page(pages.sign_in_page(local=_local(request)))


@_router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """A token for a session."""
    try:
        form = await read_form(request)
        session = _entrance(request).sign_in(request, form.get("token", "").strip())
    except ApiError as error:
        return _failed(error)
    if session is None:
        return _page(pages.sign_in_page(local=_local(request), wrong=True), HTTPStatus.UNAUTHORIZED)
    answer = _go("./")
    set_cookie(request, answer, session)
    return answer


@_router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """The session is over at once."""
    try:
        visitor = _entrance(request).changing(request, await read_form(request))
        _entrance(request).sign_out(visitor)
    except NotSignedIn:
        pass
    except ApiError as error:
        return _failed(error)
    answer = _go("sign-in")
    drop_cookie(request, answer)
    return answer


@_router.post("/invitations")
async def invite(request: Request) -> Response:
    """For the process at the unix socket: a word that opens one session. No browser gets here."""
    invitation = _entrance(request).invite(request)
    return JSONResponse({"invitation": invitation, "seconds": INVITED}, headers=dict(HEADERS))


@_router.get("/enter")
async def enter(request: Request, invitation: str = "") -> Response:
    """An invitation for a session, once."""
    try:
        session = _entrance(request).enter(request, invitation)
    except ApiError as error:
        return _failed(error)
    if session is None:
        return _failed(
            ApiError(
                HTTPStatus.FORBIDDEN,
                "invitation-used",
                "this address was used already, or is too old",
                hint="`bpfilter dashboard` gives a new one",
            )
        )
    answer = _go("./")
    set_cookie(request, answer, session)
    return answer


@_router.get("/report")
async def report(request: Request) -> Response:
    """The whole shadow report, as `bpfilter report --format html` makes it."""
    try:
        _entrance(request).visitor(request)
        document = await asyncio.to_thread(shadowed, request.app.state.keeper)
    except NotSignedIn:
        return _go("sign-in")
    except (ApiError, BpfilterError) as error:
        return _failed(error)
    text = await asyncio.to_thread(shadow_page, document)
    # The page brings a policy of its own that allows its one style by hash, and nothing else.
    return _page(text, headers={"Content-Security-Policy": "frame-ancestors 'none'"})


@_router.get("/live")
async def live(request: Request) -> Response:
    """Server-sent events: each has the parts of the page that changed, as HTML by name."""
    streams: Streams = request.app.state.streams
    try:
        _entrance(request).visitor(request)
        streams.refuse_too_many()
    except NotSignedIn:
        # 204 tells a browser not to ask again
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=dict(HEADERS))
    except ApiError as error:
        return _failed(error)
    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return StreamingResponse(_parts(request, streams), 200, headers, "text/event-stream")


async def _parts(request: Request, streams: Streams) -> AsyncIterator[str]:
    shown: Mapping[str, str] = {}
    with streams.one():
        while not await request.is_disconnected():
            try:
                visitor = _entrance(request).visitor(request)
            except (NotSignedIn, ApiError):
                yield "event: over\ndata: {}\n\n"
                return
            seen = await _looks(request).newest()
            now = pages.live_sections(seen, visitor, request.app.state.wishes)
            changed = {name: text for name, text in now.items() if shown.get(name) != text}
            shown = now
            yield f"event: parts\ndata: {json.dumps(changed)}\n\n"
            await asyncio.sleep(_TURN)


async def _act(request: Request, name: str, act: Act) -> Response:
    """Do what a button says, if it is pressed on our page by who may."""
    try:
        form = await read_form(request)
        visitor = _entrance(request).operator(request, form)
        await act(request, visitor, form)
    except NotSignedIn:
        return _go("sign-in")
    except (ApiError, BpfilterError) as error:
        return _failed(error)
    return _go(f"./?done={name}")


@_router.post("/promote")
async def promote(request: Request) -> Response:
    """Ask for the next stage, if the deployment is still the one that the page showed."""

    async def act(request: Request, visitor: Visitor, form: Mapping[str, str]) -> None:
        seen = await _looks(request).newest(fresh=True)
        wanted = promotion(form, seen.status, request.app.state.wishes)
        await put_deployment(request, wanted, visitor.caller, form.get("revision", ""))

    return await _act(request, "promote", act)


@_router.post("/confirm")
async def confirm_stage(request: Request) -> Response:
    """Confirm the commit that the page showed: not one that came meanwhile."""

    async def act(request: Request, visitor: Visitor, form: Mapping[str, str]) -> None:
        await confirm(request, form.get("commit", ""), visitor.caller)

    return await _act(request, "confirm", act)


@_router.post("/rollback")
async def roll_back(request: Request) -> Response:
    """Back to off."""

    async def act(request: Request, visitor: Visitor, form: Mapping[str, str]) -> None:
        await rollback(request, visitor.caller)

    return await _act(request, "rollback", act)
