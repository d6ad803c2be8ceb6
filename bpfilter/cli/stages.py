"""`bpfilter confirm`, `rollback` and `status`: the running daemon's stage.

Exit codes: 0 done, 1 failed or nothing runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, connect
from bpfilter.cli.plan import Format
from bpfilter.report.terminal import terminal
from bpfilter.rollout import evidence
from bpfilter.rollout.journal import Stage

_EVENTS = 10


def confirm_command(
    number: Annotated[str, typer.Argument(metavar="ID", help="As `bpfilter deploy` printed it.")],
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Confirm a stage that waits for it, so that it stays. Safe to repeat.

    Example: [cyan]bpfilter confirm 3f9a1c20[/]
    """
    terminal().print(connect(url, state, token_file, ca, cert).confirm(number), markup=False)


def rollback_command(
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Back to off now, whatever the stage; the daemon ends. `deploy` starts anew."""
    terminal().print(connect(url, state, token_file, ca, cert).rollback(), markup=False)


def status_command(
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.TEXT,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """What stage this network namespace is in, what it waits for, and what happened lately.

    Exit codes: 0 a daemon runs · 1 none does.
    """
    daemon = connect(url, state, token_file, ca, cert)
    found = {**daemon.status(), "events": list(daemon.events()[-_EVENTS:])}
    if form is Format.JSON:
        typer.echo(json.dumps(found, indent=2))
    else:
        console = terminal()
        print_stage(console, found)
        if found["events"]:
            console.print(event_table(found["events"]))
    raise typer.Exit(0 if found["pid"] is not None or found.get("running") else 1)


def print_stage(console: Console, found: Mapping[str, Any]) -> None:
    """The stage, what it waits for and what it counted, line by line."""
    if found["pid"] is None and not found.get("running"):
        console.print("stage off: no bpfilterd runs here, iptables decides alone")
        return
    force = "in force" if found["in_force"] else "suspended, iptables decides alone"
    process = "" if found["pid"] is None else f", bpfilterd is process {found['pid']}"
    console.print(f"stage {found['stage']} ({force}){process}")
    if found.get("stage") == Stage.CANARY:
        console.print(f"canary: {escape(found['scope'])}")
    if found.get("edited"):
        console.print(f"edited: {escape(str(found['edited']))}; being translated, see `events`")
    if found.get("suspended"):
        console.print(f"suspended: {escape(str(found['suspended']))}")
    if confirm := found.get("confirm"):
        console.print(
            f"to be confirmed within {confirm['seconds']:.0f} s:"
            f" bpfilter confirm {escape(confirm['id'])}"
        )
    for gate in found.get("gates", ()):
        open_ = "[green]open[/]" if gate["passed"] else "[yellow]closed[/]"
        console.print(f"gate {escape(gate['name'])}: {open_}, {escape(gate['sentence'])}")
    if "decided" in found:
        punted = ", ".join(f"{name} {count}" for name, count in found["punted"].items())
        console.print(f"decided {found['decided']} packets; punted: {punted or 'none'}")
    if found.get("comparison"):
        console.print(escape(evidence.sentence(found["comparison"])))


def event_table(events: Sequence[Mapping[str, Any]]) -> Table:
    """Events for people, oldest first, in local time."""
    table = Table("when", "what", "event", box=None)
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        table.add_row(when, escape(event["kind"]), escape(event["sentence"]))
    return table
