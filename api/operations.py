"""Work that takes longer than a request: started, looked at, and its result fetched.

One at a time, in the order of arrival, in a thread of its own; finished ones are kept for a while.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from bpfilter.api.problems import ApiError, of_error
from bpfilter.api.sources import Kept
from bpfilter.errors import BpfilterError

_KEPT = 64
_WAITING = 16


class State(StrEnum):
    """How far an operation is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Operation:
    """One piece of work. `result` is there when it is done, `problem` when it failed."""

    kind: str
    state: State = State.WAITING
    identity: str = field(default_factory=lambda: secrets.token_hex(8))
    began: float = field(default_factory=time.time)
    ended: float | None = None
    progress: str = ""
    result: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    source: Kept | None = None
    """The ruleset that it was about, for later requests; no part of what clients see."""

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        del shown["source"]
        return {"id": shown.pop("identity"), **shown}


Work = Callable[[Callable[[str], None]], dict[str, Any]]
"""Called in a thread with a function that takes what it is doing; gives the result."""


class Operations:
    """The operations of one server."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Operation] = OrderedDict()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, kind: str, work: Work) -> Operation:
        """Queue work; ApiError 429 if too much waits already."""
        if sum(each.state is State.WAITING for each in self._known.values()) >= _WAITING:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "busy",
                f"{_WAITING} operations wait already",
                hint="try again when some have ended",
                headers={"Retry-After": "5"},
            )
        operation = Operation(kind)
        self._known[operation.identity] = operation
        ended = [each.identity for each in self._known.values() if each.ended is not None]
        for identity in ended[: max(0, len(self._known) - _KEPT)]:
            del self._known[identity]
        task = asyncio.create_task(self._run(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    def of_kind(self, kind: str) -> list[Operation]:
        """Those of one kind that are known, oldest first."""
        return [each for each in self._known.values() if each.kind == kind]

    def get(self, identity: str) -> Operation:
        """ApiError 404 if there is none, or no more."""
        try:
            return self._known[identity]
        except KeyError:
            raise ApiError(
                HTTPStatus.NOT_FOUND, "not-found", f"there is no operation {identity}"
            ) from None

    async def _run(self, operation: Operation, work: Work) -> None:
        def say(progress: str) -> None:
            operation.progress = progress

        async with self._turn:
            operation.state = State.RUNNING
            try:
                operation.result = await asyncio.to_thread(work, say)
                operation.state = State.DONE
            except (BpfilterError, ApiError) as error:
                operation.problem = of_error(error).model_dump(exclude_none=True)
                operation.state = State.FAILED
            except Exception as error:
                operation.problem = of_error(
                    BpfilterError(
                        f"{operation.kind} broke off: {type(error).__name__}",
                        hint="please report this with what the log of bpfilter serve says",
                    )
                ).model_dump(exclude_none=True)
                operation.state = State.FAILED
                raise
            finally:
                operation.ended = time.time()
