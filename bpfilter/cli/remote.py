"""Deploying by the REST API, for who is not root or not on the host."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfilter.cli.connection import ApiRefused, Remote
from bpfilter.errors import RulesetRefused, UsageError
from bpfilter.report.stored import read_plan
from bpfilter.rollout.journal import Stage
from bpfilter.rollout.management import own_connections
from bpfilter.ruleset.writer import write

_WAIT_SECONDS = 120.0


def refuse_local(options: Mapping[str, object], hint: str) -> None:
    """UsageError for options that only work on the host itself."""
    if given := [name for name, value in options.items() if value]:
        raise UsageError(f"{', '.join(given)}: not by the API", hint=hint)


def sent(ruleset: str | None) -> str | None:
    """The text of a ruleset that an option names (a file, a plan in JSON, or -); None for live.

    RulesetRefused or UsageError as reading it here would.
    """
    if ruleset is None:
        return None
    planned = None if ruleset == "-" else read_plan(Path(ruleset))
    if planned is not None:
        return write(planned)
    try:
        data = sys.stdin.buffer.read() if ruleset == "-" else Path(ruleset).read_bytes()
    except OSError as error:
        raise RulesetRefused(
            f"cannot be read: {error.strerror}", source=ruleset, hint="check the path and its mode"
        ) from None
    return data.decode("utf-8", "backslashreplace")


def own_peers(url: str | None) -> Sequence[str]:
    """`ADDRESS:PORT` of the caller's own connections, where they are to the host that is asked."""
    if url is not None and not url.startswith("unix://"):
        return ()
    found = own_connections(os.getpid())
    return [
        f"[{each.peer}]:{each.local_port}"
        if each.peer.version == 6
        else f"{each.peer}:{each.local_port}"
        for each in found
    ]


def deploy_by_api(
    daemon: Remote, wanted: Mapping[str, Any], console: Console, *, dry_run: bool
) -> bool:
    """Ask for a deployment and wait for its stage; whether there was anything to change.

    ApiRefused if the API refuses, or the service gave it up.
    """
    stage = Stage(wanted["stage"])
    before = daemon.status()
    daemon.deploy(wanted, dry_run=dry_run)
    if dry_run:
        console.print(f"the API would go from stage {before['stage']} to {stage}")
        return bool(before["stage"] != stage)
    end = time.monotonic() + _WAIT_SECONDS
    seen = False
    with console.status(f"waiting for stage {stage}"):
        while time.monotonic() < end:
            found = daemon.status()
            seen = seen or found["running"]
            if found["running"] and not Stage(found["stage"]).before(stage):
                console.print(f"stage {found['stage']}")
                return True
            ended = seen and not found["running"]
            # A service that gave up goes on without a deployment, and says why.
            problem = found.get("problem") if found.get("at") != before.get("at") else None
            why = _last_event(daemon) if ended else problem
            if why is not None:
                raise ApiRefused(
                    f"stage {stage} was not reached: {why}",
                    hint="iptables filters as before; `bpfilter events` says more",
                )
            time.sleep(0.2)
    console.print(f"still in stage {found['stage']}; it waits for:")
    for gate in found.get("gates", ()):
        if not gate["passed"]:
            console.print(f"  {gate['sentence']}", markup=False)
    return True


def _last_event(daemon: Remote) -> str:
    events = daemon.events()
    return str(events[-1]["sentence"]) if events else "bpfilterd ended"
