"""`serve` in the test's own thread, led by a script that runs whenever the daemon waits."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from bpfilter.rollout.ending import Ending
from bpfilter.rollout.gates import Gates
from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Answer, Journal, Stage
from bpfilter.rollout.service import Wait, serve
from bpfilter.rollout.stages import Request
from tests.rollout.network import Net, entered

Script = Callable[[Journal], Iterator[None]]
"""Goes on at each `yield` when the daemon waits the next time; at its end the daemon is stopped."""

AT_ONCE = Gates(seconds=0.0)
REQUEST = Request(("v1",), lease_seconds=30.0)
_MOST_SECONDS = 60.0


def served(
    net: Net, state: Path, goal: Goal, script: Script, request: Request = REQUEST
) -> tuple[Ending, list[str]]:
    """How serving ended, and what was reported."""
    said: list[str] = []
    with Journal(state) as journal, entered(net.fw):

        def report(sentence: str, /, *, kind: str = "") -> None:
            said.append(sentence)

        return serve(request, goal, journal, report, led(script(journal))), said


def led(steps: Iterator[None]) -> Wait:
    """The daemon's `wait`, which goes on with the script; at its end the daemon is to stop."""

    def wait(seconds: float, files: Sequence[int]) -> bool:
        select.select(files, [], [], seconds / 8)
        return next(steps, steps) is steps

    return wait


def until(holds: Callable[[], bool]) -> Iterator[None]:
    """Let the daemon work until something holds."""
    end = time.monotonic() + _MOST_SECONDS
    while not holds():
        assert time.monotonic() < end
        yield


def reached(journal: Journal, stage: Stage) -> Iterator[None]:
    yield from until(lambda: journal.stage is stage)


def asked(journal: Journal, verb: str, **argument: object) -> Generator[None, None, Answer]:
    """Ask the daemon, and let it work until it answers."""
    number = journal.ask(verb, argument)
    yield from until(lambda: journal.answered(number) is not None)
    answer = journal.answered(number)
    assert answer is not None
    return answer
