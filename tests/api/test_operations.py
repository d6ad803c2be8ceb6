"""Operations come to an end that clients can see."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus

from bpfilter.api.operations import Operations, State
from bpfilter.api.problems import ApiError
from bpfilter.errors import RolloutError


async def ended(raised: Exception) -> tuple[State, str]:
    def work(_say: object) -> dict[str, object]:
        raise raised

    operations = Operations()
    operation = operations.start("plan", work)
    while operation.ended is None:
        await asyncio.sleep(0.01)
    assert operation.problem is not None
    return operation.state, str(operation.problem)


def test_a_refusal_is_a_problem() -> None:
    state, problem = asyncio.run(ended(RolloutError("no rules here")))
    assert state is State.FAILED
    assert "no rules here" in problem


def test_what_the_api_itself_refuses_keeps_its_status() -> None:
    state, problem = asyncio.run(ended(ApiError(HTTPStatus.NOT_FOUND, "not-found", "no such plan")))
    assert state is State.FAILED
    assert "no such plan" in problem and "404" in problem


def test_a_defect_ends_the_operation_too_and_shows_nothing_of_it() -> None:
    state, problem = asyncio.run(ended(KeyError("secret")))
    assert state is State.FAILED
    assert "broke off" in problem
    assert "secret" not in problem


def test_what_still_waits_is_not_forgotten() -> None:
    async def many() -> None:
        operations = Operations()
        gate = threading.Event()

        def work(_say: object) -> dict[str, object]:
            gate.wait(10)
            return {}

        for _ in range(100):
            ended = operations.start("plan", lambda _say: {})
            while ended.ended is None:
                await asyncio.sleep(0)
        waiting = [operations.start("plan", work) for _ in range(10)]
        for _ in range(3):
            operations.start("diff", work)
        assert all(operations.get(each.identity) is each for each in waiting)
        assert len(operations.of_kind("plan")) < 100
        gate.set()
        while waiting[-1].ended is None:
            await asyncio.sleep(0.01)

    asyncio.run(many())
