"""`bpfilterd`: the foreground process that vouches for the programs of one network namespace.

On SIGTERM or SIGINT it rolls back and ends. Exit codes: 0 told to stop, 1 failed or not confirmed,
64 usage.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import structlog
import typer

from bpfilter.cli.run import run_app
from bpfilter.errors import UsageError
from bpfilter.rollout.journal import Journal, Stage, running, state_directory
from bpfilter.rollout.lease import LEASE_SECONDS
from bpfilter.rollout.service import Goal, serve
from bpfilter.rollout.stages import Request
from bpfilter.rollout.teardown import teardown
from bpfilter.ruleset.model import Backend

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def daemon_command(
    interface: Annotated[
        list[str], typer.Option("--interface", "-i", help="Interface to attach to; repeatable.")
    ],
    stage: Annotated[Stage, typer.Option(help="How far to go.")] = Stage.SHADOW,
    backend: Annotated[Backend | None, typer.Option(help="Default: the one with rules.")] = None,
    confirm_within: Annotated[
        float | None, typer.Option(min=1.0, help="Roll back unless confirmed in so many seconds.")
    ] = None,
    shadow_seconds: Annotated[
        float, typer.Option(min=0.0, help="Compare counters for so long before enforcing.")
    ] = 3.0,
    lease_seconds: Annotated[
        float, typer.Option(min=2.0, max=60.0, help="How long programs decide without us.")
    ] = LEASE_SECONDS,
    accept_state_reset: Annotated[
        bool, typer.Option(help="Legacy: our edits may reset limits that decide verdicts.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Enforce with an incomplete proof.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
) -> None:
    """Shadow or enforce the live iptables rules of this network namespace until told to stop."""
    if stage is Stage.OFF:
        raise UsageError("--stage takes shadow or enforce", hint="`bpfilter teardown` turns it off")
    log = structlog.get_logger("bpfilterd")
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    directory = state or state_directory()
    if (found := running(directory)) is not None:
        raise UsageError(
            f"bpfilterd runs here already, as process {found[0]}", hint="stop it first"
        )
    for line in teardown(directory):
        log.warning("left over from before", removed=line)
    request = Request(tuple(interface), backend, lease_seconds, force=force)
    goal = Goal(stage, confirm_within, shadow_seconds, accept_state_reset)
    journal = Journal(directory)
    try:
        serve(request, goal, journal, log.info, _wait)
    finally:
        journal.remove()


def _wait(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if signal.sigtimedwait(_SIGNALS, left) is not None:
            return True
    return False


def main() -> None:
    """Entry point of the `bpfilterd` console script."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(daemon_command)
    sys.exit(run_app(app, "bpfilterd"))


if __name__ == "__main__":
    main()
