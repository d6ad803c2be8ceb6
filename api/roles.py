"""FastAPI dependencies: who calls, and whether they may."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request

from bpfilter.api.access import Guard
from bpfilter.api.identity import Caller, Role
from bpfilter.api.problems import ApiError


def at_least(role: Role) -> Callable[[Request], Caller]:
    """A dependency that gives the caller; ApiError 401 or 403 for who has not the role."""

    def check(request: Request) -> Caller:
        guard: Guard = request.app.state.guard
        caller = guard.caller(request)
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


Operator = Annotated[Caller, Depends(at_least(Role.OPERATE))]
