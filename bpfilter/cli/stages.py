"""`bpfilter confirm`, `rollback` and `status`: the running daemon's stage, by its journal.

Exit codes: 0 done, 1 failed or nothing runs.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpfilter.report.terminal import terminal
from bpfilter.rollout import evidence
from bpfilter.rollout.asking import ask
from bpfilter.rollout.journal import Journal, Stage, running, state_directory
from bpfilter.rollout.status import STATUS

_EVENTS = 10
State = Annotated[Path | None, typer.Option(help="Directory of the journal, default by namespace.")]


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


def confirm_command(
    number: Annotated[str, typer.Argument(metavar="ID", help="As `bpfilter deploy` printed it.")],
    state: State = None,
) -> None:
    """Confirm a stage that waits for it, so that it stays. Safe to repeat."""
    terminal().print(ask(state or state_directory(), "confirm", {"id": number}).sentence)


def rollback_command(state: State = None) -> None:
    """Back to off now, whatever the stage; the daemon ends. `deploy` starts anew."""
    terminal().print(ask(state or state_directory(), "rollback", {}).sentence)


def status_command(
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.TEXT,
    state: State = None,
) -> None:
    """What stage this network namespace is in, what it waits for, and what happened lately."""
    found = read_status(state or state_directory())
    if form is Format.JSON:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(terminal(), found)
    raise typer.Exit(0 if found["pid"] is not None else 1)


def read_status(directory: Path) -> Mapping[str, Any]:
    """The journal's last word, and who keeps it; stage off if there is no daemon."""
    alive = running(directory)
    found: dict[str, Any] = {"pid": None, "stage": Stage.OFF, "in_force": False, "events": []}
    try:
        with Journal(directory, create=False) as journal:
            last = dict(journal.document(STATUS) or {}) if alive is not None else {}
            events = [asdict(event) for event in journal.events()[-_EVENTS:]]
    except sqlite3.OperationalError:
        return found
    found |= last
    found["events"] = events
    if alive is not None:
        found["pid"], found["stage"] = alive
    return found


def _print(console: Console, found: Mapping[str, Any]) -> None:
    if found["pid"] is None:
        console.print("stage off: no bpfilterd runs here, iptables decides alone")
    else:
        force = "in force" if found["in_force"] else "suspended, iptables decides alone"
        console.print(f"stage {found['stage']} ({force}), bpfilterd is process {found['pid']}")
        if found.get("stage") == Stage.CANARY:
            console.print(f"canary: {escape(found['scope'])}")
        if found.get("suspended"):
            console.print(f"suspended: {escape(found['suspended'])}")
        if confirm := found.get("confirm"):
            console.print(
                f"to be confirmed within {confirm['seconds']:.0f} s:"
                f" bpfilter confirm {escape(confirm['id'])}"
            )
        for gate in found.get("gates", ()):
            open_ = "[green]open[/]" if gate["passed"] else "[yellow]closed[/]"
            console.print(f"gate {gate['name']}: {open_}, {escape(gate['sentence'])}")
        if "decided" in found:
            punted = ", ".join(f"{name} {count}" for name, count in found["punted"].items())
            console.print(f"decided {found['decided']} packets; punted: {punted or 'none'}")
        if found.get("comparison"):
            console.print(escape(evidence.sentence(found["comparison"])))
    if found["events"]:
        table = Table("when", "what", "event", box=None)
        for event in found["events"]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
            table.add_row(when, event["kind"], escape(event["sentence"]))
        console.print(table)
