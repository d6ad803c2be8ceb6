"""A loopback address for the dashboard behind the unix socket, for the browser of one user.

The API knows the user by this process (SO_PEERCRED). Anybody on the host can connect to a loopback
port, and browsers send cookies to every port of an address: so all is below a path that nobody can
guess, which is also the cookie's, and nothing is let through but the dashboard's own paths, never
`/v1`, where the socket alone would do as a proof of who asks.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bpfilter.errors import BpfilterError

ADDRESS = "127.0.0.1"
PATHS: Mapping[str, str] = {
    "": "GET",
    "live": "GET",
    "report": "GET",
    "enter": "GET",
    "sign-in": "GET",
    "static/dashboard.js": "GET",
    "static/dashboard.css": "GET",
    "promote": "POST",
    "confirm": "POST",
    "rollback": "POST",
    "sign-out": "POST",
}
"""What is let through below /dashboard/, and how."""

_FORWARDED = ("accept", "content-type", "cookie", "origin", "sec-fetch-site")
_KEPT_BACK = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})
_LARGEST = 64 << 10
_SECONDS = 60.0


class DashboardUnreachable(BpfilterError):
    """No API answers at the unix socket, or it does not know this user."""

    problem = "dashboard"


def invited(place: Path) -> str:
    """An invitation from the API at a unix socket; DashboardUnreachable if it gives none."""
    transport = httpx.HTTPTransport(uds=str(place))
    try:
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            answer = client.post("/dashboard/invitations", timeout=_SECONDS)
            found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise DashboardUnreachable(
            f"no API answers at {place}: {error or type(error).__name__}",
            hint="bpfilterd serves it, or `bpfilter serve`; its group may open the socket",
        ) from None
    if answer.is_success:
        return str(found["invitation"])
    raise DashboardUnreachable(
        str(found.get("detail") or answer.reason_phrase), hint=found.get("hint")
    )


def listener(port: int = 0) -> socket.socket:
    """On the loopback address; DashboardUnreachable if the port is taken."""
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise DashboardUnreachable(
            f"cannot listen on {ADDRESS} port {port}: {error.strerror}", hint="leave --port out"
        ) from None


class Proxy:
    """The ASGI application. `prefix` is the path that nobody else knows."""

    def __init__(self, place: Path, port: int) -> None:
        self.prefix = f"/{secrets.token_urlsafe(24)}"
        self._hosts = {f"{ADDRESS}:{port}", f"localhost:{port}"}
        self._port = port
        limits = httpx.Limits(max_connections=64)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(place), limits=limits),
            timeout=httpx.Timeout(_SECONDS),
        )

    def address(self, invitation: str) -> str:
        """Where the browser enters, once."""
        start = f"http://{ADDRESS}:{self._port}{self.prefix}/dashboard/enter"
        return f"{start}?invitation={invitation}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer that there is nothing."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]
        head, _, rest = path.partition("/dashboard/")
        host = request.headers.get("host", "")
        if host not in self._hosts or not secrets.compare_digest(
            head.encode(), self.prefix.encode()
        ):
            return PlainTextResponse("there is nothing here\n", 404)
        if PATHS.get(rest) != request.method:
            return PlainTextResponse("the dashboard has no such page\n", 404)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LARGEST:
                return PlainTextResponse("this form is too large\n", 413)
        return await self._forward(request, f"/dashboard/{rest}", host, body)

    async def _forward(self, request: Request, path: str, host: str, body: bytes) -> Response:
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        headers |= {"host": host, "x-bpfilter-prefix": self.prefix}
        asked = self._client.build_request(
            request.method,
            httpx.URL("http://localhost", path=path, query=request.scope["query_string"]),
            headers=headers,
            content=body,
        )
        try:
            found = await self._client.send(asked, stream=True)
        except httpx.HTTPError:
            return PlainTextResponse("the API does not answer; is bpfilterd running?\n", 502)
        answer = StreamingResponse(_parts(found), found.status_code)
        answer.raw_headers = [
            (name.lower(), value)
            for name, value in found.headers.raw
            if name.lower().decode("ascii") not in _KEPT_BACK
        ]
        return answer


async def _parts(found: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in found.aiter_raw():
            yield part
    except httpx.HTTPError:
        return  # the API ended; the browser asks again
    finally:
        await found.aclose()
