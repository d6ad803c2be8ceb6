"""Bounds on what a client may cost: the size of a body, the time to send it, open event streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpfilter.api.problems import ApiError
from bpfilter.settings import Api


class BodyLimits:
    """ASGI middleware: a body larger than allowed is 413, one that takes too long is 408."""

    def __init__(self, app: ASGIApp, limits: Api) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only what a client sends is bounded: answers and event streams go on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.request_seconds
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the request took more than {self._limits.request_seconds:g} s to arrive",
                    {"Connection": "close"},
                ) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limits.largest_body:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body has more than {self._limits.largest_body} bytes",
                    {"Connection": "close"},
                )
            return message

        await self._app(scope, bounded, send)


class Streams:
    """How many event streams are open."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, 0

    def refuse_too_many(self) -> None:
        """ApiError 429 if all are taken."""
        if self._open >= self._most:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "busy",
                f"{self._most} clients follow the events already",
                hint="`api.event_clients` says how many may; GET without text/event-stream works",
                headers={"Retry-After": "5"},
            )

    @contextmanager
    def one(self) -> Iterator[None]:
        """While it is open."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
