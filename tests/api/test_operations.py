"""Operations come to an end that clients can see."""

from __future__ import annotations

import asyncio

from bpfilter.api.operations import Operations, State
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


def test_a_defect_ends_the_operation_too_and_shows_nothing_of_it() -> None:
    state, problem = asyncio.run(ended(KeyError("secret")))
    assert state is State.FAILED
    assert "broke off" in problem
    assert "secret" not in problem
