"""A daemon that is killed at a chosen step of its journal: no hook, only another Journal."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfilter.rollout.goal import Goal
from bpfilter.rollout.journal import Journal
from bpfilter.rollout.service import serve
from tests.rollout.network import Net, entered
from tests.rollout.serving import REQUEST, Script, led


class Killing(Journal):
    """SIGKILLs its own process when step `number` (from 1) was done, but is not yet marked so.

    With `before` it does so when the step is written down and not yet begun.
    """

    def __init__(self, directory: Path, number: int, *, before: bool = False) -> None:
        super().__init__(directory)
        self._left = number
        self._before = before

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._left -= 1
        with super().step(name):
            if self._left == 0 and self._before:
                os.kill(os.getpid(), signal.SIGKILL)
            yield
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def serve_and_die(
    net: Net, state: Path, goal: Goal, script: Script, number: int, *, before: bool = False
) -> bool:
    """Serve in a process that kills itself at step `number`; false if it never came to it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with entered(net.fw):
                journal = Killing(state, number, before=before)
                serve(REQUEST, goal, journal, lambda _line, kind="": None, led(script(journal)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False
