"""`bpfilter events` and `history`: what happened. Exit codes: 0 done, 1 failed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from bpfilter.cli.connection import Ca, Cert, State, TokenFile, Url, connect
from bpfilter.cli.plan import Format
from bpfilter.cli.stages import event_table
from bpfilter.report.terminal import terminal

_STAGES = frozenset(
    {"stage", "adopted", "confirmed", "cancelled", "stopped", "failed", "unconfirmed", "mismatch",
     "lost", "probe", "followed", "ruleset", "undone", "waivers"}
)  # fmt: skip
_SECONDS = 0.5


def events_command(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Only those behind this number.")] = 0,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="At most the last N.")] = 50,
    form: Annotated[
        Format, typer.Option("--format", help="text, or json: one object a line.")
    ] = Format.TEXT,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """What happened to this network namespace's deployment, as sentences.

    Example: [cyan]bpfilter events --follow --format json[/]
    """
    daemon = connect(url, state, token_file, ca, cert)
    found = daemon.events(after)
    _print(found[-lines:] if lines else found[:0], form)
    while follow:
        after = found[-1]["id"] if found else after
        time.sleep(_SECONDS)
        if found := daemon.events(after):
            _print(found, form)
            after = found[-1]["id"]


def history_command(
    form: Annotated[Format, typer.Option("--format", help="text or json.")] = Format.TEXT,
    state: State = None,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """The stages that were reached, confirmed and left, and why; all that the journal keeps."""
    daemon = connect(url, state, token_file, ca, cert)
    found = [event for event in daemon.events() if event["kind"] in _STAGES]
    if form is Format.JSON:
        typer.echo(json.dumps({"history": found}, indent=2))
    elif found:
        terminal().print(event_table(found))
    else:
        terminal().print("nothing was deployed here since the journal began")


def _print(found: Sequence[Mapping[str, Any]], form: Format) -> None:
    if form is Format.JSON:
        for event in found:
            typer.echo(json.dumps(event))
    elif found:
        terminal().print(event_table(found))
