"""Work in a process of its own: what it returns, what it raises, and when it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bpfilter.errors import RolloutError
from bpfilter.rollout.apart import apart, give_back


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_it_returns_what_the_work_returns_and_changes_nothing_here() -> None:
    seen: list[int] = []

    def work(number: int) -> tuple[int, int]:
        seen.append(number)
        return number, os.getpid()

    number, pid = apart(work, 7)
    assert (number, seen) == (7, [])
    assert pid != os.getpid()


def test_what_it_raises_is_raised_here() -> None:
    def work() -> None:
        raise RolloutError("it went wrong", hint="try again")

    with pytest.raises(RolloutError, match="it went wrong") as raised:
        apart(work)
    assert raised.value.hint == "try again"


def test_a_killed_process_is_an_error_with_its_signal() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    before = descriptors()
    with pytest.raises(RolloutError, match="status -9"):
        apart(work)
    assert descriptors() == before
    give_back()
