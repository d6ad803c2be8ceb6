"""`bpfilter teardown`: end the daemon of this network namespace and remove everything of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfilter.errors import RolloutError
from bpfilter.report.terminal import terminal
from bpfilter.rollout.journal import is_service, state_directory
from bpfilter.rollout.teardown import remains, stop_daemon, teardown


def teardown_command(
    state: Annotated[
        Path | None, typer.Option(help="Directory of the journal, default by namespace.")
    ] = None,
) -> None:
    """Stop deciding, remove our programs, pins, filters, chains and rules, and look for leftovers.

    Works from what it finds, with or without a daemon or a journal. iptables filters on as before.
    """
    console = terminal()
    directory = state or state_directory()
    if (pid := stop_daemon(directory)) is not None:
        did = "stays, and keeps nothing" if is_service(directory) else "stopped"
        console.print(f"bpfilterd (process {pid}) {did}")
    for line in teardown(directory):
        console.print(f"removed {line}")
    left = remains()
    if left:
        raise RolloutError(
            f"still here: {', '.join(left)}", hint="run `bpfilter teardown` again as root"
        )
    console.print("nothing of ours is left in this network namespace")
