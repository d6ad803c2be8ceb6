"""`bpfilter demo`: the whole way of a ruleset, in network namespaces of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bpfilter.demo.tour import Tour
from bpfilter.errors import LabError
from bpfilter.report.terminal import terminal
from bpfilter.rollout.marking import cutover
from bpfilter.ruleset.model import Backend


def demo_command(
    backend: Annotated[
        Backend, typer.Option(help="Which iptables holds the demonstration's rules.")
    ] = Backend.NFT,
) -> None:
    """Plan, prove, verify, shadow, cut over, revert and tear down a realistic ruleset.

    Runs in namespaces that it makes and removes; the host's own rules are never touched.
    """
    if os.geteuid() != 0:
        raise LabError("the demonstration needs root", hint="run `sudo bpfilter demo`")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = terminal()
    with tempfile.TemporaryDirectory(prefix="bpfilter-demo-") as directory:
        os.environ.setdefault("XTABLES_LOCKFILE", f"{directory}/xtables.lock")
        findings = Tour(console, backend, Path(directory) / "state", cutover).run()
    table = Table(title="Summary", title_justify="left", show_header=False)
    for what, value in findings.rows:
        table.add_row(what, value)
    console.print(table)
