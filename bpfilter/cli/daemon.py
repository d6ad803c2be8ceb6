"""`bpfilterd`: the foreground process that vouches for the programs of one network namespace.

On SIGTERM or SIGINT it rolls back and ends. Exit codes: 0 told to stop or to roll back, 1 failed,
not confirmed, or ended by a guard, 64 usage. Unless told to stop it leaves its journal, which says
why it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
import typer

from bpfilter.cli.run import run_app
from bpfilter.daemon.desired import of_settings
from bpfilter.daemon.logs import configure
from bpfilter.daemon.signals import Signals
from bpfilter.daemon.standing import Standing
from bpfilter.errors import UsageError
from bpfilter.rollout.early import EarlyRequest
from bpfilter.rollout.ending import Ending
from bpfilter.rollout.goal import Goal, Policy
from bpfilter.rollout.guards import Guards, probe_of
from bpfilter.rollout.journal import Journal, Stage, running, state_directory
from bpfilter.rollout.lease import LEASE_SECONDS
from bpfilter.rollout.management import own_connections
from bpfilter.rollout.service import Wait, serve
from bpfilter.rollout.stages import Request
from bpfilter.ruleset.model import Backend
from bpfilter.settings import FILE, load

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def daemon_command(
    config: Annotated[Path, typer.Option(help="The service's configuration.")] = FILE,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Only say whether the configuration is good.")
    ] = False,
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", "-i", help="One deployment and no service; repeatable."),
    ] = None,
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
    """Bring the live iptables rules of this network namespace to a stage and keep them there.

    Without --interface: the service, which does what its configuration and its API say, and stays.
    With it: one deployment, as the other options say, and its end.
    """
    directory = state or state_directory()
    if check_config:
        _check(config)
        return
    if (found := running(directory)) is not None:
        raise UsageError(
            f"bpfilterd runs here already, as process {found[0]}", hint="stop it first"
        )
    if not interface:
        _stand(config, directory)
        return
    log = structlog.get_logger("bpfilterd")
    signals = Signals(_SIGNALS)
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
    request = Request(
        tuple(interface),
        backend,
        lease_seconds,
        force=force,
        verify_share=verify_share / 100,
        early=EarlyRequest.parse(early, xdp or (), interface, accept_sockets),
        guards=Guards(
            probe=None if probe is None else probe_of(probe, probe_interval, probe_timeout)
        ),
    )
    journal = Journal(directory)
    ending = serve(request, chosen, journal, log.info, told(signals))
    if ending is Ending.STOPPED:
        journal.remove()


def _check(config: Path) -> None:
    # The daemon itself does without the API's libraries, which take as much memory as its rules.
    from bpfilter.api.access import Guard

    settings = load(config)
    of_settings(settings.deployment)
    Guard(settings.api)
    typer.echo(f"{config}: good")


def _stand(config: Path, directory: Path) -> None:
    log = configure(load(config).daemon)
    descriptors = tuple(_passed())
    with Journal(directory) as journal:
        Standing(lambda: load(config), config, journal, log, descriptors).run()


def _passed() -> range:
    """Files that systemd hands over (sd_listen_fds(3)); they are for the API."""
    first = 3
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return range(0)
    return range(first, first + int(os.environ.get("LISTEN_FDS", "0")))


def told(signals: Signals) -> Wait:
    """A daemon's wait: over for good with the first signal."""
    came: list[int] = []

    def wait(seconds: float, files: Sequence[int]) -> bool:
        if not came and (number := signals.wait(seconds, files)) is not None:
            came.append(number)
        return bool(came)

    return wait


def main() -> None:
    """Entry point of the `bpfilterd` console script."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(daemon_command)
    sys.exit(run_app(app, "bpfilterd"))


if __name__ == "__main__":
    main()
