"""`bpfilterd`: the foreground process that vouches for the programs of one network namespace.

On SIGTERM or SIGINT it rolls back and ends. Exit codes: 0 told to stop or to roll back, 1 failed,
not confirmed, or ended by a guard, 64 usage. Unless told to stop it leaves its journal, which says
why it ended.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import structlog
import typer

from bpfilter.cli.run import run_app
from bpfilter.errors import UsageError
from bpfilter.rollout.early import EarlyRequest
from bpfilter.rollout.goal import Goal, Policy
from bpfilter.rollout.guards import Guards, ProbeCommand
from bpfilter.rollout.journal import Journal, Stage, running, state_directory
from bpfilter.rollout.lease import LEASE_SECONDS
from bpfilter.rollout.management import own_connections
from bpfilter.rollout.service import Ending, serve
from bpfilter.rollout.stages import Request
from bpfilter.ruleset.model import Backend

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_TOLD = threading.Event()


def daemon_command(
    interface: Annotated[
        list[str],
        typer.Option("--interface", "-i", help="Interface, pattern or auto; repeatable."),
    ],
    stage: Annotated[Stage, typer.Option(help="How far to go.")] = Stage.SHADOW,
    backend: Annotated[Backend | None, typer.Option(help="Default: the one with rules.")] = None,
    confirm_within: Annotated[
        float | None, typer.Option(min=1.0, help="Roll back unless confirmed in so many seconds.")
    ] = None,
    confirm_id: Annotated[str, typer.Option(help="The id to confirm.")] = "",
    shadow_seconds: Annotated[
        float, typer.Option(min=0.0, help="Compare for so long before deciding.")
    ] = 3.0,
    lease_seconds: Annotated[
        float, typer.Option(min=2.0, max=60.0, help="How long programs decide without us.")
    ] = LEASE_SECONDS,
    policy: Annotated[
        Policy, typer.Option(help="When the rules change: follow them, or hold.")
    ] = Policy.FOLLOW,
    accept_state_reset: Annotated[
        bool, typer.Option(help="Legacy: our edits may reset limits that decide verdicts.")
    ] = False,
    accept_lockout: Annotated[
        bool, typer.Option(help="Also if the plan drops the operator's own connection.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Enforce with an incomplete proof.")] = False,
    verify_share: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Percent of packets to verify for good.")
    ] = 0.0,
    probe: Annotated[
        str | None, typer.Option(help="Command that must succeed; words as in a shell, no shell.")
    ] = None,
    probe_interval: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 5.0,
    probe_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 3.0,
    goal: Annotated[
        str | None, typer.Option(help="All of the goal as JSON, as `bpfilter deploy` makes it.")
    ] = None,
    early: Annotated[
        bool, typer.Option("--early", help="Drop before netfilter what leaves no trace there.")
    ] = False,
    xdp: Annotated[
        list[str] | None, typer.Option(help="Drop early at XDP: IF=native, generic or auto.")
    ] = None,
    accept_sockets: Annotated[
        bool,
        typer.Option("--accept-sockets", help="Packet sockets may miss what is dropped early."),
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
) -> None:
    """Bring the live iptables rules of this network namespace to a stage and keep them there."""
    log = structlog.get_logger("bpfilterd")
    listen()
    directory = state or state_directory()
    wanted = {
        "stage": stage,
        "confirm_within": confirm_within,
        "confirm_id": confirm_id,
        "gates": [f"seconds={shadow_seconds}"],
        "policy": policy,
        "accept_reset": accept_state_reset,
        "operator": [found.words for found in own_connections(os.getpid())],
        "accept_lockout": accept_lockout,
    }
    chosen = Goal.of(wanted if goal is None else json.loads(goal))
    if chosen.stage is Stage.OFF:
        raise UsageError(
            "--stage takes shadow, canary or enforce", hint="`bpfilter teardown` turns it off"
        )
    if (found := running(directory)) is not None:
        raise UsageError(
            f"bpfilterd runs here already, as process {found[0]}", hint="stop it first"
        )
    request = Request(
        tuple(interface),
        backend,
        lease_seconds,
        force=force,
        verify_share=verify_share / 100,
        early=EarlyRequest.parse(early, xdp or (), interface, accept_sockets),
        guards=Guards(probe=_probe(probe, probe_interval, probe_timeout)),
    )
    journal = Journal(directory)
    ending = serve(request, chosen, journal, log.info, told)
    if ending is Ending.STOPPED:
        journal.remove()


def _probe(command: str | None, interval: float, timeout: float) -> ProbeCommand | None:
    if command is None:
        return None
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"--probe {command!r}: {error}", hint="quote it as in a shell") from None
    if not words:
        raise UsageError("--probe is empty", hint="name the command to run")
    return ProbeCommand(words, interval, timeout)


def listen() -> None:
    """From now on SIGTERM, SIGINT and SIGHUP do nothing but end the next `told`.

    Blocking them is not enough: libraries have made threads by now that do not block them.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: _TOLD.set())
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def told(seconds: float) -> bool:
    """Wait for so long to be told to stop; at once true if we were before."""
    end = time.monotonic() + seconds
    while not _TOLD.is_set() and (left := end - time.monotonic()) > 0:
        if signal.sigtimedwait(_SIGNALS, left) is not None:
            _TOLD.set()
    return _TOLD.is_set()


def main() -> None:
    """Entry point of the `bpfilterd` console script."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(daemon_command)
    sys.exit(run_app(app, "bpfilterd"))


if __name__ == "__main__":
    main()
