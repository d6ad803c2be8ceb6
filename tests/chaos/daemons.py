"""bpfilterd as it is, or prepared to die or to be wrong: `python -m tests.chaos.daemons HOW …`.

HOW is `plain`; `die:N`, which kills the process at the Nth of its points: before and after each
write to its journal and each start of an iptables-restore; or `wrong:accept`, `wrong:drop`, whose
dispatch gives every decided packet that verdict; `wrong:output`, whose program at LOCAL_OUT drops
every packet that it decides.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from typing import Any

import numpy as np

from bpfilter.kernel import output
from bpfilter.rollout.tables import Tables

_WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")
_OURS = re.compile(r"^(-A BPF-.* -j )(?:ACCEPT|DROP)$", re.MULTILINE)


class _Points:
    """Counts the points that the process passes; the last is its end."""

    def __init__(self, last: int) -> None:
        self._left = last

    def passed(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at(last: int) -> None:
    """End this process by SIGKILL at a point that the journal or a table is written."""
    points = _Points(last)

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if not sql.lstrip().upper().startswith(_WRITES):
                return super().execute(sql, *arguments)
            points.passed()
            cursor = super().execute(sql, *arguments)
            points.passed()
            return cursor

    connect, start = sqlite3.connect, subprocess.Popen.__init__

    def starting(self: Any, command: Any, *arguments: Any, **options: Any) -> None:
        restoring = "restore" in str(command)
        if restoring:
            points.passed()
        start(self, command, *arguments, **options)
        if restoring:
            points.passed()

    sqlite3.connect = lambda *a, **k: connect(*a, **{"factory": Connection, **k})  # type: ignore[assignment]
    subprocess.Popen.__init__ = starting  # type: ignore[method-assign]


def give_always(verdict: str) -> None:
    """Install a dispatch that gives one verdict whatever the program said."""
    restore = Tables.restore

    def restoring(self: Tables, text: str) -> None:
        restore(self, _OURS.sub(rf"\1{verdict}", text))

    Tables.restore = restoring  # type: ignore[method-assign]


def drop_output() -> None:
    """Take every walk of OUTPUT for a plain DROP."""
    plain_drops = output.plain_drops
    output.plain_drops = lambda contents: np.ones_like(plain_drops(contents))


def main() -> None:
    how, _, detail = sys.argv.pop(1).partition(":")
    if how == "die":
        die_at(int(detail))
    elif (how, detail) == ("wrong", "output"):
        drop_output()
    elif how == "wrong":
        give_always(detail.upper())
    from bpfilter.cli.daemon import main as daemon

    daemon()


if __name__ == "__main__":
    main()
